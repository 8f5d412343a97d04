"""Parquet: record batches of a few rows, every value as plain JSON; row groups that are known are not read."""

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from curator.sources.bookmark import Reached, digest_of, is_due
from curator.sources.excerpt import excerpt_of
from curator.sources.header import check_header
from curator.sources.plain import plain
from curator.sources.source import Source
from curator.sources.streams import damage_as_usage_error
from curator.types import BadRow, Mark, Row

__all__ = ["batch_rows", "read_parquet"]

_BATCH_ROWS = 64  # few, since one row may hold an image
_BUFFER_BYTES = 1 << 20


def read_parquet(
    source: Source, start: Mark, reached: Reached, is_growing: bool, raw: frozenset[str] = frozenset()
) -> Iterator[Row | BadRow]:
    """The rows of the file, numbered over all row groups; those before `start` lie in groups that are not read. The
    columns `raw` keep their bytes.

    Raises UsageError for two columns of one name, and, after the rows before it, for a damaged page.
    """
    # With a buffer size, column chunks are streamed; without it, whole row groups are held.
    with (
        damage_as_usage_error(source),
        source.file.open() as data,
        pq.ParquetFile(data, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file,
    ):
        check_header(source.location, file.schema_arrow.names)
        groups, number = _groups_from(file.metadata, start.row)
        reached(start)
        mark = start
        for batch in file.iter_batches(batch_size=_BATCH_ROWS, row_groups=groups):
            new = batch.slice(max(0, start.row - number))
            yield from batch_rows(new, source.location, number + batch.num_rows - new.num_rows, raw)
            number += batch.num_rows
            if is_due(number, 0, mark):
                mark = Mark(number)
                reached(mark)
    reached(Mark(number, whole=digest_of(source) if source.is_local else b""))


def _groups_from(metadata: pq.FileMetaData, row: int) -> tuple[list[int], int]:
    """The row groups that hold `row` and what comes after it, and the number of the first row in them."""
    first, number = 0, 0
    while first < metadata.num_row_groups and number + metadata.row_group(first).num_rows <= row:
        number += metadata.row_group(first).num_rows
        first += 1
    return list(range(first, metadata.num_row_groups)), number


def _without_nanoseconds(batch: pa.RecordBatch) -> pa.RecordBatch:
    """Python's times hold microseconds: to_pylist would raise, or return other types where pandas is installed."""
    columns = []
    for column in batch.columns:
        kind = column.type
        if pa.types.is_timestamp(kind) and kind.unit == "ns":
            column = column.cast(pa.timestamp("us", kind.tz), safe=False)
        elif pa.types.is_time64(kind) and kind.unit == "ns":
            column = column.cast(pa.time64("us"), safe=False)
        elif pa.types.is_duration(kind) and kind.unit == "ns":
            column = column.cast(pa.duration("us"), safe=False)
        columns.append(column)
    return pa.RecordBatch.from_arrays(columns, names=batch.schema.names)


def batch_rows(
    batch: pa.RecordBatch, source: str, start: int, raw: frozenset[str] = frozenset()
) -> Iterator[Row | BadRow]:
    """The rows of a batch as plain JSON values, numbered from `start`; the columns `raw` keep their bytes."""
    batch = _without_nanoseconds(batch)
    try:
        records = batch.to_pylist()
    except (ValueError, OverflowError, pa.ArrowException):
        # One value that Python cannot hold (a year past 9999, a string that is not UTF-8) costs its row alone.
        for offset in range(batch.num_rows):
            yield _single_row(batch.slice(offset, 1), source, start + offset, raw)
        return
    for offset, record in enumerate(records):
        columns = {name: value if name in raw else plain(value) for name, value in record.items()}
        yield Row(source, start + offset, columns)


def _single_row(batch: pa.RecordBatch, source: str, number: int, raw: frozenset[str]) -> Row | BadRow:
    columns = {}
    for name, column in zip(batch.schema.names, batch.columns, strict=True):
        try:
            value = column[0].as_py()
            columns[name] = value if name in raw else plain(value)
        except UnicodeDecodeError:
            return BadRow(source, number, f'not valid UTF-8 in column "{name}"', excerpt_of(str(columns)))
        except (ValueError, OverflowError, pa.ArrowException) as error:
            reason = f'column "{name}" ({column.type}) holds a value that cannot be read: {excerpt_of(str(error))}'
            return BadRow(source, number, reason, excerpt_of(str(columns)))
    return Row(source, number, columns)
