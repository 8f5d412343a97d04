"""One source becomes rows, whatever its format."""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from curator.sources.arrow import read_arrow
from curator.sources.bookmark import ChangedSourceError, Reached
from curator.sources.csv_records import read_csv
from curator.sources.json_lines import read_json_lines
from curator.sources.parquet import read_parquet
from curator.sources.source import Source, local_source
from curator.types import BadRow, Mark, Row

__all__ = ["read_rows"]

_READERS = {"json": read_json_lines, "csv": read_csv, "parquet": read_parquet, "arrow": read_arrow}
_START = Mark()


_COLUMNAR = ("parquet", "arrow")  # formats whose values can be bytes


def read_rows(
    source: Source | Path,
    raw: frozenset[str] = frozenset(),
    *,
    start: Mark = _START,
    reached: Reached = lambda mark: None,
    is_growing: bool = False,
) -> Iterator[Row | BadRow]:
    """The rows of one source in order, in memory that does not grow with it.

    `source` of a row is the location. `row` counts from 0: lines of a JSON lines file (blank ones are skipped, but
    numbered), records after the header of a CSV file, rows of a Parquet or Arrow file. Values are plain JSON values
    without NaN, but that columns named in `raw` keep their bytes. A row that cannot be read is a BadRow, and the rest
    of the file goes on.

    Reading begins at `start`, or at the first row where what lies before `start` has changed; `reached` is told where
    it began, how far it has come every few rows, and the end. `is_growing` leaves a last line without its end unread.

    Raises UsageError for an unknown suffix, for a header that is not usable, and, after the rows that could be read,
    for a damaged or truncated file; NotFoundError for a missing one.
    """
    known = local_source(source) if isinstance(source, Path) else source
    return _read(known, raw, start, reached, is_growing)


def _read(
    source: Source, raw: frozenset[str], start: Mark, reached: Reached, is_growing: bool
) -> Iterator[Row | BadRow]:
    read: Callable[..., Iterator[Row | BadRow]] = _READERS[source.format.name]
    if source.format.name in _COLUMNAR:
        read = partial(read, raw=raw)
    try:
        yield from read(source, start, reached, is_growing)
    except ChangedSourceError:
        yield from read(source, _START, reached, is_growing)
