"""How far the sources of a dataset were read, as the store remembers it."""

from datetime import UTC, datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from curator.metadata.tables import Bookmark as BookmarkRow
from curator.types import Bookmark, Mark

__all__ = ["bookmarks_of", "drop_bookmarks", "write_bookmarks"]


def bookmarks_of(session: Session, space_id: int, dataset_id: int, reading: str) -> dict[str, Bookmark]:
    """By source what was read in the same way: with the same columns in the same roles."""
    query = sa.select(BookmarkRow).where(
        BookmarkRow.space_id == space_id, BookmarkRow.dataset_id == dataset_id, BookmarkRow.reading == reading
    )
    return {
        row.source: Bookmark(Mark(row.row, row.num_bytes, row.digest, row.whole), row.stamp, row.size)
        for row in session.scalars(query)
    }


def write_bookmarks(
    session: Session, space_id: int, dataset_id: int, reading: str, found: dict[str, Bookmark]
) -> None:  # fmt: skip
    """Puts each source's bookmark in the place of the one before; the caller commits."""
    of_dataset = (BookmarkRow.space_id == space_id, BookmarkRow.dataset_id == dataset_id)
    for source, bookmark in found.items():
        values: dict[str, Any] = {
            "reading": reading,
            "row": bookmark.mark.row,
            "num_bytes": bookmark.mark.offset,
            "digest": bookmark.mark.digest,
            "whole": bookmark.mark.whole,
            "stamp": bookmark.stamp,
            "size": bookmark.size,
            "created_at": datetime.now(UTC),
        }
        known = session.scalars(sa.select(BookmarkRow).where(*of_dataset, BookmarkRow.source == source)).first()
        if known is None:
            session.add(BookmarkRow(space_id=space_id, dataset_id=dataset_id, source=source, **values))
        else:
            for name, value in values.items():
                setattr(known, name, value)


def drop_bookmarks(session: Session, dataset_ids: sa.Select[int]) -> None:
    """Has the sources of datasets read from their start again: they hold samples that the store has forgotten."""
    session.execute(
        sa.delete(BookmarkRow)
        .where(BookmarkRow.dataset_id.in_(dataset_ids))
        .execution_options(synchronize_session=False)
    )
