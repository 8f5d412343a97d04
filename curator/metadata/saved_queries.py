"""Queries under a name, as each space sees them, and the history of their answers."""

import difflib
from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from curator.errors import NotFoundError
from curator.metadata.tables import SavedQuery, SavedRepresentation, SavedTop

__all__ = [
    "delete_query",
    "find_query",
    "history_of_tops",
    "query_files",
    "query_named",
    "representation_of",
    "saved_queries",
    "spaces_of_query",
    "tops_of",
]


def saved_queries(session: Session) -> Sequence[SavedQuery]:
    """All of them, by name."""
    return session.scalars(sa.select(SavedQuery).order_by(SavedQuery.name)).all()


def query_named(session: Session, name: str) -> SavedQuery | None:
    """The saved query of a name, or None."""
    return session.scalars(sa.select(SavedQuery).where(SavedQuery.name == name)).first()


def find_query(session: Session, name: str) -> SavedQuery:
    """The saved query of a name. Raises NotFoundError that names those there are."""
    found = query_named(session, name)
    if found is None:
        names = list(session.scalars(sa.select(SavedQuery.name).order_by(SavedQuery.name)))
        close = difflib.get_close_matches(name, names, n=1)
        hint = f"did you mean {close[0]}? " if close else ""
        known = ", ".join(names[:20]) or "none yet: curator queries save NAME --data FILE makes one"
        raise NotFoundError(f"no saved query named {name!r}; {hint}saved: {known}")
    return found


def representation_of(session: Session, query: SavedQuery, space: str) -> SavedRepresentation | None:
    """The query as the space of this fingerprint sees it, where that is stored."""
    return session.scalars(
        sa.select(SavedRepresentation).where(
            SavedRepresentation.query_id == query.id, SavedRepresentation.space == space
        )
    ).first()


def query_files(session: Session) -> set[str]:
    """The names of all files in queries/ that the store knows of."""
    return set(session.scalars(sa.select(SavedRepresentation.file)))


def tops_of(session: Session, query: SavedQuery) -> Sequence[SavedTop]:
    """The history of a query's answers, oldest first."""
    return session.scalars(sa.select(SavedTop).where(SavedTop.query_id == query.id).order_by(SavedTop.id)).all()


def spaces_of_query(session: Session, query: SavedQuery) -> list[str]:
    """The fingerprints of the spaces in which a query answers without the model."""
    return list(
        session.scalars(
            sa.select(SavedRepresentation.space)
            .where(SavedRepresentation.query_id == query.id)
            .order_by(SavedRepresentation.id)
        )
    )


def history_of_tops(tops: Iterable[SavedTop]) -> list[dict[str, Any]]:
    """Each entry of a history with what entered and left its ends since the one before of the same space."""
    before: dict[str, SavedTop] = {}
    entries = []
    for top in tops:
        entry: dict[str, Any] = {
            "created_at": top.created_at.isoformat(),
            "space": top.space,
            "num_samples": top.num_samples,
            "helpful": top.helpful,
            "harmful": top.harmful,
        }
        if (former := before.get(top.space)) is not None:
            entry["entered"] = _keys_beyond(top, former)
            entry["left"] = _keys_beyond(former, top)
        before[top.space] = top
        entries.append(entry)
    return entries


def _keys_beyond(one: SavedTop, other: SavedTop) -> dict[str, list[str]]:
    """By end: the keys of the samples in the one and not in the other, in the one's order."""
    ends = {"helpful": (one.helpful, other.helpful), "harmful": (one.harmful, other.harmful)}
    return {
        end: [item["key"] for item in mine if item["id"] not in {item["id"] for item in theirs}]
        for end, (mine, theirs) in ends.items()
    }


def delete_query(session: Session, query: SavedQuery) -> None:
    """Forgets a query with its history; the next sweep removes its files."""
    for table in (SavedRepresentation, SavedTop):
        session.execute(sa.delete(table).where(table.query_id == query.id))
    session.delete(query)
    session.flush()
