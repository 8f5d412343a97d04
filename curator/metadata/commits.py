"""The one commit point: a segment, its samples, the rows read and the rows refused, in one transaction."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from curator.metadata.row_numbers import RowsRead
from curator.metadata.tables import NEXT_SAMPLE_ID, Counter, Dataset, Extent, Quarantined, Sample, Segment
from curator.types import BadRow

__all__ = ["commit_rows", "commit_segment", "next_sample_id"]


def next_sample_id(session: Session) -> int:
    """The first id that no sample ever had."""
    counter = session.get(Counter, NEXT_SAMPLE_ID)
    return 1 if counter is None else counter.value


def commit_segment(session: Session, read: RowsRead, segment: Segment, samples: Sequence[dict[str, Any]]) -> None:
    """Commits a segment whose files are in place, with its samples; before this the store does not know of it."""
    session.add(segment)
    session.flush()
    session.execute(sa.insert(Sample), [{**sample, "segment_id": segment.id} for sample in samples])
    session.merge(Counter(name=NEXT_SAMPLE_ID, value=samples[-1]["id"] + 1))
    commit_rows(session, read)


def commit_rows(session: Session, read: RowsRead) -> None:
    """Writes row numbers and quarantine: a row that was read again is quarantined only if it is still bad."""
    for extent in read.extents:
        _write_extent(session, read.dataset_id, extent)
    session.execute(sa.update(Dataset).where(Dataset.id == read.dataset_id).values(next_row=read.next_row))
    for source, (first, last) in read.seen.items():
        session.execute(
            sa.delete(Quarantined).where(
                Quarantined.space_id == read.space_id,
                Quarantined.dataset_id == read.dataset_id,
                Quarantined.source == source,
                Quarantined.row.between(first, last),
            )
        )
    if read.bad:
        # Both samples of a preference pair may be refused, and in two commits: one reason is told for the row.
        bad = {(row.source, row.row): _quarantined(read, row) for row in read.bad}
        session.connection().execute(
            sa.delete(Quarantined).where(
                Quarantined.space_id == read.space_id,
                Quarantined.dataset_id == read.dataset_id,
                Quarantined.source == sa.bindparam("of_source"),
                Quarantined.row == sa.bindparam("at_row"),
            ),
            [{"of_source": source, "at_row": row} for source, row in bad],
        )
        session.execute(sa.insert(Quarantined), list(bad.values()))
    if read.updates:
        session.execute(sa.update(Sample), read.updates)
    session.commit()


def _write_extent(session: Session, dataset_id: int, extent: dict[str, Any]) -> None:
    place = (Extent.dataset_id == dataset_id, Extent.source == extent["source"])
    known = session.scalars(sa.select(Extent).where(*place, Extent.source_row == extent["source_row"])).first()
    if known is None:
        session.add(Extent(dataset_id=dataset_id, **extent))
    else:
        known.num_rows = extent["num_rows"]


def _quarantined(read: RowsRead, bad: BadRow) -> dict[str, Any]:
    return {
        "space_id": read.space_id,
        "dataset_id": read.dataset_id,
        "source": bad.source,
        "row": bad.row,
        "reason": bad.reason,
        "excerpt": bad.excerpt,
        "created_at": datetime.now(UTC),
    }
