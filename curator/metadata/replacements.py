"""New versions of samples: the row of a key has another content now, and the new one answers instead of the old one."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from curator.metadata.changes import changed_ids, rows_inserted
from curator.metadata.samples import rows_changed
from curator.metadata.tables import Change, ChangedSample, Note, Sample, SampleTag

__all__ = ["replace_samples", "undo_replace"]

_FEW = 500
_CARRIED = ("tag", "untag", "note")


def replace_samples(
    session: Session, pairs: Sequence[tuple[int | None, int]], detail: dict[str, str], number: int | None
) -> int:  # fmt: skip
    """Puts the new sample of each pair (old, new) in the old one's place, with its tags and notes; the caller commits.

    `old` is None where an older version comes back and nothing has its key. Belongs to the change of this number,
    or to a new one; returns the number.
    """
    change = None if number is None else session.get(Change, number)
    if change is None:
        change = Change(kind="replace", num_samples=0, detail=detail, created_at=datetime.now(UTC))
        session.add(change)
        session.flush()
    change.num_samples += len(pairs)
    session.flush()
    back: list[dict[str, Any]] = [{"id": new, "deleted_at": None, "replaced_by": None} for _, new in pairs]
    now = datetime.now(UTC)
    gone: list[dict[str, Any]] = [
        {"id": old, "deleted_at": now, "replaced_by": new} for old, new in pairs if old is not None
    ]
    session.execute(sa.update(Sample), back + gone)
    ids = [id_ for pair in pairs for id_ in pair if id_ is not None]
    session.execute(sa.insert(ChangedSample), [{"change_id": change.id, "sample_id": id_} for id_ in sorted(ids)])
    for start in range(0, len(gone), _FEW):
        _carry_over(session, [row["id"] for row in gone[start : start + _FEW]])
    return change.id


def _carry_over(session: Session, old_ids: list[int]) -> None:
    """Tags and notes of the old versions become the new ones', and belong to the changes that made them there too."""
    new_ids = sa.select(Sample.replaced_by).where(Sample.id.in_(old_ids))
    for table in (SampleTag, Note):
        rows_changed(session, sa.delete(table).where(table.sample_id.in_(new_ids)))
    is_old = Sample.id.in_(old_ids)
    tags = sa.select(SampleTag.tag_id, Sample.replaced_by).join(Sample, Sample.id == SampleTag.sample_id)
    rows_inserted(session, sa.insert(SampleTag), tags.where(is_old))
    notes = sa.select(Sample.replaced_by, Note.text).join(Sample, Sample.id == Note.sample_id)
    rows_inserted(session, sa.insert(Note), notes.where(is_old))
    other = aliased(ChangedSample)
    is_there = sa.exists().where(other.change_id == ChangedSample.change_id, other.sample_id == Sample.replaced_by)
    changes = (
        sa.select(ChangedSample.change_id, Sample.replaced_by)
        .join(Sample, Sample.id == ChangedSample.sample_id)
        .join(Change, Change.id == ChangedSample.change_id)
        .where(is_old, Change.kind.in_(_CARRIED), Change.undone_at.is_(None), ~is_there)
    )
    rows_inserted(session, sa.insert(ChangedSample), changes)


def undo_replace(session: Session, change: Change) -> dict[str, int]:
    """Brings the old versions back and deletes the new ones, which stay deleted when their rows are read again.

    A version whose bytes were reclaimed by compact cannot come back: then the new one stays.
    """
    columns = (Sample.id, Sample.space_id, Sample.dataset_id, Sample.key, Sample.deleted_at, Sample.segment_id)
    rows = session.execute(sa.select(*columns).where(Sample.id.in_(changed_ids(change)))).all()
    olds = {row[1:4]: row for row in rows if row.deleted_at is not None}
    now, updates, lost = datetime.now(UTC), [], 0
    for new in (row for row in rows if row.deleted_at is None):
        old = olds.get(new[1:4])
        if old is not None and old.segment_id is None:
            lost += 1
            continue
        updates.append({"id": new.id, "deleted_at": now, "replaced_by": None})
        if old is not None:
            updates.append({"id": old.id, "deleted_at": None, "replaced_by": None})
    if updates:
        session.execute(sa.update(Sample), updates)
    restored = sum(update["deleted_at"] is None for update in updates)
    return {"restored": restored, "deleted": len(updates) - restored, "compacted": lost}
