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
from collections.abc import Callable
from typing import Any

import numpy as np
import zstandard

from index.factors import QuantizedFactors

__all__ = ["MAX_TOKEN_ID", "pack", "unpack"]

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


def unpack(packed: bytes | memoryview, num_tokens: int, factor_rank: int, steps: np.ndarray) -> QuantizedFactors:
    """What `pack` was given, with these steps [1 + B] for all of its tokens. Raises ValueError for any other bytes."""
    data = _decompress(packed, num_tokens, factor_rank)
    at = num_tokens * factor_rank
    if len(data) < at + 2 * num_tokens:
        raise ValueError(f"{len(data)} bytes do not hold {num_tokens} tokens of {factor_rank} dimensions")
    counts = np.frombuffer(data, np.uint8, num_tokens, at + num_tokens)
    num_others = int(counts.sum(dtype=np.int64))
    num_ids = num_tokens + num_others
    if len(data) != at + 2 * num_tokens + _ID_BYTES * num_ids + num_others:
        raise ValueError(f"{len(data)} bytes do not hold {num_tokens} tokens and {num_others} others")
    low, middle, high = np.frombuffer(data, np.uint8, _ID_BYTES * num_ids, at + 2 * num_tokens).reshape(_ID_BYTES, -1)
    ids = low | middle.astype(np.uint32) << 8 | high.astype(np.uint32) << 16
    return QuantizedFactors(
        np.frombuffer(data, np.int8, at).reshape(num_tokens, factor_rank),
        np.broadcast_to(steps, (num_tokens, len(steps))),
        ids[:num_tokens],
        np.frombuffer(data, np.uint8, num_tokens, at),
        counts,
        ids[num_tokens:],
        np.frombuffer(data, np.uint8, num_others, len(data) - num_others),
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
