"""One shard of the vector index: a bit for each coordinate of the rows of a group of segments.

faiss's IndexRaBitQFastScan scans such codes with byte shuffles, 10 to 30 times as fast as IndexRaBitQ, but it refuses
search filters; its inverted file does not. So a shard is an inverted file with one list, around zero.

What the bits are taken of was measured, since RaBitQ is built for isotropic rows and queries and sketches are neither
(principal components; a preconditioned query weighs up the small ones). Rows are divided by w = variance^BALANCE,
coordinate by coordinate, and then rotated at random; a query is multiplied by w and rotated alike, so that the inner
product stays what it was. Variances are those of the shard's own rows: a shard is trained once, when it is made, and
never again. The rotation is the same for all shards and not stored (4 MB at 1,024 numbers).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

import numpy as np
import torch

from index.errors import FaissMissingError
from index.scan import RowScale, row_factors
from index.segment import Segment

__all__ = ["Interrupted", "Shard", "build_shard", "load_faiss", "read_shard", "turned"]

TRAIN_ROWS = 16_384
BUILD_BLOCK_ROWS = 8_192
FAST_SCAN_ROWS = 32  # rows of a block of codes, what the kernel takes
BALANCE = 3 / 16  # the exponent of the variance, see scripts/results/scale.md
ROTATION_SEED = 20_250_810  # any fixed number: equal segments make equal shards


class Interrupted(Exception):
    """A shard was given up half made, since the process ends."""


def load_faiss() -> ModuleType:
    """Import faiss. Raises FaissMissingError, which says what to install."""
    # Read when faiss loads its OpenMP: threads that spin while they wait made a loaded machine 4 times slower.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        import faiss  # optional: scans work without it
    except ImportError as error:
        raise FaissMissingError from error
    return faiss


@dataclass(frozen=True)
class Shard:
    """Codes of consecutive rows in stored order; read by many threads, never changed."""

    key: str
    index: Any
    balance_D: np.ndarray  # float32, what a query is multiplied by before it is rotated
    num_rows: int
    num_bytes: int

    def search(self, turned_QD: np.ndarray, k: int, mask: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Return row numbers within the shard and estimated scores [Q, k]; -1 and -inf where there are no more.

        turned_QD are queries as `turned` makes them for this shard. mask, bool [num_rows], admits rows.
        """
        faiss = load_faiss()
        parameters = faiss.IVFSearchParameters(nprobe=1)
        if mask is not None:
            bitmap = np.packbits(mask, bitorder="little")  # the selector refers to it: it must outlive the search
            parameters.sel = selector = faiss.IDSelectorBitmap(len(mask), faiss.swig_ptr(bitmap))  # noqa: F841 (kept alive)
        estimates, rows = self.index.search(turned_QD, min(k, self.num_rows), params=parameters)
        return rows, np.where(rows < 0, -np.inf, estimates)


def turned(shards: Sequence[Shard], queries_QD: np.ndarray) -> np.ndarray:
    """Return queries balanced for each shard and rotated, float32 [S, Q, D]: one product, and in the caller's thread.

    In the threads that search, numpy's BLAS would start threads of its own: 5 times the processor time of a search.
    """
    balanced_SQD = torch.from_numpy(np.stack([queries_QD * shard.balance_D for shard in shards]))
    return (balanced_SQD @ torch.tensor(rotation(queries_QD.shape[1])).T).numpy()


def build_shard(segments: Sequence[Segment], row_scale: RowScale, is_wanted: Any = lambda: True) -> bytes:
    """Return the bytes of a shard over all rows of these segments. Raises Interrupted once is_wanted() is False."""
    faiss = load_faiss()
    width = segments[0].width
    sample_ND = _spread_rows(segments, row_scale)
    variance_D = np.mean(np.square(sample_ND, dtype=np.float64), axis=0)
    mean = variance_D.mean()
    # The floor keeps a dimension that is 0 in every row from being divided by 0.
    balance_D = ((variance_D / mean + 1e-6) ** BALANCE if mean > 0 else np.ones(width)).astype(np.float32)
    turn_DD = torch.from_numpy((rotation(width) / balance_D).T.copy())
    zero = faiss.IndexFlatIP(width)
    zero.add(np.zeros((1, width), np.float32))
    index = faiss.IndexIVFRaBitQFastScan(zero, width, 1, faiss.METRIC_INNER_PRODUCT, FAST_SCAN_ROWS, True, 1)
    index.train((torch.from_numpy(sample_ND) @ turn_DD).numpy())
    for segment in segments:
        for start in range(0, segment.num_samples, BUILD_BLOCK_ROWS):
            if not is_wanted():
                raise Interrupted
            rows = np.arange(start, min(start + BUILD_BLOCK_ROWS, segment.num_samples))
            index.add((torch.from_numpy(_scaled_rows(segment, rows, row_scale)) @ turn_DD).numpy())
    return balance_D.tobytes() + faiss.serialize_index(index).tobytes()


def read_shard(key: str, data: bytes, width: int) -> Shard:
    """Open the bytes of `build_shard`, which the caller vouches for: faiss crashes on others."""
    faiss = load_faiss()
    balance_D = np.frombuffer(data, np.float32, count=width).copy()
    index = faiss.deserialize_index(np.frombuffer(data, np.uint8, offset=balance_D.nbytes))
    return Shard(key, index, balance_D, index.ntotal, len(data))


@cache
def rotation(width: int) -> np.ndarray:
    """A random rotation float32 [D, D], the same everywhere: its columns' signs do not depend on the LAPACK in use."""
    normal = np.random.default_rng(ROTATION_SEED).standard_normal((width, width))
    orthogonal, triangle = np.linalg.qr(normal)
    signed: np.ndarray = (orthogonal * np.where(np.diag(triangle) < 0, -1, 1)).astype(np.float32)
    signed.flags.writeable = False
    return signed


def _scaled_rows(segment: Segment, rows: np.ndarray, row_scale: RowScale) -> np.ndarray:
    return segment.sketch_rows(rows) * row_factors(segment.norms[rows], row_scale)[:, None]


def _spread_rows(segments: Sequence[Segment], row_scale: RowScale) -> np.ndarray:
    """Return at most TRAIN_ROWS rows, evenly spread over a group: what neighbours share must not stand for all."""
    ends = np.cumsum([segment.num_samples for segment in segments])
    picks = np.unique(np.linspace(0, ends[-1] - 1, min(TRAIN_ROWS, ends[-1])).astype(np.int64))
    parts = np.split(picks, np.searchsorted(picks, ends[:-1]))
    starts = ends - [segment.num_samples for segment in segments]
    return np.concatenate(
        [
            _scaled_rows(segment, part - start, row_scale)
            for segment, part, start in zip(segments, parts, starts, strict=True)
        ]
    )
