"""Tags and notes of samples: words that a filter finds again, and what a person wrote about one."""

import difflib
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from curator.errors import NotFoundError, UsageError
from curator.metadata.changes import changed_ids, record, rows_inserted
from curator.metadata.samples import Chosen, rows_changed
from curator.metadata.tables import Change, ChangedSample, Dataset, Note, Sample, SampleTag, Tag

__all__ = ["notes_of", "set_note", "tag_samples", "tags_of", "undo_note", "undo_tag", "undo_untag", "untag_samples"]

MAX_NAME = 200
MAX_NOTE = 10_000


def tags_of(session: Session) -> list[dict[str, Any]]:
    """{"tag", "samples"} of every tag that a live sample bears, by name."""
    query = (
        sa.select(Tag.name, sa.func.count())
        .join(SampleTag, SampleTag.tag_id == Tag.id)
        .join(Sample, SampleTag.sample_id == Sample.id)
        .where(Sample.deleted_at.is_(None))
        .group_by(Tag.name)
        .order_by(Tag.name)
    )
    return [{"tag": name, "samples": count} for name, count in session.execute(query)]


def tag_samples(session: Session, name: str, conditions: Chosen, detail: dict[str, Any]) -> Change | None:
    """Gives the chosen samples a tag; None where all of them bear it already. Raises UsageError for no usable name."""
    if not name.strip() or name != name.strip() or not name.isprintable() or len(name) > MAX_NAME:
        raise UsageError(f"a tag is up to {MAX_NAME} printable characters without space around them; got {name[:60]!r}")
    tag = session.scalars(sa.select(Tag).where(Tag.name == name)).first()
    if is_new := tag is None:
        tag = Tag(name=name)
        session.add(tag)
        session.flush()
    state = Sample.deleted_at.is_(None) & Sample.id.not_in(_bearers(tag))
    change = record(session, "tag", conditions, state, tag=tag, detail=detail)
    if change is not None:
        bearers = sa.select(sa.literal(tag.id), ChangedSample.sample_id).where(ChangedSample.change_id == change.id)
        rows_inserted(session, sa.insert(SampleTag), bearers)
    elif is_new:
        session.delete(tag)
        session.flush()
    return change


def untag_samples(session: Session, name: str, conditions: Chosen, detail: dict[str, Any]) -> Change | None:
    """Takes a tag from the chosen samples; None where none bears it. Raises NotFoundError for a tag that is none."""
    tag = session.scalars(sa.select(Tag).where(Tag.name == name)).first()
    if tag is None:
        names = list(session.scalars(sa.select(Tag.name)))
        close = difflib.get_close_matches(name, names, n=1)
        raise NotFoundError(f"no tag {name!r}" + (f"; did you mean {close[0]!r}?" if close else ""))
    state = Sample.deleted_at.is_(None) & Sample.id.in_(_bearers(tag))
    change = record(session, "untag", conditions, state, tag=tag, detail=detail)
    if change is not None:
        _take(session, change)
    return change


def _bearers(tag: Tag) -> sa.Select[int]:
    return sa.select(SampleTag.sample_id).where(SampleTag.tag_id == tag.id)


def _take(session: Session, change: Change) -> int:
    of_change = (SampleTag.tag_id == change.tag_id, SampleTag.sample_id.in_(changed_ids(change)))
    return rows_changed(session, sa.delete(SampleTag).where(*of_change))


def undo_tag(session: Session, change: Change) -> dict[str, int]:
    """Takes the tag from what the change gave it to."""
    return {"untagged": _take(session, change)}


def undo_untag(session: Session, change: Change) -> dict[str, int]:
    """Gives the tag back, but for samples that the store has forgotten since."""
    known = sa.select(sa.literal(change.tag_id), Sample.id).where(Sample.id.in_(changed_ids(change)))
    return {"tagged": rows_inserted(session, sa.insert(SampleTag), known)}


def set_note(session: Session, sample_id: int, text: str) -> Change | None:
    """Writes a sample's note, or removes it where the text is empty; None where that changes nothing."""
    if len(text) > MAX_NOTE or "\0" in text:
        raise UsageError(f"a note is up to {MAX_NOTE:,} characters, got {len(text):,}, none of them NUL")
    before = session.scalar(sa.select(Note.text).where(Note.sample_id == sample_id))
    after = text.strip() or None
    if before == after:
        return None
    change = record(
        session, "note", [Sample.id == sample_id], sa.true(), detail={"before": before, "after": after}
    )  # fmt: skip
    _write_note(session, sample_id, after)
    return change


def undo_note(session: Session, change: Change) -> dict[str, int]:
    """Writes what the note was before."""
    known = session.scalars(sa.select(Sample.id).where(Sample.id.in_(changed_ids(change)))).all()
    for sample_id in known:
        _write_note(session, sample_id, change.detail["before"])
    return {"noted": len(known)}


def _write_note(session: Session, sample_id: int, text: str | None) -> None:
    session.execute(sa.delete(Note).where(Note.sample_id == sample_id))
    if text is not None:
        session.execute(sa.insert(Note).values(sample_id=sample_id, text=text))


def notes_of(session: Session, conditions: Chosen) -> list[dict[str, Any]]:
    """{"id", "key", "dataset", "note"} of the chosen samples that are not deleted and have one, by id."""
    query = (
        sa.select(Sample.id, Sample.key, Dataset.name, Note.text)
        .join(Dataset, Sample.dataset_id == Dataset.id)
        .join(Note, Note.sample_id == Sample.id)
        .where(Sample.deleted_at.is_(None))
        .order_by(Sample.id)
    )
    return [
        {"id": id_, "key": key, "dataset": dataset, "note": text}
        for condition in conditions
        for id_, key, dataset, text in session.execute(query.where(condition))
    ]
