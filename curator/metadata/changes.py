"""The log of changes: what was done to which samples, in numbered changes that can be undone.

A change records only the samples whose state it really changed. Those of one kind of state (one tag, the note, being
deleted) lie on each other like plates: a change is undone once no newer one has touched the same state of the same
samples, and then its opposite brings back exactly the state before it.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session, aliased

from curator.errors import NotFoundError, UsageError
from curator.metadata.samples import Chosen
from curator.metadata.tables import Change, ChangedSample, Dataset, Sample, Tag

__all__ = ["changed_ids", "changes_of", "described", "record", "rows_inserted", "to_undo", "undone"]

_SUBJECTS = {"tag": ("tag", "untag"), "untag": ("tag", "untag"), "note": ("note",)}
_OF_DELETES = ("delete", "restore", "replace")


def record(
    session: Session,
    kind: str,
    conditions: Chosen,
    state: sa.ColumnElement[bool],
    *,
    tag: Tag | None = None,
    detail: dict[str, Any],
) -> Change | None:
    """Opens a change with the chosen samples in a state; None where there are none. The caller then changes them."""
    tag_id = None if tag is None else tag.id
    change = Change(kind=kind, tag_id=tag_id, num_samples=0, detail=detail, created_at=datetime.now(UTC))
    session.add(change)
    session.flush()
    columns = sa.select(sa.literal(change.id, sa.BigInteger()), Sample.id).join(Dataset)
    for condition in conditions:
        found = columns.where(state, condition).order_by(Sample.id)  # in the order of the key they are stored by
        change.num_samples += rows_inserted(session, sa.insert(ChangedSample), found)
    if change.num_samples:
        session.flush()
        return change
    session.delete(change)
    session.flush()
    return None


def rows_inserted(session: Session, into: sa.Insert, rows: sa.SelectBase) -> int:
    """INSERT ... SELECT, whose rows never leave the database; returns their number."""
    columns = [column.name for column in into.table.columns]
    result = session.execute(into.from_select(columns, rows), execution_options={"preserve_rowcount": True})
    assert isinstance(result, sa.CursorResult)
    return result.rowcount


def changed_ids(change: Change) -> sa.Select[int]:
    """The ids of the samples that a change changed, for use inside of a statement."""
    return sa.select(ChangedSample.sample_id).where(ChangedSample.change_id == change.id)


def changes_of(session: Session, limit: int | None = None) -> list[dict[str, Any]]:
    """The newest changes, newest first."""
    query = sa.select(Change, Tag.name).outerjoin(Tag, Change.tag_id == Tag.id).order_by(Change.id.desc())
    return [_plain(change, tag) for change, tag in session.execute(query.limit(limit))]


def described(session: Session, change: Change) -> dict[str, Any]:
    """A change as `changes_of` lists it."""
    tag = None if change.tag_id is None else session.get_one(Tag, change.tag_id).name
    return _plain(change, tag)


def _plain(change: Change, tag: str | None) -> dict[str, Any]:
    return {
        "change": change.id,
        "kind": change.kind,
        "tag": tag,
        "samples": change.num_samples,
        "detail": change.detail,
        "created_at": change.created_at.isoformat(),
        "undone_at": None if change.undone_at is None else change.undone_at.isoformat(),
    }


def to_undo(session: Session, number: int | None) -> Change:
    """The change of a number, or the newest that is not undone.

    Raises NotFoundError for no such change, and UsageError for one that is undone already, or that newer changes of
    the same state of the same samples lie on.
    """
    if number is None:
        newest = sa.select(Change).where(Change.undone_at.is_(None)).order_by(Change.id.desc()).limit(1)
        change = session.scalars(newest).first()
        if change is None:
            raise NotFoundError("there is no change to undo; curator changes lists what was done")
        return change
    change = session.get(Change, number)
    if change is None:
        last = session.scalar(sa.select(sa.func.max(Change.id)))
        raise NotFoundError(f"no change {number}: " + (f"the newest is {last}" if last else "nothing was changed yet"))
    if change.undone_at is not None:
        raise UsageError(f"change {number} is undone already, since {change.undone_at.isoformat()[:19]}")
    above = _lying_on(session, change)
    if above is not None:
        raise UsageError(
            f"change {above.id} ({above.kind}) has changed some of the same samples since: undo that one first, "
            f"with --change {above.id}"
        )
    return change


def _lying_on(session: Session, change: Change) -> Change | None:
    """The newest change on top of this one."""
    other = aliased(ChangedSample)
    shared = (
        sa.exists()
        .where(ChangedSample.change_id == change.id, other.change_id == Change.id)
        .where(ChangedSample.sample_id == other.sample_id)
    )
    same_tag = Change.tag_id.is_(None) if change.tag_id is None else Change.tag_id == change.tag_id
    kinds: Sequence[str] = _SUBJECTS.get(change.kind, _OF_DELETES)
    newer = (Change.id > change.id, Change.undone_at.is_(None), Change.kind.in_(kinds), same_tag)
    return session.scalars(sa.select(Change).where(*newer, shared).order_by(Change.id.desc()).limit(1)).first()


def undone(session: Session, change: Change) -> None:
    """Marks a change as undone; which samples it changed is needed no more."""
    change.undone_at = datetime.now(UTC)
    session.execute(sa.delete(ChangedSample).where(ChangedSample.change_id == change.id))
    session.flush()
