"""Undo: each kind of change has its opposite."""

from collections.abc import Callable
from typing import Any

from sqlalchemy.orm import Session

from curator.metadata.changes import described, to_undo, undone
from curator.metadata.deletes import undo_delete, undo_restore
from curator.metadata.replacements import undo_replace
from curator.metadata.tables import Change
from curator.metadata.tags import undo_note, undo_tag, undo_untag

__all__ = ["undo"]

_OPPOSITES: dict[str, Callable[[Session, Change], dict[str, int]]] = {
    "tag": undo_tag,
    "untag": undo_untag,
    "note": undo_note,
    "delete": undo_delete,
    "restore": undo_restore,
    "replace": undo_replace,
}


def undo(session: Session, number: int | None = None) -> dict[str, Any]:
    """Takes back the newest change, or the one of this number: the change as it is listed, with "done", the counts.

    Raises as `changes.to_undo` does.
    """
    change = to_undo(session, number)
    done = _OPPOSITES[change.kind](session, change)
    undone(session, change)
    return {**described(session, change), "done": done}
