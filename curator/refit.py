"""Refit: a new projection for a corpus that has grown or drifted, fitted on what is stored, without the model.

The space keeps its recipe, so later ingests go on in it; its projection, fingerprint, sketches and captured energies
are new. Factors stay as they are: their files are shared by the new segments. Deleted samples are carried along, so
that they can be restored; `compact` drops them.

    draw live samples, a fifth of them held out        index/refit.py fits on the others
    compare the captured energy of the held-out ones   the old projection stays unless the new one is better
    write spaces/<new fingerprint> and new segments    unnamed by the database, so swept if this is killed
    one transaction                                    renames the space, exchanges its segments
"""

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import sqlalchemy as sa
from sqlalchemy.orm import Session

from curator.errors import UsageError
from curator.metadata.drift import captured_now
from curator.metadata.samples import datasets_by_id, live_ids, rows_changed
from curator.metadata.tables import Sample, Space
from curator.metadata.tables import Segment as SegmentRow
from curator.space import publish_projection
from curator.store import Store
from curator.value import Ranks
from index.factors import QuantizedFactors
from index.refit import Refit, StoredPart, fit_stored
from index.segment import Segment, write_sketches

__all__ = ["MIN_GAIN", "MIN_SAMPLES", "OnRefit", "RefitOptions", "RefitProgress", "refit"]

# Measured in scripts/results/refit.md. Held-out means of 256 samples scatter by about .003.
MIN_GAIN = 0.01  # of captured energy, below which a new projection is not worth new sketches
MIN_SAMPLES = 10
_MAX_SAMPLES = 1_280
_MAX_TOKENS = 400_000  # of those drawn: 50 MB of factors
_HELD_OUT = 5  # one in so many


@dataclass(frozen=True)
class RefitProgress:
    """Where a running refit stands."""

    phase: str  # "fitting" or "rewriting"
    samples: int
    total_samples: int


OnRefit = Callable[[RefitProgress], None]


@dataclass(frozen=True)
class RefitOptions:
    """How to refit. `force` takes the new projection even where it captures no more."""

    dry_run: bool = False
    force: bool = False
    ranks: Ranks = field(default_factory=Ranks)
    seed: int = 0


def refit(
    store: Store, session: Session, space: Space, options: RefitOptions, on_progress: OnRefit = lambda progress: None
) -> dict[str, Any]:
    """What it did or, with dry_run, would do: see `Curator.refit`. The caller holds the write lock unless dry_run.

    Killed or interrupted anywhere, the store is as it was. Raises UsageError for fewer than MIN_SAMPLES live samples.
    """
    started = time.perf_counter()
    segments = store.segments(session, space.id)
    total = sum(segment.num_samples for segment in segments)
    on_progress(RefitProgress("fitting", 0, total))
    drawn = _draw(session, space, segments, options.seed)
    is_held_out = np.arange(len(drawn)) % _HELD_OUT == 0
    found = fit_stored(
        store.projection(space),
        _parts(segments, np.sort(drawn[~is_held_out])),
        error_rank=options.ranks.error,
        width=options.ranks.width,
        seed=options.seed,
    )
    report = _assess(session, found, segments, np.sort(drawn[is_held_out]))
    gain = report["captured"]["after"] - report["captured"]["before"]
    is_better = gain >= MIN_GAIN
    report |= {
        "space": space.fingerprint,
        "replaces": None,
        "is_better": is_better,
        "is_replaced": False,
        "samples": total,
        "segments": len(segments),
        "fitted_on": int((~is_held_out).sum()),
        "held_out": int(is_held_out.sum()),
    }
    if not options.dry_run and (is_better or options.force):
        report |= {"space": _replace(store, session, space, found, report, on_progress), "is_replaced": True}
        report["replaces"] = space.projection["replaces"][-1]
    return report | {"seconds": time.perf_counter() - started}


def _draw(session: Session, space: Space, segments: list[Segment], seed: int) -> np.ndarray:
    """Ids of live samples in random order: at most _MAX_SAMPLES with about _MAX_TOKENS tokens."""
    live = live_ids(session, space.id)
    if len(live) < MIN_SAMPLES:
        raise UsageError(
            f"a refit needs at least {MIN_SAMPLES} samples that are not deleted, the space has {len(live)}"
        )
    chosen: np.ndarray = np.random.default_rng(seed).permutation(live)[:_MAX_SAMPLES]
    per_sample = sum(segment.num_tokens for segment in segments) / sum(segment.num_samples for segment in segments)
    return chosen[: max(MIN_SAMPLES, int(_MAX_TOKENS / max(per_sample, 1.0)))]


def _parts(segments: Iterable[Segment], ids: np.ndarray) -> list[StoredPart]:
    """These samples, ids ascending, as they are stored: one part a segment."""
    found = []
    for segment in segments:
        rows = np.flatnonzero(np.isin(segment.ids, ids, assume_unique=True))
        if len(rows):
            found.append(_part(segment, rows))
    return found


def _part(segment: Segment, rows: np.ndarray) -> StoredPart:
    factors = [segment.factors(row) for row in rows.tolist()]
    counts = np.array([len(one) for one in factors], dtype=np.int64)
    return StoredPart(segment.sketch_rows(rows), segment.norms[rows], QuantizedFactors.concatenate(factors), counts)


def _captured(sketches: np.ndarray, norms: np.ndarray) -> np.ndarray:
    energies = np.square(sketches, dtype=np.float64).sum(1)
    return np.minimum(1.0, energies / np.maximum(norms.astype(np.float64) ** 2, 1e-30))


def _assess(session: Session, found: Refit, segments: list[Segment], held_out: np.ndarray) -> dict[str, Any]:
    """Mean captured energy of held-out samples under both projections, overall and by dataset."""
    parts = _parts(segments, held_out)
    before = np.concatenate([_captured(part.sketches, part.norms) for part in parts])
    after = np.concatenate([_captured(found.sketches(part), part.norms) for part in parts])
    names = datasets_by_id(session, held_out.tolist())
    of_dataset = np.array([names[id_] for id_ in held_out.tolist()])
    return {
        "captured": {"before": float(before.mean()), "after": float(after.mean())},
        "datasets": [
            {
                "dataset": name,
                "held_out": int((of_dataset == name).sum()),
                "before": float(before[of_dataset == name].mean()),
                "after": float(after[of_dataset == name].mean()),
            }
            for name in sorted(set(of_dataset.tolist()))
        ],
    }


def _replace(
    store: Store,
    session: Session,
    space: Space,
    found: Refit,
    report: dict[str, Any],
    on_progress: OnRefit,
) -> str:
    """Writes the new generation beside the old one and exchanges them in one transaction: the new fingerprint."""
    info = {"num_samples": str(report["fitted_on"]), "fitted_on": "stored factors"}
    named = publish_projection(store, space.recipe, replace(found.new, info=info))
    old_index = store.index_directory(space)
    try:
        written = _write_segments(store, session, space, named["fingerprint"], found, on_progress)
        _commit(session, space, named, written)
    except BaseException:
        session.rollback()
        store.sweep()
        raise
    store.sweep()
    for path in old_index.glob("*"):
        if path.suffix != ".tmp":  # of a process that is writing one
            path.unlink(missing_ok=True)
    return space.fingerprint


def _write_segments(
    store: Store, session: Session, space: Space, fingerprint: str, found: Refit, on_progress: OnRefit
) -> list[tuple[int, SegmentRow, np.ndarray, np.ndarray]]:
    """(old segment's id, new segment, ids, captured energies) of every segment of the space."""
    query = sa.select(SegmentRow).where(SegmentRow.space_id == space.id).order_by(SegmentRow.first_sample_id)
    rows = session.scalars(query).all()
    done, total = 0, sum(row.num_samples for row in rows)
    written = []
    on_progress(RefitProgress("rewriting", 0, total))
    for row in rows:
        segment = store.segment(row.name)
        part = _part(segment, np.arange(segment.num_samples))
        sketches = found.sketches(part)
        name = f"{row.first_sample_id:012d}-{fingerprint[:8]}"
        with store.publishing("segments", name) as directory:
            file = write_sketches(directory, segment, sketches)
        new = SegmentRow(
            space_id=space.id,
            name=name,
            first_sample_id=row.first_sample_id,
            num_samples=row.num_samples,
            num_tokens=row.num_tokens,
            files=[
                {"name": file.name, "sha256": file.sha256, "num_bytes": file.num_bytes},
                *(old for old in row.files if old["name"] != file.name),
            ],
            created_at=row.created_at,  # when its samples came: what `status` tells drift by
        )
        written.append((row.id, new, segment.ids, _captured(sketches, part.norms)))
        done += row.num_samples
        on_progress(RefitProgress("rewriting", done, total))
    return written


def _commit(
    session: Session,
    space: Space,
    named: dict[str, Any],
    written: list[tuple[int, SegmentRow, np.ndarray, np.ndarray]],
) -> None:
    one = sa.update(Sample).where(Sample.id == sa.bindparam("sample")).values(captured=sa.bindparam("energy"))
    session.add_all(new for _, new, _, _ in written)
    session.flush()
    for old, new, ids, energies in written:
        values = zip(ids.tolist(), energies.tolist(), strict=True)
        session.connection().execute(one, [{"sample": id_, "energy": energy} for id_, energy in values])
        rows_changed(session, sa.update(Sample).where(Sample.segment_id == old).values(segment_id=new.id))
        session.execute(sa.delete(SegmentRow).where(SegmentRow.id == old))
    named["projection"]["replaces"] = [*space.projection.get("replaces", []), space.fingerprint]
    for name, value in named.items():
        setattr(space, name, value)
    session.flush()
    space.projection = space.projection | {"captured": captured_now(session, space)}
    session.commit()
