"""The vector index: FAISS over the sketches, grown group by group. The only home of faiss.

Consecutive segments form groups of about GROUP_ROWS rows; a group's FAISS index is a shard. Groups are cut from the
front, so that an append changes only the last one that was not full. Shards are read into memory and never changed:
any number of threads may search one object while another is opened over more segments (faiss itself crashes on a
search during an add).

Two kinds. "flat" holds float32 rows and misses nothing. "rabitq" holds one bit a coordinate (D / 8 + 8 bytes a row)
and proposes candidates, rescored from the stored sketches: reported scores are exact for both kinds, only which rows
are found is approximate. What the bits are taken of was measured, since RaBitQ is built for isotropic rows and queries
and sketches are neither (principal components; a preconditioned query weighs up the small ones). Recall@100 in 1,000
candidates, clustered rows of lognormal norms and width 256, standard deviations falling as j^-.5 and j^-1, the worse
of the two (50k rows; 100k in the first line):

    query                                        raw    damping 10   damping 1
    as stored                                    .79
    rotated at random                            .999   .984         .903
    balanced by variance^(1/8), then rotated     .998   .990         .951     <- this
    balanced by variance^(1/4), then rotated     .994   .983         .961
    rotated, two bits (size and time x 2)        1.0    .998         .987

Balancing divides a row's coordinates by w and multiplies a query's by w: the inner product stays what it was. More
candidates cost little: 100k x 256, raw / damping 10 / damping 1, recall@100 in 1,000 of them .9997 / .997 / .965, in
2,000 1.0 / .998 / .977; with row_scale "inverse_norm" .987 / .987 / .931 and .999 / .997 / .971. Hence REFINE.
"""

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import numpy as np

from index.errors import FaissMissingError
from index.scan import MARGIN, RowScale, check_filter, check_queries, eligible, exact_values, rank, row_factors
from index.segment import Segment
from index.shard_files import ShardFiles

__all__ = ["FaissIndex", "Kind"]

Kind = Literal["auto", "flat", "rabitq"]

GROUP_ROWS = 131_072
FLAT_MAX_ROWS = 20_000  # below, an exact index is as fast and costs little memory
MIN_RABITQ_WIDTH = 256  # narrower, one bit a coordinate is too coarse: damping 10 finds .82 at 32, .979 at 128
TRAIN_ROWS = 16_384
BUILD_BLOCK_ROWS = 8_192
REFINE = 20  # candidates per result
MIN_EXTRA = 1_000  # and at least so many more than k
QUERY_BITS = 8
BALANCE = 1 / 8  # the exponent of the variance, see above
FORMAT = "forvalue-shard/1"
ROTATION_SEED = 20_250_810  # any fixed number: equal segments make equal shards


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
class _Shard:
    """One group: its rows' ids, ascending, the position of each in the FAISS index, and that index."""

    key: str
    ids: np.ndarray  # [n] int64, ascending
    positions: np.ndarray  # [n] int64
    ids_by_position: np.ndarray  # [n] int64
    index: Any
    query_scales: np.ndarray | None  # [D] float32, what a query is multiplied by; None for flat
    num_bytes: int


class FaissIndex:
    """An immutable index of the sketches of some segments; growing is opening another."""

    def __init__(
        self,
        kind: Literal["flat", "rabitq"],
        row_scale: RowScale,
        segments: Sequence[Segment],
        shards: Sequence[_Shard],
        files: ShardFiles,
    ) -> None:
        """Use `open`."""
        self.kind = kind
        self.row_scale = row_scale
        self._files = files
        self.num_rows = sum(len(shard.ids) for shard in shards)
        self._segments = tuple(segments)
        self._shards = tuple(shards)

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
    ) -> "FaissIndex":
        """Open the index of these segments, building and storing under directory the shards that are not there.

        names are the segments' stable names: a shard file is found again by them. "auto" is flat below FLAT_MAX_ROWS
        rows or a width of MIN_RABITQ_WIDTH, else rabitq. reuse is an index, as the one this is to replace, whose
        shards are shared where they fit instead of read again. Files under directory are a cache: whatever is missing,
        truncated or altered is built anew. Raises FaissMissingError, ValueError for arguments that do not fit, OSError
        if a shard must be built and directory is not writable.
        """
        if len(names) != len(segments) or len(set(names)) != len(names):
            raise ValueError(f"names must be unique, one a segment: got {len(names)} for {len(segments)} segments")
        if len({segment.width for segment in segments}) > 1:
            raise ValueError(f"segments differ in width: {sorted({segment.width for segment in segments})}")
        if kind not in ("auto", "flat", "rabitq"):
            raise ValueError(f"kind must be 'auto', 'flat' or 'rabitq', got {kind!r}")
        faiss = load_faiss()
        if kind == "auto":
            kind = _kind_for(segments)
        files = ShardFiles(directory, prefix=f"{row_scale}-")
        held = {shard.key: shard for shard in reuse._shards} if reuse else {}
        shards = []
        for group in _groups(segments):
            members = [segments[at] for at in group]
            recipe = [FORMAT, faiss.__version__, kind, row_scale, str(members[0].width), *(names[at] for at in group)]
            key = files.key(recipe)
            shards.append(held.get(key) or _open_shard(files, key, members, kind, row_scale))
        return cls(kind, row_scale, segments, shards, files)

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

        Sorted by score, descending, ties by ascending id. Scores are exact; "rabitq" may miss rows (max(refine * k,
        k + MIN_EXTRA) candidates a query are rescored), "flat" none. Should a query have fewer results than K, its row
        ends in ids of -1 with scores of -inf. allowed and excluded are ascending int64 ids. The lowest of q are the
        highest of -q: ask for both as two rows. Raises ValueError as `scan.top_k` does. Safe from several threads.
        """
        if k < 0:
            raise ValueError(f"k must not be negative, got {k}")
        queries_QD = check_queries(self._segments, queries)
        check_filter(allowed, excluded)
        num_wanted = max(refine * k, k + MIN_EXTRA) if self.kind == "rabitq" else k + MARGIN
        masks = [eligible(shard.ids, allowed, excluded) for shard in self._shards]
        num_results = min(k, sum(int(mask.sum()) for mask in masks))
        if num_results == 0 or len(queries_QD) == 0:
            return np.empty((len(queries_QD), num_results), np.int64), np.empty((len(queries_QD), num_results), "f4")
        candidates_QC = self._candidates(queries_QD, num_wanted, masks)
        scores_QC = exact_values(self._segments, queries_QD, candidates_QC, row_scale=self.row_scale)
        return rank(candidates_QC, scores_QC, num_results)

    def _candidates(self, queries_QD: np.ndarray, num_wanted: int, masks: list[np.ndarray]) -> np.ndarray:
        """Return ids [Q, C], -1 where there is none: all rows of shards with few eligible ones, the best of others."""
        whole, ids, estimates = [], [], []
        for shard, mask in zip(self._shards, masks, strict=True):
            if mask.sum() <= num_wanted:  # all of them are candidates: nothing to search for
                whole.append(np.tile(shard.ids[mask], (len(queries_QD), 1)))
                continue
            found_ids, found_estimates = _search_shard(shard, queries_QD, num_wanted, mask)
            ids.append(found_ids)
            estimates.append(found_estimates)
        if ids:
            whole.append(rank(np.hstack(ids), np.hstack(estimates), num_wanted)[0])
        return np.hstack(whole)

    def describe(self) -> dict[str, str | int]:
        """Return {"type": "flat" | "rabitq", "shards": number, "rows": number, "bytes": size of the shards}."""
        num_bytes = sum(shard.num_bytes for shard in self._shards)
        return {"type": self.kind, "shards": len(self._shards), "rows": self.num_rows, "bytes": num_bytes}

    def prune(self) -> list[Path]:
        """Remove the shard files of this row_scale that this index does not use; return the removed paths."""
        return self._files.prune({shard.key for shard in self._shards})


def _kind_for(segments: Sequence[Segment]) -> Literal["flat", "rabitq"]:
    num_rows = sum(segment.num_samples for segment in segments)
    return "flat" if num_rows < FLAT_MAX_ROWS or segments[0].width < MIN_RABITQ_WIDTH else "rabitq"


def _groups(segments: Sequence[Segment]) -> list[list[int]]:
    """Cut the segments' places into consecutive groups; each is closed once it holds GROUP_ROWS rows."""
    groups: list[list[int]] = []
    num_rows = GROUP_ROWS
    for at, segment in enumerate(segments):
        if segment.num_samples == 0:
            continue
        if num_rows >= GROUP_ROWS:
            groups.append([])
            num_rows = 0
        groups[-1].append(at)
        num_rows += segment.num_samples
    return groups


def _open_shard(files: ShardFiles, key: str, segments: Sequence[Segment], kind: str, row_scale: RowScale) -> _Shard:
    faiss = load_faiss()
    data = files.read(key)
    if data is None:
        data = faiss.serialize_index(_build(segments, kind, row_scale)).tobytes()
        with contextlib.suppress(OSError):  # a cache: a full disk or a read-only store costs the next build only
            files.write(key, data)
    index = faiss.deserialize_index(np.frombuffer(data, np.uint8))
    ids = np.concatenate([segment.ids for segment in segments])
    order = np.argsort(ids, kind="stable")
    query_scales = None
    if kind == "rabitq":
        # The transform's columns are a rotation's divided by w, so their lengths are 1 / w. A query passes through the
        # same transform as the rows and needs w * q after it: w * w * q before.
        transform = faiss.downcast_VectorTransform(index.chain.at(0))
        lengths_D = np.linalg.norm(faiss.vector_to_array(transform.A).reshape(transform.d_out, -1), axis=0)
        query_scales = (1 / lengths_D**2).astype(np.float32)
    return _Shard(key, ids[order], order, ids, index, query_scales, len(data))


def _build(segments: Sequence[Segment], kind: str, row_scale: RowScale) -> Any:
    faiss = load_faiss()
    width = segments[0].width
    if kind == "flat":
        index = faiss.IndexFlatIP(width)
    else:
        sample_ND = _spread_rows(segments, row_scale)
        index = faiss.IndexPreTransform(_transform(sample_ND), faiss.IndexRaBitQ(width, faiss.METRIC_INNER_PRODUCT))
        index.train(sample_ND)
    for segment in segments:
        for start in range(0, segment.num_samples, BUILD_BLOCK_ROWS):
            rows = np.arange(start, min(start + BUILD_BLOCK_ROWS, segment.num_samples))
            index.add(_scaled_rows(segment, rows, row_scale))
    return index


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


def _transform(sample_ND: np.ndarray) -> Any:
    """Return the faiss transform that divides by w = variance^BALANCE and then rotates at random."""
    faiss = load_faiss()
    width = sample_ND.shape[1]
    variance_D = np.mean(np.square(sample_ND, dtype=np.float64), axis=0)
    mean = variance_D.mean()
    # The floor keeps a dimension that is 0 in every row from being divided by 0.
    balance_D = (variance_D / mean + 1e-6) ** BALANCE if mean > 0 else np.ones(width)
    rotation_DD = np.linalg.qr(np.random.default_rng(ROTATION_SEED).standard_normal((width, width)))[0]
    transform = faiss.LinearTransform(width, width, False)
    faiss.copy_array_to_vector((rotation_DD / balance_D).astype(np.float32).ravel(), transform.A)
    transform.is_trained = True
    return transform


def _search_shard(
    shard: _Shard, queries_QD: np.ndarray, num_wanted: int, mask: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return ids and estimated scores [Q, num_wanted]; ids are -1 and estimates -inf where faiss found no more."""
    faiss = load_faiss()
    selector = None
    if not mask.all():
        by_position = np.zeros(len(mask), bool)
        by_position[shard.positions[mask]] = True
        bitmap = np.packbits(by_position, bitorder="little")  # referenced by the selector: it must outlive the search
        selector = faiss.IDSelectorBitmap(len(mask), faiss.swig_ptr(bitmap))
    if shard.query_scales is None:
        parameters = faiss.SearchParameters(sel=selector)
    else:
        queries_QD = queries_QD * shard.query_scales
        rabitq_parameters = faiss.RaBitQSearchParameters(sel=selector, qb=QUERY_BITS)
        parameters = faiss.SearchParametersPreTransform(index_params=rabitq_parameters)
    estimates, positions = shard.index.search(queries_QD, num_wanted, params=parameters)
    missing = positions < 0
    return np.where(missing, -1, shard.ids_by_position[positions]), np.where(missing, -np.inf, estimates)
