"""Exact search: every stored sketch is read, block by block. The reference that the vector index is held to.

Shapes: N samples, n of them in a block, D sketch width, Q queries, K results, U distinct ids.

Sketches stay float16 on disk; a block is widened to float32 and multiplied there, which beat both wider blocks (they
leave the cache) and numpy's own conversion: 100k x 1024, 2 queries, 0.06 s against 0.13 s at 4,096 rows and 0.47 s in
numpy (2 cores). Row scales are applied to the products, not to the rows: Q multiplications a row instead of D.

Values that are reported are computed once more in float64 for the few rows that won (`exact_values`). A float32
product depends, in its last bits, on the block and the batch of queries it was computed in; the reported one does not.
"""

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
import torch

from index.segment import Segment

__all__ = [
    "MARGIN",
    "RowScale",
    "StoredRows",
    "check_filter",
    "check_queries",
    "check_search",
    "eligible",
    "exact_values",
    "rank",
    "row_factors",
    "scan",
    "sketches_of",
    "top_k",
]

RowScale = Literal["none", "inverse_norm"]

# Rows kept beyond k until their values are known in float64: float32 can swap neighbours at the cut.
MARGIN = 64
GATHER_BLOCK_ROWS = 256  # stays inside the cache of one core


def scan(
    segments: Sequence[Segment],
    queries: np.ndarray,
    block_rows: int = 1024,
    *,
    allowed: np.ndarray | None = None,
    excluded: np.ndarray | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (ids [n], values float32 [n, Q], norms float32 [n]) for every eligible row, in stored order.

    values are inner products of the stored sketches with queries [Q, D], accumulated in float32. Memory is bounded by
    the block, whatever the corpus. allowed and excluded are ascending int64 ids; an id that is not stored is no error.
    Raises ValueError if widths differ, a query is not finite, or a filter is not ascending.
    """
    queries_QD = torch.from_numpy(check_queries(segments, queries))
    check_filter(allowed, excluded)
    for segment in segments:
        for start in range(0, segment.num_samples, block_rows):
            ids_n = segment.ids[start : start + block_rows]
            mask_n = eligible(ids_n, allowed, excluded)
            rows: slice | np.ndarray = slice(start, start + len(ids_n))
            if not mask_n.all():
                rows = start + np.flatnonzero(mask_n)
                if len(rows) == 0:
                    continue
            quantized_nD, scales_n = segment.quantized(rows)
            values_nQ = (quantized_nD.float() @ queries_QD.T).numpy() * scales_n[:, None]
            yield segment.ids[rows], values_nQ, segment.norms[rows]


def sketches_of(
    segments: Sequence[Segment], ids: np.ndarray, block_rows: int = 1024
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Yield (places in ids [n], sketches float32 [n, D], norms float32 [n]) of the stored rows among ascending ids."""
    check_filter(ids)
    for segment in segments:
        for start in range(0, segment.num_samples, block_rows):
            rows = start + np.flatnonzero(eligible(segment.ids[start : start + block_rows], ids, None))
            if len(rows):
                yield np.searchsorted(ids, segment.ids[rows]), segment.sketch_rows(rows), segment.norms[rows]


def top_k(
    segments: Sequence[Segment],
    queries: np.ndarray,
    k: int,
    *,
    row_scale: RowScale = "none",
    allowed: np.ndarray | None = None,
    excluded: np.ndarray | None = None,
    block_rows: int = 1024,
) -> tuple[np.ndarray, np.ndarray]:
    """Return (ids int64 [Q, K], values float32 [Q, K]) of the highest values, K = min(k, number of eligible rows).

    Sorted by value, descending, ties by ascending id. The lowest values of q are the highest of -q, and where both are
    asked for, one product serves both. With row_scale "inverse_norm" each value is divided by the row's norm (0 where
    the norm is 0): the cosine, once the caller has divided the query by its own. Memory is bounded by the block and by
    Q * k. Where more than MARGIN rows tie at the cut to within float32's rounding, which of them are in is not decided
    by their ids. Raises as `scan` does, and ValueError for a negative k.
    """
    queries = check_search(segments, queries, k, allowed, excluded)
    best = [_Best(k + MARGIN) for _ in queries]
    sources, signs = _mirrored(queries)
    multiplied = sorted(set(sources))
    columns = [multiplied.index(source) for source in sources]
    blocks = scan(segments, queries[multiplied], block_rows, allowed=allowed, excluded=excluded)
    for ids_n, values_nQ, norms_n in blocks:
        values_Qn = np.ascontiguousarray((values_nQ * row_factors(norms_n, row_scale)[:, None]).T)
        for kept, column, sign in zip(best, columns, signs, strict=True):
            kept.push(ids_n, values_Qn[column] if sign > 0 else -values_Qn[column])
    if not best:
        return np.empty((0, 0), np.int64), np.empty((0, 0), np.float32)
    ids_QK = np.stack([kept.ids() for kept in best])
    return rank(ids_QK, exact_values(segments, queries, ids_QK, row_scale=row_scale), k)


def _mirrored(queries_QD: np.ndarray) -> tuple[list[int], list[int]]:
    """For each query the one whose products serve for it, as they are (1) or negated (-1): the first of q and -q."""
    seen: dict[bytes, int] = {}
    sources, signs = [], []
    for at, query_D in enumerate(queries_QD):
        other = seen.get((-query_D).tobytes())
        seen.setdefault(query_D.tobytes(), at)
        sources.append(at if other is None else other)
        signs.append(1 if other is None else -1)
    return sources, signs


class _Best:
    """The highest values seen so far, for one query: a buffer that is cut to its best when it has filled up."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._ids: list[np.ndarray] = []
        self._values: list[np.ndarray] = []
        self._pending = 0
        self._floor = -np.inf  # what a value must reach to matter

    def push(self, ids_n: np.ndarray, values_n: np.ndarray) -> None:
        kept = np.flatnonzero(values_n >= self._floor)
        self._ids.append(ids_n[kept])
        self._values.append(values_n[kept])
        self._pending += len(kept)
        if self._pending > 2 * self._size + 4096:
            self._cut()

    def _cut(self) -> None:
        ids, values = np.concatenate(self._ids), np.concatenate(self._values)
        if len(values) > self._size:
            self._floor = np.partition(values, len(values) - self._size)[len(values) - self._size]
            above, ties = np.flatnonzero(values > self._floor), np.flatnonzero(values == self._floor)
            ties = ties[np.argsort(ids[ties])][: self._size - len(above)]
            kept = np.concatenate([above, ties])
            ids, values = ids[kept], values[kept]
        self._ids, self._values, self._pending = [ids], [values], len(ids)

    def ids(self) -> np.ndarray:
        if not self._ids:
            return np.empty(0, np.int64)
        self._cut()
        return self._ids[0]


def exact_values(
    segments: Sequence[Segment],
    queries: np.ndarray,
    ids: np.ndarray,
    *,
    row_scale: RowScale = "none",
    block_rows: int = 1024,
) -> np.ndarray:
    """Return float32 [Q, K]: the value of each id of ids [Q, K] for its row's query; -inf where the id is -1.

    Accumulated in float64, so that the value of a sample for a query is the same number by whichever route the sample
    was found. Raises ValueError for an id that no segment holds, and where widths differ.
    """
    queries_QD = torch.from_numpy(check_queries(segments, queries)).double()
    values_QK = np.full(ids.shape, -np.inf, np.float32)
    slots = np.flatnonzero(ids.ravel() >= 0)  # flat positions in [Q, K]
    slots = slots[np.argsort(ids.ravel()[slots], kind="stable")]
    wanted_U, first_U = np.unique(ids.ravel()[slots], return_index=True)
    bounds = np.append(first_U, len(slots))  # slots of wanted_U[u] are bounds[u]:bounds[u + 1]
    found = 0
    for segment, rows, at in _locate(segments, wanted_U, block_rows):
        quantized_nD, scales_n = segment.quantized(rows)
        factors_n = scales_n.astype(np.float64) * row_factors(segment.norms[rows].astype(np.float64), row_scale)
        products_nQ = (quantized_nD.double() @ queries_QD.T).numpy() * factors_n[:, None]
        sizes = bounds[at + 1] - bounds[at]
        of_row = np.repeat(np.arange(len(rows)), sizes)
        block_slots = slots[np.arange(len(of_row)) + np.repeat(bounds[at] - (np.cumsum(sizes) - sizes), sizes)]
        values_QK.ravel()[block_slots] = products_nQ[of_row, block_slots // ids.shape[1]]
        found += len(rows)
    if found != len(wanted_U):
        raise ValueError(f"{len(wanted_U)} ids asked for, {found} rows found: an id is in no segment, or in two")
    return values_QK


def _locate(
    segments: Sequence[Segment], wanted_U: np.ndarray, block_rows: int
) -> Iterator[tuple[Segment, np.ndarray, np.ndarray]]:
    """Yield (segment, row numbers [n], their places in wanted_U [n]) for ascending ids, n <= block_rows."""
    for segment in segments:
        if segment.num_samples == 0:
            continue
        low, high = np.searchsorted(wanted_U, [segment.ids[0], segment.ids[-1] + 1])
        if low == high:
            continue
        rows = np.searchsorted(segment.ids, wanted_U[low:high])
        hits = np.flatnonzero(segment.ids[rows] == wanted_U[low:high])
        for start in range(0, len(hits), block_rows):
            block = hits[start : start + block_rows]
            yield segment, rows[block], low + block


class StoredRows:
    """The rows of some segments, numbered through in stored order, for gathering a few of them at random."""

    def __init__(self, segments: Sequence[Segment], row_scale: RowScale = "none") -> None:
        self.segments = tuple(segments)
        self.row_scale = row_scale
        self.starts = np.cumsum([0, *(segment.num_samples for segment in segments)])  # int64 [S + 1]
        stored = [segment.quantized(slice(None)) for segment in segments]
        self._sketches = [sketches.numpy() for sketches, _ in stored]  # mapped, float16 [n, D]
        self._scales = np.concatenate([np.empty(0, np.float32), *(scales for _, scales in stored)])
        self._ids = np.concatenate([np.empty(0, np.int64), *(segment.ids for segment in segments)])
        self._norms = None
        if row_scale != "none":
            self._norms = np.concatenate([np.empty(0, np.float32), *(segment.norms for segment in segments)])

    def __len__(self) -> int:
        return len(self._ids)

    def mask(self, allowed: np.ndarray | None, excluded: np.ndarray | None) -> np.ndarray | None:
        """Return bool [N], which rows a filter lets through, or None where it lets all."""
        if allowed is None and (excluded is None or len(excluded) == 0):
            return None
        masks = [eligible(segment.ids, allowed, excluded) for segment in self.segments]
        return np.concatenate([np.empty(0, bool), *masks])

    def gather(self, rows: np.ndarray) -> torch.Tensor:
        """Return the quantized sketches float16 [n, D] of ascending rows."""
        gathered_nD = np.empty((len(rows), self.segments[0].width), np.float16)
        numbers, firsts = np.unique(np.searchsorted(self.starts, rows, side="right") - 1, return_index=True)
        bounds = [*firsts.tolist(), len(rows)]
        for at, number in enumerate(numbers.tolist()):
            part = slice(bounds[at], bounds[at + 1])
            # "clip" makes numpy write into out itself; the rows are within bounds.
            np.take(self._sketches[number], rows[part] - self.starts[number], 0, gathered_nD[part], "clip")
        return torch.from_numpy(gathered_nD)

    def factors(self, rows: np.ndarray) -> np.ndarray:
        """Return float64 [n], what the products of the quantized sketches are multiplied by."""
        scales_n = self._scales[rows].astype(np.float64)
        return (
            scales_n if self._norms is None else scales_n * row_factors(self._norms[rows].astype("f8"), self.row_scale)
        )

    def values(self, query_D: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """Return float32 [n]: the values of ascending rows, accumulated in float32."""
        query = torch.from_numpy(query_D)
        products = [block.float() @ query for block in self.gather(rows).split(GATHER_BLOCK_ROWS)]
        return (torch.cat(products).numpy() * self.factors(rows)).astype(np.float32) if products else np.empty(0, "f4")

    def best(
        self, query_D: np.ndarray, rows: np.ndarray, k: int, values: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and values, as `exact_values` reports them, of the best k + MARGIN of these rows, in no order.

        rows are ascending, unless their values are given.
        """
        if values is None:
            values = self.values(query_D, rows)
        if len(rows) > k + MARGIN:
            rows = rows[np.argpartition(-values, k + MARGIN)[: k + MARGIN]]
        rows = np.sort(rows)
        products = self.gather(rows).double() @ torch.from_numpy(query_D).double() if len(rows) else torch.empty(0)
        return self._ids[rows], (products.numpy() * self.factors(rows)).astype(np.float32)


def rank(ids_QK: np.ndarray, values_QK: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the first k of each row by descending value, ties by ascending id."""
    order = np.lexsort((ids_QK, -values_QK), axis=-1)[:, :k]
    return np.take_along_axis(ids_QK, order, axis=1), np.take_along_axis(values_QK, order, axis=1)


def row_factors(norms: np.ndarray, row_scale: RowScale) -> np.ndarray:
    """Return what each row's value is multiplied by, in the norms' dtype: 1, or 1 / norm with 0 where that is 0."""
    if row_scale == "none":
        return np.ones_like(norms)
    if row_scale == "inverse_norm":
        # A subnormal norm counts as 0: its reciprocal would overflow.
        return np.divide(1, norms, out=np.zeros_like(norms), where=norms >= np.finfo(np.float32).tiny)
    raise ValueError(f"row_scale must be 'none' or 'inverse_norm', got {row_scale!r}")


def eligible(ids_n: np.ndarray, allowed: np.ndarray | None, excluded: np.ndarray | None) -> np.ndarray:
    """Return bool [n]: which of these ascending ids a filter lets through. Filters are ascending int64 ids."""
    mask_n = _members(ids_n, allowed) if allowed is not None else np.ones(len(ids_n), bool)
    if excluded is not None:
        mask_n &= ~_members(ids_n, excluded)
    return mask_n


def _members(ids_n: np.ndarray, among: np.ndarray) -> np.ndarray:
    mask_n = np.zeros(len(ids_n), bool)
    if len(ids_n) and len(among):
        # Only the part of the filter within the block's range: a long filter costs each block little.
        within = among[np.searchsorted(among, ids_n[0]) : np.searchsorted(among, ids_n[-1], "right")]
        if ids_n[-1] - ids_n[0] == len(ids_n) - 1:  # no gaps, as after an ingest: nothing to look up
            mask_n[within - ids_n[0]] = True
            return mask_n
        places = np.searchsorted(ids_n, within)
        mask_n[places[ids_n[places] == within]] = True
    return mask_n


def check_filter(*filters: np.ndarray | None) -> None:
    """Raise ValueError for a filter that is not an ascending int64 array: it would be searched wrongly in silence."""
    for ids in filters:
        if ids is None:
            continue
        if ids.dtype != np.int64 or ids.ndim != 1 or (ids[1:] < ids[:-1]).any():
            raise ValueError(f"a filter must be one ascending row of int64 ids, got {ids.dtype} {ids.shape}: sort it")


def check_queries(segments: Sequence[Segment], queries: np.ndarray) -> np.ndarray:
    """Return queries [Q, D] as contiguous float32. Raises ValueError unless finite and as wide as every segment."""
    queries_QD = np.ascontiguousarray(queries, np.float32)
    if queries_QD.ndim != 2 or not np.isfinite(queries_QD).all():
        raise ValueError(f"queries must be finite and [Q, D], got {queries_QD.shape}")
    for segment in segments:
        if segment.width != queries_QD.shape[1]:
            raise ValueError(f"queries are {queries_QD.shape[1]} wide, {segment.directory} holds {segment.width}")
    return queries_QD


def check_search(
    segments: Sequence[Segment], queries: np.ndarray, k: int, allowed: np.ndarray | None, excluded: np.ndarray | None
) -> np.ndarray:
    """What every search demands of its arguments: returns and raises as `check_queries` does, and ValueError for a
    negative k or a filter that is not ascending."""
    if k < 0:
        raise ValueError(f"k must not be negative, got {k}")
    check_filter(allowed, excluded)
    return check_queries(segments, queries)
