"""Numbers the rows of a dataset across its sources, and gathers what a commit has to remember of the rows read."""

from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Session

from curator.metadata.tables import Dataset, Extent
from curator.types import BadRow, Bookmark

__all__ = ["ReplaceChange", "RowNumbers", "RowsRead"]


@dataclass(slots=True)
class _Extent:
    """Rows [source_row, source_row + num_rows) of a source are rows [first_row, ...) of the dataset."""

    source_row: int
    first_row: int
    num_rows: int


@dataclass
class ReplaceChange:
    """The number of the change that all replacements of an ingest belong to, once there is one."""

    number: int | None = None


@dataclass(frozen=True)
class RowsRead:
    """What one commit writes of the rows that were read since the one before."""

    space_id: int
    dataset_id: int
    next_row: int
    extents: list[dict[str, Any]]  # source, source_row, first_row, num_rows of those that are new or longer
    seen: dict[str, tuple[int, int]]  # source: first and last row read
    bad: list[BadRow]
    updates: list[dict[str, Any]]  # id, label, meta of samples whose text stayed the same
    dataset: str
    reading: str  # hash of what decides which samples rows become
    change: ReplaceChange
    replaced: list[tuple[int | None, int]] = field(default_factory=list)  # ids of the old and the new version of a key
    forgotten: list[int] = field(default_factory=list)  # compacted samples that a new one of their content replaces
    bookmarks: dict[str, Bookmark] = field(default_factory=dict)


@dataclass
class RowNumbers:
    """A row keeps its number however often its file is read; rows of new or grown files come after all others."""

    space_id: int
    dataset_id: int
    next_row: int
    dataset: str
    reading: str = ""
    bad: list[BadRow] = field(default_factory=list)
    updates: list[dict[str, Any]] = field(default_factory=list)
    replaced: list[tuple[int | None, int]] = field(default_factory=list)
    change: ReplaceChange = field(default_factory=ReplaceChange)
    _extents: dict[str, list[_Extent]] = field(default_factory=dict)
    _changed: dict[tuple[str, int], _Extent] = field(default_factory=dict)
    _seen: dict[str, tuple[int, int]] = field(default_factory=dict)

    @classmethod
    def load(cls, session: Session, space_id: int, dataset: Dataset, reading: str = "") -> "RowNumbers":
        """The numbering as it was last committed."""
        numbers = cls(space_id, dataset.id, dataset.next_row, dataset.name, reading)
        query = sa.select(Extent).where(Extent.dataset_id == dataset.id).order_by(Extent.first_row)
        for row in session.scalars(query):
            known = _Extent(row.source_row, row.first_row, row.num_rows)
            numbers._extents.setdefault(row.source, []).append(known)
        return numbers

    def number(self, source: str, row: int) -> int:
        """The dataset's number of a source's row; rows beyond the known ones are numbered after all others."""
        first, last = self._seen.get(source, (row, row))
        self._seen[source] = (min(first, row), max(last, row))
        extents = self._extents.setdefault(source, [])
        for extent in extents:
            if extent.source_row <= row < extent.source_row + extent.num_rows:
                return extent.first_row + row - extent.source_row
        extent = self._open_extent(extents)
        self._changed[source, extent.source_row] = extent
        extent.num_rows = row - extent.source_row + 1
        self.next_row = extent.first_row + extent.num_rows
        return extent.first_row + row - extent.source_row

    def _open_extent(self, extents: list[_Extent]) -> _Extent:
        """The source's last extent where nothing was numbered after it, else a new one."""
        last = extents[-1] if extents else None
        if last is not None and last.first_row + last.num_rows == self.next_row:
            return last
        start = 0 if last is None else last.source_row + last.num_rows
        extents.append(_Extent(start, self.next_row, 0))
        return extents[-1]

    def fresh(self) -> int:
        """A number that no row of any source has."""
        self.next_row += 1
        return self.next_row - 1

    def before(self, starts: dict[str, int]) -> list[tuple[int, int]]:
        """The numbers of the rows of each source that lie before the given one: half-open intervals."""
        return [
            (extent.first_row, extent.first_row + min(extent.num_rows, start - extent.source_row))
            for source, start in starts.items()
            for extent in self._extents.get(source, [])
            if extent.source_row < start
        ]

    def take(self, bookmarks: dict[str, Bookmark] | None = None) -> RowsRead:
        """What was read since the last call, for the next commit; this object forgets it and can be read on with."""
        extents = [
            {"source": source, "source_row": start, "first_row": extent.first_row, "num_rows": extent.num_rows}
            for (source, start), extent in self._changed.items()
        ]
        read = RowsRead(
            self.space_id,
            self.dataset_id,
            self.next_row,
            extents,
            self._seen,
            self.bad,
            self.updates,
            self.dataset,
            self.reading,
            self.change,
            self.replaced,
            bookmarks=bookmarks or {},
        )
        self._changed, self._seen, self.bad, self.updates, self.replaced = {}, {}, [], [], []
        return read
