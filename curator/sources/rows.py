"""One file becomes rows, whatever its format."""

import os
from collections.abc import Iterator
from pathlib import Path

from curator.errors import UsageError
from curator.sources.csv_records import read_csv
from curator.sources.json_lines import read_json_lines
from curator.sources.parquet import read_parquet
from curator.sources.paths import SUFFIXES, data_format
from curator.types import BadRow, Row

__all__ = ["read_rows"]


def read_rows(path: Path, raw: frozenset[str] = frozenset()) -> Iterator[Row | BadRow]:
    """The rows of one data file in order, in memory that does not grow with the file.

    `source` is the absolute path. `row` counts from 0: lines of a JSON lines file (blank ones are skipped, but
    numbered), records after the header of a CSV file, rows of a Parquet file. Values are plain JSON values without
    NaN, but that columns named in `raw` keep their bytes. A row that cannot be read is a BadRow, and the rest of the
    file goes on.

    Raises UsageError for an unknown suffix, for a header that is not usable, and, after the rows that could be read,
    for a damaged or truncated file; NotFoundError for a missing one.
    """
    path = Path(os.path.abspath(path))
    kind = data_format(path)
    if kind is None:
        raise UsageError(f"{path} has a suffix that is not read: expected one of {SUFFIXES}")
    if kind.name == "parquet":
        return read_parquet(path, path.as_posix(), raw)
    if kind.name == "csv":
        return read_csv(path, kind, path.as_posix())
    return read_json_lines(path, kind, path.as_posix())
