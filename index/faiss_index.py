"""The vector index: shards of coded sketches that grow group by group, and an exact scan of what is not coded yet.

Consecutive segments form groups. A group closes once it holds GROUP_ROWS rows and is then one shard, trained on its
own rows, made once and never touched again. Behind the last closed group, young groups of YOUNG_ROWS make small
shards, which the next large one replaces; and the rows behind those are scanned exactly. So an append builds at most
what it completed, and a row is coded twice in its life. Where a shard is missing and may not be built now, its rows
are scanned: answers are right at once, and fast again when `open` with build=True has run, beside the queries.

An index object never changes: any number of threads may search it while another one is opened over more segments.

Codes are one bit a coordinate (index/rabitq.py), D / 8 + 16 bytes a row. They propose candidates, which are rescored
from the stored sketches: reported scores are exact, only which rows are found is approximate. How many candidates it
takes, and what else was measured: scripts/results/scale.md.
"""

import contextlib
import math
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from index.rabitq import Interrupted, Shard, build_shard, load_faiss, read_shard, turned
from index.scan import RowScale, StoredRows, check_search, rank, row_factors, top_k
from index.segment import Segment
from index.shard_files import ShardFiles

__all__ = ["FaissIndex", "Kind", "load_faiss"]

Kind = Literal["auto", "flat", "rabitq"]

GROUP_ROWS = 131_072
YOUNG_ROWS = 16_384  # fewer rows are scanned as fast as codes are searched and rescored
FLAT_MAX_ROWS = 20_000
MIN_RABITQ_WIDTH = 256  # narrower, one bit a coordinate is too coarse: damping 10 finds .82 at 32, .979 at 128
REFINE = 10  # candidates a result in each shard
MIN_EXTRA = 1_000  # and at least so many more than k
FIRST_EXTRA = 400  # more than k that are rescored in any case
DOUBT = 2.5  # standard deviations of the estimates' error that a candidate may lie below the kth value
FORMAT = "forvalue-shard/2"


class FaissIndex:
    """An immutable index of the sketches of some segments; growing is opening another."""

    def __init__(
        self,
        kind: Literal["flat", "rabitq"],
        row_scale: RowScale,
        segments: Sequence[Segment],
        shards: Sequence[tuple[range, Shard]],
        num_missing: int,
        files: ShardFiles,
    ) -> None:
        """Use `open`."""
        self.kind = kind
        self.row_scale = row_scale
        self.num_missing = num_missing  # rows whose shard is still to be built; till then others serve, or the scan
        self._segments = tuple(segments)
        self._shards = {shard.key: shard for _, shard in shards}
        self._files = files
        coded = [segments[at] for places, _ in shards for at in places]
        self._coded = StoredRows(coded, row_scale)
        self._starts = np.cumsum([0, *(shard.num_rows for _, shard in shards)])
        places = {at for places, _ in shards for at in places}
        self._scanned = [segment for at, segment in enumerate(segments) if at not in places]
        self.num_rows = sum(segment.num_samples for segment in segments)

    @classmethod
    def open(
        cls,
        directory: Path,
        segments: Sequence[Segment],
        *,
        names: Sequence[str],
        row_scale: RowScale = "none",
        kind: Kind = "auto",
        reuse: "FaissIndex | None" = None,
        build: bool = True,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> "FaissIndex":
        """Open the index of these segments, building and storing under directory the shards that are not there.

        names are the segments' stable names: a shard file is found again by them. "auto" is flat, an exact scan without
        files, below FLAT_MAX_ROWS rows or a width of MIN_RABITQ_WIDTH, else rabitq. reuse is an index, as the one this
        is to replace, whose shards are shared where they fit instead of read again. Without build nothing is built:
        `num_missing` says how many rows wait for it. A build stops, leaving the rest to the scan, once is_wanted() is
        False; what it finished is kept. Files under directory are a cache: whatever is missing, truncated or altered is
        built anew. Raises FaissMissingError where shards are called for, ValueError for arguments that do not fit.
        """
        if len(names) != len(segments) or len(set(names)) != len(names):
            raise ValueError(f"names must be unique, one a segment: got {len(names)} for {len(segments)} segments")
        if len({segment.width for segment in segments}) > 1:
            raise ValueError(f"segments differ in width: {sorted({segment.width for segment in segments})}")
        if kind not in ("auto", "flat", "rabitq"):
            raise ValueError(f"kind must be 'auto', 'flat' or 'rabitq', got {kind!r}")
        row_factors(np.ones(1, np.float32), row_scale)  # raises for one that is not known
        files = ShardFiles(directory, prefix=f"{row_scale}-")
        kind = _kind_for(segments) if kind == "auto" else kind
        if kind == "flat":
            return cls(kind, row_scale, segments, [], 0, files)
        maker = _Maker(files, segments, names, row_scale, reuse._shards if reuse else {}, build, is_wanted)
        shards, num_missing = maker.shards()
        return cls(kind, row_scale, segments, shards, num_missing, files)

    def search(
        self,
        queries: np.ndarray,
        k: int,
        *,
        allowed: np.ndarray | None = None,
        excluded: np.ndarray | None = None,
        refine: int = REFINE,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (ids int64 [Q, K], scores float32 [Q, K]), K = min(k, number of eligible rows), as `scan.top_k` does.

        Sorted by score, descending, ties by ascending id. Scores are exact; "rabitq" may miss rows (of max(refine * k,
        k + MIN_EXTRA) candidates a query and shard those are rescored that may be among the best k), "flat" none, nor
        where that many rows or fewer are eligible. Should a query have fewer results than
        K, its row ends in ids of -1 with scores of -inf. allowed and excluded are ascending int64 ids. The lowest of q
        are the highest of -q: ask for both as two rows. Raises ValueError as `scan.top_k` does. Safe from several
        threads.
        """
        queries_QD = check_search(self._segments, queries, k, allowed, excluded)
        found_ids, found_scores = top_k(
            self._scanned, queries_QD, k, row_scale=self.row_scale, allowed=allowed, excluded=excluded
        )
        if not self._shards or k == 0 or len(queries_QD) == 0:
            return found_ids, found_scores
        mask = self._coded.mask(allowed, excluded)
        num_coded = len(self._coded) if mask is None else int(mask.sum())
        rows_QC, estimates_QC = self._candidates(queries_QD, max(refine * k, k + MIN_EXTRA), mask, num_coded)
        best = list(_pool().map(self._rescored, queries_QD, rows_QC, estimates_QC, [k] * len(queries_QD)))
        ids_QC = np.full((len(best), max(len(ids) for ids, _ in best)), -1, np.int64)
        scores_QC = np.full(ids_QC.shape, -np.inf, np.float32)
        for at, (ids, scores) in enumerate(best):
            ids_QC[at, : len(ids)], scores_QC[at, : len(ids)] = ids, scores
        num_results = min(k, num_coded + found_ids.shape[1])
        return rank(np.hstack([found_ids, ids_QC]), np.hstack([found_scores, scores_QC]), num_results)

    def _candidates(
        self, queries_QD: np.ndarray, per_shard: int, mask: np.ndarray | None, num_eligible: int
    ) -> tuple[Sequence[np.ndarray], Sequence[np.ndarray | None]]:
        """Return rows and estimated scores for each query, best first; all rows, without estimates, where few."""
        if num_eligible <= per_shard * math.sqrt(len(self._shards)):
            rows = np.arange(len(self._coded)) if mask is None else np.flatnonzero(mask)
            return [rows] * len(queries_QD), [None] * len(queries_QD)
        parts = [None if mask is None else mask[a:b] for a, b in zip(self._starts, self._starts[1:], strict=False)]
        shards = list(self._shards.values())
        found = _pool().map(_search, shards, parts, turned(shards, queries_QD), [per_shard] * len(shards))
        rows, estimates = zip(*found, strict=True)
        starts = self._starts.tolist()
        rows_QC = np.hstack([part + start for part, start in zip(rows, starts, strict=False)])
        estimates_QC = np.hstack(estimates)
        order = np.argsort(-estimates_QC, axis=1)
        return list(np.take_along_axis(rows_QC, order, axis=1)), list(np.take_along_axis(estimates_QC, order, axis=1))

    def _rescored(
        self, query_D: np.ndarray, rows: np.ndarray, estimates: np.ndarray | None, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return ids and exact scores of the best k rows and a few more, in no order.

        The first candidates tell how far off estimates are. After them only those are looked at whose estimate says
        that they may still be among the best k.
        """
        if estimates is None:
            return self._coded.best(query_D, rows, k)
        num_found = int(np.searchsorted(-estimates, np.inf))  # faiss found no more: -inf
        first = np.sort(rows[: min(num_found, k + FIRST_EXTRA)])
        order = np.argsort(rows[: len(first)])
        values = self._coded.values(query_D, first)
        if len(first) > k:
            error = float(np.std(values - estimates[: len(first)][order]))
            floor = np.partition(values, len(values) - k)[len(values) - k] - DOUBT * error
            num_found = min(num_found, int(np.searchsorted(-estimates, -floor, side="right")))
        rest = np.sort(rows[len(first) : num_found])
        values = np.concatenate([values, self._coded.values(query_D, rest)])
        return self._coded.best(query_D, np.concatenate([first, rest]), k, values)

    def describe(self) -> dict[str, str | int]:
        """Return {"type": "flat" | "rabitq", "shards": number, "rows": number, "bytes": size of the shards, "scanned":
        rows that are scanned exactly}."""
        return {
            "type": self.kind,
            "shards": len(self._shards),
            "rows": self.num_rows,
            "bytes": sum(shard.num_bytes for shard in self._shards.values()),
            "scanned": self.num_rows - len(self._coded),
        }

    def prune(self) -> list[Path]:
        """Remove the shard files of this row_scale that this index does not use; return the removed paths."""
        return self._files.prune(self._shards.keys())


def _kind_for(segments: Sequence[Segment]) -> Literal["flat", "rabitq"]:
    num_rows = sum(segment.num_samples for segment in segments)
    return "flat" if num_rows < FLAT_MAX_ROWS or segments[0].width < MIN_RABITQ_WIDTH else "rabitq"


class _Maker:
    """Finds or builds the shards of one opening."""

    def __init__(
        self,
        files: ShardFiles,
        segments: Sequence[Segment],
        names: Sequence[str],
        row_scale: RowScale,
        held: dict[str, Shard],
        build: bool,
        is_wanted: Callable[[], bool],
    ) -> None:
        self._files, self._segments, self._names, self._row_scale = files, segments, names, row_scale
        self._held, self._build, self._is_wanted = held, build, is_wanted

    def shards(self) -> tuple[list[tuple[range, Shard]], int]:
        """The shards with the places of their segments, and how many rows wait for theirs."""
        found: list[tuple[range, Shard]] = []
        num_missing = 0
        groups, rest = _groups(self._segments, range(len(self._segments)), GROUP_ROWS)
        for group in groups:
            if shard := self._shard(group):
                found.append((group, shard))
                continue
            young = self._young(group, build=False)  # what there is serves until the large one is built
            found += young
            num_missing += _num_rows(self._segments, group)
        young = self._young(rest, build=self._build)
        found += young
        small, _ = _groups(self._segments, rest, YOUNG_ROWS)
        num_missing += sum(_num_rows(self._segments, group) for group in small)
        return found, num_missing - sum(shard.num_rows for _, shard in young)

    def _young(self, places: range, *, build: bool) -> list[tuple[range, Shard]]:
        groups, _ = _groups(self._segments, places, YOUNG_ROWS)
        return [(group, shard) for group in groups if (shard := self._shard(group, build=build))]

    def _shard(self, group: range, build: bool | None = None) -> Shard | None:
        members = [self._segments[at] for at in group]
        width = members[0].width
        recipe = [FORMAT, load_faiss().__version__, self._row_scale, str(width), *(self._names[at] for at in group)]
        key = self._files.key(recipe)
        if key in self._held:
            return self._held[key]
        data = self._files.read(key)
        if data is None and (self._build if build is None else build) and self._is_wanted():
            try:
                data = build_shard(members, self._row_scale, self._is_wanted)
            except Interrupted:
                return None
            with contextlib.suppress(OSError):  # a cache: a full disk or a read-only store costs the next build only
                self._files.write(key, data)
        return None if data is None else read_shard(key, data, width)


def _groups(segments: Sequence[Segment], places: range, num_rows: int) -> tuple[list[range], range]:
    """Cut places into consecutive groups of num_rows rows or a segment more, and the places left over behind them."""
    groups: list[range] = []
    start, held = places.start, 0
    for at in places:
        held += segments[at].num_samples
        if held >= num_rows:
            groups.append(range(start, at + 1))
            start, held = at + 1, 0
    return groups, range(start, places.stop)


def _num_rows(segments: Sequence[Segment], places: range) -> int:
    return sum(segments[at].num_samples for at in places)


@cache
def _pool() -> ThreadPoolExecutor:
    """Threads, one a core, that each work on one shard or one query at a time.

    faiss itself splits queries among threads, not rows, and a query is one or two of them.
    """
    num_threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    faiss, before, all_started = load_faiss(), torch.get_num_threads(), threading.Barrier(num_threads)

    def start() -> None:
        faiss.omp_set_num_threads(1)
        torch.set_num_threads(1)  # of this thread, and of those to come, until it is taken back below
        all_started.wait()

    pool = ThreadPoolExecutor(num_threads, "search", initializer=start)
    for waiting in [pool.submit(int) for _ in range(num_threads)]:
        waiting.result()
    torch.set_num_threads(before)
    return pool


def _search(shard: Shard, mask: np.ndarray | None, turned_QD: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    if mask is not None and mask.all():
        mask = None
    return shard.search(turned_QD, k, mask)
