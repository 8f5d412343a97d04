"""Arrow IPC: files (.arrow, .feather) and streams, which `datasets.save_to_disk` writes; one record batch is held."""

from collections.abc import Iterator
from typing import IO

import pyarrow as pa

from curator.errors import UsageError
from curator.sources.bookmark import Reached, digest_of, is_due
from curator.sources.header import check_header
from curator.sources.parquet import batch_rows
from curator.sources.source import Source
from curator.sources.streams import damage_as_usage_error
from curator.types import BadRow, Mark, Row

__all__ = ["read_arrow"]

_FILE_MAGIC, _FEATHER_1_MAGIC = b"ARROW1", b"FEA1"
_CONTINUED = b"\xff" * 4  # what every message begins with, but for streams of before 2019
_END_OF_STREAM = _CONTINUED + b"\x00" * 4
_BATCH_ROWS = 64  # at a time as objects of Python


def read_arrow(
    source: Source, start: Mark, reached: Reached, is_growing: bool, raw: frozenset[str] = frozenset()
) -> Iterator[Row | BadRow]:
    """The rows of the file or stream, numbered over all record batches; those before `start` are passed over. The
    columns `raw` keep their bytes.

    Raises UsageError for two columns of one name, for Feather of version 1, and, after the rows before it, for damage.
    """
    with damage_as_usage_error(source), source.file.open() as data:
        reader = _open(source, data)
        check_header(source.location, reader.schema.names)
        reached(start)
        mark, number = start, 0
        for batch in _batches(reader):
            for at in range(max(0, start.row - number), batch.num_rows, _BATCH_ROWS):
                part = batch.slice(at, _BATCH_ROWS)
                yield from batch_rows(part, source.location, number + at, raw)
                if is_due(number + at + part.num_rows, 0, mark):
                    mark = Mark(number + at + part.num_rows)
                    reached(mark)
            number += batch.num_rows
        if isinstance(reader, pa.ipc.RecordBatchStreamReader):
            _check_end(source, data)
    reached(Mark(number, whole=digest_of(source) if source.is_local else b""))


def _open(source: Source, raw: IO[bytes]) -> pa.ipc.RecordBatchFileReader | pa.ipc.RecordBatchStreamReader:
    magic = raw.read(len(_FILE_MAGIC))
    raw.seek(0)
    if magic.startswith(_FEATHER_1_MAGIC):
        raise UsageError(f"{source} is Feather of version 1: write it again with pyarrow.feather.write_feather")
    # Not memory-mapped: a file that is cut while it is read would end the process.
    return pa.ipc.open_file(raw) if magic == _FILE_MAGIC else pa.ipc.open_stream(raw)


def _batches(reader: pa.ipc.RecordBatchFileReader | pa.ipc.RecordBatchStreamReader) -> Iterator[pa.RecordBatch]:
    if isinstance(reader, pa.ipc.RecordBatchFileReader):
        return (reader.get_batch(number) for number in range(reader.num_record_batches))
    return iter(reader)


def _check_end(source: Source, raw: IO[bytes]) -> None:
    """A stream that was cut between two batches reads as a shorter one: only the mark at its end tells."""
    raw.seek(0)
    is_old = raw.read(len(_CONTINUED)) != _CONTINUED
    raw.seek(-len(_END_OF_STREAM), 2)
    if not is_old and raw.read() != _END_OF_STREAM:
        raise UsageError(
            f"{source} is damaged or incomplete: the stream has no end mark, so batches may be missing; write it again"
        )
