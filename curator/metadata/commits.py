"""The one commit point: a segment, its samples, the rows read and the rows refused, in one transaction."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from curator.metadata.tables import NEXT_SAMPLE_ID, Counter, Dataset, Extent, Quarantined, Sample, Segment
from curator.types import BadRow

__all__ = ["RowNumbers", "commit_rows", "commit_segment", "next_sample_id", "update_sample"]


def next_sample_id(session: Session) -> int:
    """The first id that no sample ever had."""
    counter = session.get(Counter, NEXT_SAMPLE_ID)
    return 1 if counter is None else counter.value


@dataclass
class RowNumbers:
    """Numbers the rows of a dataset across its sources: a row keeps its number however often its file is read.

    Also collects what happened to the rows since the last commit.
    """

    space_id: int
    dataset_id: int
    next_row: int
    extents: dict[str, list[Extent]]
    bad: list[BadRow] = field(default_factory=list)
    seen: dict[str, tuple[int, int]] = field(default_factory=dict)  # source: first and last row read

    @classmethod
    def load(cls, session: Session, space_id: int, dataset: Dataset) -> "RowNumbers":
        """The numbering as it was last committed."""
        numbers = cls(space_id, dataset.id, dataset.next_row, {})
        query = sa.select(Extent).where(Extent.dataset_id == dataset.id).order_by(Extent.first_row)
        for extent in session.scalars(query):
            numbers.extents.setdefault(extent.source, []).append(extent)
        return numbers

    def number(self, source: str, row: int) -> int:
        """The dataset's number of a source's row; rows beyond the known ones are numbered after all others."""
        first, last = self.seen.get(source, (row, row))
        self.seen[source] = (min(first, row), max(last, row))
        extents = self.extents.setdefault(source, [])
        for extent in extents:
            if extent.source_row <= row < extent.source_row + extent.num_rows:
                return extent.first_row + row - extent.source_row
        last_extent = extents[-1] if extents else None
        if last_extent is None or last_extent.first_row + last_extent.num_rows != self.next_row:
            start = 0 if last_extent is None else last_extent.source_row + last_extent.num_rows
            last_extent = Extent(
                dataset_id=self.dataset_id, source=source, source_row=start, first_row=self.next_row, num_rows=0
            )
            extents.append(last_extent)
        last_extent.num_rows = row - last_extent.source_row + 1
        self.next_row = last_extent.first_row + last_extent.num_rows
        return last_extent.first_row + row - last_extent.source_row

    def fresh(self) -> int:
        """A number that no row of any source has."""
        self.next_row += 1
        return self.next_row - 1


def commit_rows(session: Session, numbers: RowNumbers) -> None:
    """Writes row numbers and quarantine: a row that was read again is quarantined only if it is still bad."""
    for source in numbers.seen:
        for position, extent in enumerate(numbers.extents[source]):
            numbers.extents[source][position] = session.merge(extent)
    session.execute(sa.update(Dataset).where(Dataset.id == numbers.dataset_id).values(next_row=numbers.next_row))
    for source, (first, last) in numbers.seen.items():
        session.execute(
            sa.delete(Quarantined).where(
                Quarantined.space_id == numbers.space_id,
                Quarantined.dataset_id == numbers.dataset_id,
                Quarantined.source == source,
                Quarantined.row.between(first, last),
            )
        )
    if numbers.bad:
        session.execute(sa.insert(Quarantined), [_quarantined(numbers, bad) for bad in numbers.bad])
    session.commit()
    numbers.bad.clear()
    numbers.seen.clear()


def _quarantined(numbers: RowNumbers, bad: BadRow) -> dict[str, Any]:
    return {
        "space_id": numbers.space_id,
        "dataset_id": numbers.dataset_id,
        "source": bad.source,
        "row": bad.row,
        "reason": bad.reason,
        "excerpt": bad.excerpt,
        "created_at": datetime.now(UTC),
    }


def commit_segment(session: Session, numbers: RowNumbers, segment: Segment, samples: Sequence[dict[str, Any]]) -> None:
    """Commits a segment whose files are in place, with its samples; before this the store does not know of it."""
    session.add(segment)
    session.flush()
    session.execute(sa.insert(Sample), [{**sample, "segment_id": segment.id} for sample in samples])
    session.merge(Counter(name=NEXT_SAMPLE_ID, value=samples[-1]["id"] + 1))
    commit_rows(session, numbers)


def update_sample(session: Session, sample_id: int, label: str | None, meta: dict[str, Any]) -> None:
    """New label and metadata of a sample whose text stayed the same; committed with the next rows."""
    session.execute(sa.update(Sample).where(Sample.id == sample_id).values(label=label, meta=meta))
