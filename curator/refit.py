"""Refit: a new projection for a corpus that has grown or drifted, fitted on what is stored, without the model.

The space keeps its recipe, so later ingests go on in it; its projection, fingerprint, sketches and captured energies
are new. Factors stay as they are: their files are shared by the new segments. Deleted samples are carried along, so
that they can be restored; `compact` drops them.

    draw live samples, a fifth of them held out        index/refit.py fits on the others
    compare the captured energy of the held-out ones   the old projection stays unless the new one is better overall,
                                                       and for no dataset worse
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
from curator.metadata.samples import live_ids_by_dataset, rows_changed
from curator.metadata.tables import Sample, Space
from curator.metadata.tables import Segment as SegmentRow
from curator.space import publish_projection
from curator.store import Store
from curator.value import Ranks
from index.refit import Refit, StoredPart, fit_stored
from index.segment import Segment, gather_factors, write_sketches

__all__ = ["MAX_LOSS", "MIN_GAIN", "MIN_SAMPLES", "OnRefit", "RefitOptions", "RefitProgress", "refit"]

# Measured in scripts/results/refit.md. Held-out means of 256 samples scatter by about .003.
MIN_GAIN = 0.01  # of captured energy, below which a new projection is not worth new sketches
MAX_LOSS = 0.02  # that a dataset may lose of it; means of _LEAST_HELD_OUT samples scatter by about half of this
MIN_SAMPLES = 10
_MAX_SAMPLES = 1_280
_MAX_TOKENS = 400_000  # of those drawn: 50 MB of factors
_HELD_OUT = 5  # one in so many
_LEAST_HELD_OUT = 32  # of each dataset, but no more than a third of it: a small one must not get worse unnoticed


@dataclass(frozen=True)
class RefitProgress:
    """Where a running refit stands."""

    phase: str  # "fitting", "rewriting", or "indexing" once the projection is settled
    samples: int
    total_samples: int


OnRefit = Callable[[RefitProgress], None]


@dataclass(frozen=True)
class RefitOptions:
    """How to refit. `force` takes the new projection whatever it captures."""

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
    of_dataset = live_ids_by_dataset(session, space.id)
    fitted_on, held_out = _draw(of_dataset, segments, options.seed)
    found = fit_stored(
        store.projection(space),
        _parts(segments, fitted_on),
        error_rank=options.ranks.error,
        width=options.ranks.width,
        seed=options.seed,
    )
    report = _assess(of_dataset, found, segments, held_out)
    is_better = report["captured"]["after"] - report["captured"]["before"] >= MIN_GAIN
    is_worse = any(row["is_worse"] for row in report["datasets"])
    report |= {
        "space": space.fingerprint,
        "replaces": None,
        "is_better": is_better,
        "is_replaced": False,
        "samples": total,
        "segments": len(segments),
        "fitted_on": len(fitted_on),
        "held_out": len(held_out),
    }
    if not options.dry_run and (options.force or (is_better and not is_worse)):
        report |= {"space": _replace(store, session, space, found, report, on_progress), "is_replaced": True}
        report["replaces"] = space.projection["replaces"][-1]
    return report | {"seconds": time.perf_counter() - started}


def _draw(of_dataset: dict[str, np.ndarray], segments: list[Segment], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Ids to fit on and ids held out, ascending: of live samples at random, with at most about _MAX_TOKENS tokens each.

    A fifth of the draw is held out; where that are fewer than _LEAST_HELD_OUT of a dataset, more of it are.
    """
    live = np.concatenate([np.empty(0, np.int64), *of_dataset.values()])
    if len(live) < MIN_SAMPLES:
        raise UsageError(
            f"a refit needs at least {MIN_SAMPLES} samples that are not deleted, the space has {len(live)}"
        )
    per_sample = sum(segment.num_tokens for segment in segments) / sum(segment.num_samples for segment in segments)
    most = min(_MAX_SAMPLES, max(MIN_SAMPLES, int(_MAX_TOKENS / max(per_sample, 1.0))))
    generator = np.random.default_rng(seed)
    drawn = generator.permutation(np.sort(live))[:most]
    held_out = drawn[::_HELD_OUT]
    least = max(1, min(_LEAST_HELD_OUT, most // len(of_dataset)))
    for ids in of_dataset.values():
        num_missing = min(least, max(len(ids) // 3, int(len(ids) > 1))) - int(np.isin(held_out, ids).sum())
        if num_missing > 0:
            others = generator.permutation(np.setdiff1d(ids, held_out))
            is_drawn = np.isin(others, drawn)  # these would be missed in the fit
            held_out = np.concatenate([held_out, others[np.argsort(is_drawn, kind="stable")][:num_missing]])
    return np.setdiff1d(drawn, held_out), np.sort(held_out)


def _parts(segments: Iterable[Segment], ids: np.ndarray) -> list[StoredPart]:
    """These samples, ids ascending, as they are stored: one part a segment."""
    found = []
    for segment in segments:
        rows = np.flatnonzero(np.isin(segment.ids, ids, assume_unique=True))
        if len(rows):
            found.append(_part(segment, rows))
    return found


def _part(segment: Segment, rows: np.ndarray) -> StoredPart:
    factors = gather_factors([(segment, row) for row in rows.tolist()])
    return StoredPart(segment.sketch_rows(rows), segment.norms[rows], factors, segment.num_tokens_of[rows])


def _captured(sketches: np.ndarray, norms: np.ndarray) -> np.ndarray:
    energies = np.square(sketches, dtype=np.float64).sum(1)
    return np.minimum(1.0, energies / np.maximum(norms.astype(np.float64) ** 2, 1e-30))


def _assess(
    of_dataset: dict[str, np.ndarray], found: Refit, segments: list[Segment], held_out: np.ndarray
) -> dict[str, Any]:
    """Mean captured energy of held-out samples under both projections, by dataset and overall.

    Overall, a dataset weighs as many samples as it has, not as many as were held out of it.
    """
    parts = _parts(segments, held_out)
    before = np.concatenate([_captured(part.sketches, part.norms) for part in parts])
    after = np.concatenate([_captured(found.sketches(part), part.norms) for part in parts])
    rows, sizes = [], []
    for name, ids in sorted(of_dataset.items()):
        if not (is_of := np.isin(held_out, ids)).any():
            continue  # of one sample, that was not drawn
        means = {"before": float(before[is_of].mean()), "after": float(after[is_of].mean())}
        is_worse = means["after"] < means["before"] - MAX_LOSS
        rows.append({"dataset": name, "held_out": int(is_of.sum()), **means, "is_worse": is_worse})
        sizes.append(len(ids))
    overall = {side: float(np.average([row[side] for row in rows], weights=sizes)) for side in ("before", "after")}
    return {"captured": overall, "datasets": rows}


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
