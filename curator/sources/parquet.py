"""Parquet: record batches of a few rows, every value as plain JSON."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from curator.sources.excerpt import excerpt_of
from curator.sources.header import check_header
from curator.sources.plain import plain
from curator.sources.streams import damage_as_usage_error
from curator.types import BadRow, Row

__all__ = ["read_parquet"]

_BATCH_ROWS = 64  # few, since one row may hold an image
_BUFFER_BYTES = 1 << 20


def read_parquet(path: Path, source: str, raw: frozenset[str] = frozenset()) -> Iterator[Row | BadRow]:
    """The rows of the file, numbered over all row groups. The columns `raw` keep their bytes.

    Raises UsageError for two columns of one name, and, after the rows before it, for a damaged page.
    """
    number = 0
    # With a buffer size, column chunks are streamed; without it, whole row groups are held.
    with damage_as_usage_error(path), pq.ParquetFile(path, buffer_size=_BUFFER_BYTES, pre_buffer=False) as file:
        check_header(path, file.schema_arrow.names)
        for batch in file.iter_batches(batch_size=_BATCH_ROWS):
            yield from _batch_rows(_without_nanoseconds(batch), source, number, raw)
            number += batch.num_rows


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


def _batch_rows(batch: pa.RecordBatch, source: str, start: int, raw: frozenset[str]) -> Iterator[Row | BadRow]:
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
