"""Deleting and restoring samples, both as changes that can be undone."""

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from curator.metadata.bookmarks import drop_bookmarks
from curator.metadata.changes import changed_ids, record
from curator.metadata.samples import Chosen, rows_changed
from curator.metadata.tables import Change, Dataset, Note, Sample, SampleTag

__all__ = ["delete_samples", "restore_samples", "undo_delete", "undo_restore"]

_IS_DELETED = Sample.deleted_at.is_not(None) & Sample.replaced_by.is_(None)  # by the user, not for a newer version


def delete_samples(session: Session, conditions: Chosen, detail: dict[str, Any]) -> int:
    """Marks the chosen samples as deleted, in every space; returns how many."""
    change = record(session, "delete", conditions, Sample.deleted_at.is_(None), detail=detail)
    return 0 if change is None else _mark(session, Sample.id.in_(changed_ids(change)), datetime.now(UTC))


def restore_samples(session: Session, conditions: Chosen, detail: dict[str, Any]) -> dict[str, int]:
    """Takes back deletes: {"restored", "to_ingest_again", "key_taken"}.

    Compacted samples are forgotten, so that the next ingest of their source adds them. A sample whose key another one
    bears by now stays deleted.
    """
    left = _left_out(session, conditions)
    change = record(session, "restore", conditions, _IS_DELETED & ~_is_taken(), detail=detail | left)
    restored = 0 if change is None else _mark(session, Sample.id.in_(changed_ids(change)), None)
    return {"restored": restored, **left}


def undo_delete(session: Session, change: Change) -> dict[str, int]:
    """Restores what a change deleted, as `restore_samples` does."""
    were = Sample.id.in_(changed_ids(change))
    left = _left_out(session, [were])
    return {"restored": _mark(session, were & _IS_DELETED & ~_is_taken(), None), **left}


def undo_restore(session: Session, change: Change) -> dict[str, int]:
    """Deletes what a change restored."""
    live = Sample.id.in_(changed_ids(change)) & Sample.deleted_at.is_(None)
    return {"deleted": _mark(session, live, datetime.now(UTC))}


def _is_taken() -> sa.ColumnElement[bool]:
    """Whether a live sample of the same dataset and space bears this one's key."""
    other = aliased(Sample)
    return (
        sa.exists()
        .where(other.space_id == Sample.space_id, other.dataset_id == Sample.dataset_id, other.key == Sample.key)
        .where(other.deleted_at.is_(None))
        .correlate(Sample)
    )


def _left_out(session: Session, conditions: Chosen) -> dict[str, int]:
    """Forgets the chosen samples that were compacted away, and counts those whose key is taken."""
    forgotten = taken = 0
    for condition in conditions:
        of_chosen = sa.select(Sample.id).join(Dataset).where(condition, _IS_DELETED)
        gone = of_chosen.where(Sample.segment_id.is_(None))
        drop_bookmarks(session, gone.with_only_columns(Sample.dataset_id))
        for table in (SampleTag, Note):
            rows_changed(session, sa.delete(table).where(table.sample_id.in_(gone)))
        forgotten += rows_changed(session, sa.delete(Sample).where(Sample.id.in_(gone)))
        taken += session.scalar(sa.select(sa.func.count()).select_from(of_chosen.where(_is_taken()).subquery())) or 0
    return {"to_ingest_again": forgotten, "key_taken": taken}


def _mark(session: Session, condition: sa.ColumnElement[bool], deleted_at: datetime | None) -> int:
    return rows_changed(session, sa.update(Sample).where(condition).values(deleted_at=deleted_at))
