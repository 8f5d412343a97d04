"""Captured energy over time: whether a space's projection still sees what comes in, and whether a refit is worth it.

The rule: a refit is worth it where the newest samples of a dataset are captured MIN_DROP or more below the reference,
and these samples, counted back to where that began, are at least MIN_AFFECTED and MIN_SHARE of the space. The
reference of a dataset is what the last refit reached on it (on the whole space, for a dataset that came later); before
the first refit it is what the space's oldest samples reach, since calibration drew from these. Figures behind the
numbers: scripts/results/refit.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from curator.metadata.tables import Dataset, Sample, Segment, Space

__all__ = ["captured_now", "history_of", "refit_advice"]

MIN_DROP, MIN_AFFECTED, MIN_SHARE = 0.05, 50, 0.02
_PARTS = 10
_OLDEST = 256  # at least so many samples make the reference, as many as the smallest calibration


@dataclass(frozen=True)
class _Part:
    """Samples of one segment, or of several that came one after the other."""

    first: int  # id of the segment's first sample: what orders parts, since compacting renews dates
    since: datetime
    samples: int
    captured: float

    def joined(self, other: "_Part") -> "_Part":
        samples = self.samples + other.samples
        captured = (self.captured * self.samples + other.captured * other.samples) / samples
        return _Part(self.first, self.since, samples, captured)


def captured_now(session: Session, space: Space) -> dict[str, Any]:
    """{"overall", "datasets": {name: share}}: mean captured energy of the samples that are not deleted."""
    live = (Sample.space_id == space.id, Sample.deleted_at.is_(None))
    by_dataset = (
        sa.select(Dataset.name, sa.func.avg(Sample.captured))
        .join(Dataset, Sample.dataset_id == Dataset.id)
        .where(*live)
        .group_by(Dataset.name)
    )
    overall = session.scalar(sa.select(sa.func.avg(Sample.captured)).where(*live))
    datasets = {row[0]: row[1] for row in session.execute(by_dataset)}
    return {"overall": overall or 0.0, "datasets": datasets}


def history_of(session: Session, space_id: int) -> dict[str, list[dict[str, Any]]]:
    """For each dataset of a space its samples in up to ten parts, oldest first: since (when they came), samples,
    captured."""
    return {
        name: [
            {"since": part.since.isoformat(), "samples": part.samples, "captured": part.captured}
            for part in _tenths(parts)
        ]
        for name, parts in _by_segment(session, space_id).items()
    }


def refit_advice(session: Session, space: Space) -> dict[str, Any]:
    """{"is_worth_it", "datasets": those that fell: dataset, from, to, since, samples} by the rule above."""
    parts = _by_segment(session, space.id)
    total = sum(part.samples for of_dataset in parts.values() for part in of_dataset)
    fitted = space.projection.get("captured")
    oldest = _oldest(parts) if fitted is None else fitted["overall"]
    fallen = []
    for name, of_dataset in parts.items():
        reference = oldest if fitted is None else fitted["datasets"].get(name, oldest)
        low = _low_at_the_end(_tenths(of_dataset), reference - MIN_DROP)
        if low is not None and low.samples >= max(MIN_AFFECTED, MIN_SHARE * total):
            fallen.append(
                {
                    "dataset": name,
                    "from": reference,
                    "to": low.captured,
                    "since": low.since.isoformat(),
                    "samples": low.samples,
                }
            )
    return {"is_worth_it": bool(fallen), "datasets": fallen}


def _by_segment(session: Session, space_id: int) -> dict[str, list[_Part]]:
    query = (
        sa.select(
            Dataset.name,
            Segment.first_sample_id,
            Segment.created_at,
            sa.func.count(Sample.id),
            sa.func.avg(Sample.captured),
        )
        .join(Dataset, Sample.dataset_id == Dataset.id)
        .join(Segment, Sample.segment_id == Segment.id)
        .where(Sample.space_id == space_id, Sample.deleted_at.is_(None))
        .group_by(Dataset.name, Segment.id, Segment.created_at, Segment.first_sample_id)
        .order_by(Dataset.name, Segment.first_sample_id)
    )
    found: dict[str, list[_Part]] = {}
    for name, *of_segment in session.execute(query):
        found.setdefault(name, []).append(_Part(*of_segment))
    return found


def _tenths(parts: Sequence[_Part]) -> list[_Part]:
    """Neighbours joined until each holds a tenth of the samples; the newest stays apart where it can."""
    least = sum(part.samples for part in parts) / _PARTS
    joined: list[_Part] = []
    for part in parts:
        if joined and joined[-1].samples < least:
            joined[-1] = joined[-1].joined(part)
        else:
            joined.append(part)
    return joined


def _oldest(parts: dict[str, list[_Part]]) -> float:
    """The captured share of the space's first samples."""
    ordered = sorted((part for of_dataset in parts.values() for part in of_dataset), key=lambda part: part.first)
    joined: _Part | None = None
    for part in ordered:
        joined = part if joined is None else joined.joined(part)
        if joined.samples >= _OLDEST:
            break
    return 0.0 if joined is None else joined.captured


def _low_at_the_end(parts: Sequence[_Part], limit: float) -> _Part | None:
    """The newest parts that are all below the limit, as one; None where the newest is not."""
    low: _Part | None = None
    for part in reversed(parts):
        if part.captured > limit:
            break
        low = part if low is None else part.joined(low)
    return low
