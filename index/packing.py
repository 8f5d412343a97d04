"""How a sample's factors lie in a segment: planes of bytes, each entropy-coded by itself, in one zstd frame.

    hidden       K F bytes    int8, token by token
    label codes  K            uint8
    counts       K            uint8
    ids          3 (K + n)    the labels, then the others; their lowest bytes, then the middle, then the highest
    other codes  n            uint8

A block ends with each plane, since zstd has one Huffman table a block and the planes are distributed differently.
Shapes: K counted tokens, F factor rank, B bands of F, n kept errors beside the labels.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import zstandard

from index.factors import QuantizedFactors

__all__ = ["MAX_TOKEN_ID", "Planes", "pack", "planes_of", "unpack"]

MAX_TOKEN_ID = (1 << 24) - 1
_ID_BYTES = 3
# Level 1 is as small as any here: codes repeat in nothing that a longer search would find.
_PARAMETERS = zstandard.ZstdCompressionParameters.from_level(1, write_checksum=False, write_content_size=True)
_THREAD = threading.local()


def pack(factors: QuantizedFactors) -> bytes:
    """The bytes of one sample's factors, but for their steps; none for a sample without tokens."""
    if not len(factors):
        return b""
    ids = np.concatenate([factors.labels, factors.others]).astype("<u4")
    planes = [factors.hidden, factors.label_codes, factors.counts]
    planes += [ids.view(np.uint8).reshape(-1, 4)[:, byte] for byte in range(_ID_BYTES)]
    parts = [plane.tobytes() for plane in (*planes, factors.other_codes)]
    make = _of_thread("compressor", lambda: zstandard.ZstdCompressor(compression_params=_PARAMETERS))
    compressor = make.compressobj(size=sum(map(len, parts)))
    packed = []
    for part in parts:
        packed += [compressor.compress(part), compressor.flush(zstandard.COMPRESSOBJ_FLUSH_BLOCK)]
    return b"".join([*packed, compressor.flush()])


@dataclass(frozen=True)
class Planes:
    """What lies in the frame of one sample, not yet put together: views of its bytes."""

    hidden: np.ndarray  # uint8 [K F]
    label_codes: np.ndarray  # uint8 [K]
    counts: np.ndarray  # uint8 [K]
    ids: np.ndarray  # uint8 [3, K + n]
    other_codes: np.ndarray  # uint8 [n]


def planes_of(packed: bytes | memoryview, num_tokens: int, factor_rank: int) -> Planes:
    """The planes of a frame that `pack` made of so many tokens. Raises ValueError for any other bytes."""
    data = np.frombuffer(_decompress(packed, num_tokens, factor_rank), np.uint8)
    at = num_tokens * factor_rank
    if len(data) < at + 2 * num_tokens:
        raise ValueError(f"{len(data)} bytes do not hold {num_tokens} tokens of {factor_rank} dimensions")
    counts = data[at + num_tokens : at + 2 * num_tokens]
    num_others = int(counts.sum(dtype=np.int64))
    end = at + 2 * num_tokens + _ID_BYTES * (num_tokens + num_others)
    if len(data) != end + num_others:
        raise ValueError(f"{len(data)} bytes do not hold {num_tokens} tokens and {num_others} others")
    ids = data[at + 2 * num_tokens : end].reshape(_ID_BYTES, num_tokens + num_others)
    return Planes(data[:at], data[at : at + num_tokens], counts, ids, data[end:])


def unpack(planes: Sequence[Planes], factor_rank: int, steps: np.ndarray) -> QuantizedFactors:
    """What `pack` was given for each of these samples, at least one, one after the other: steps [N, 1 + B] are theirs.

    Put together all at once, which costs half of doing so sample by sample.
    """
    num_tokens = np.array([len(sample.counts) for sample in planes])
    num_others = np.array([len(sample.other_codes) for sample in planes])
    low, middle, high = np.concatenate([sample.ids for sample in planes], axis=1)
    ids = low | middle.astype(np.uint32) << 8 | high.astype(np.uint32) << 16
    is_label = np.repeat(np.tile([True, False], len(planes)), np.stack([num_tokens, num_others], axis=1).ravel())
    return QuantizedFactors(
        np.concatenate([sample.hidden for sample in planes]).view(np.int8).reshape(-1, factor_rank),
        np.repeat(steps, num_tokens, axis=0),
        ids[is_label],
        np.concatenate([sample.label_codes for sample in planes]),
        np.concatenate([sample.counts for sample in planes]),
        ids[~is_label],
        np.concatenate([sample.other_codes for sample in planes]),
    )


def _decompress(packed: bytes | memoryview, num_tokens: int, factor_rank: int) -> bytes:
    if not num_tokens:
        return b""
    most = num_tokens * (factor_rank + 2 + _ID_BYTES + (_ID_BYTES + 1) * 255)
    try:
        size = zstandard.frame_content_size(packed)
        if not 0 <= size <= most:  # flipped bits must not make us ask for gigabytes
            raise ValueError(f"{size} bytes for {num_tokens} tokens")
        found: bytes = _of_thread("decompressor", zstandard.ZstdDecompressor).decompress(packed, max_output_size=size)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error
    return found


def _of_thread(name: str, make: Callable[[], Any]) -> Any:
    """zstandard's objects are not safe to share between threads, and making one costs more than using it."""
    if not hasattr(_THREAD, name):
        setattr(_THREAD, name, make())
    return getattr(_THREAD, name)
