"""CSV and TSV: a header line, then one record per row, every value as text."""

import csv
from collections.abc import Iterator
from dataclasses import replace
from typing import IO

from curator.errors import UsageError
from curator.sources import streams
from curator.sources.bookmark import ChangedSourceError, Reached, is_due
from curator.sources.excerpt import excerpt_of
from curator.sources.header import check_header
from curator.sources.source import Source
from curator.types import BadRow, Mark, Row

__all__ = ["read_csv"]

# The csv module holds a field as 4 bytes per character and stops at 128 KB by default, which long texts exceed.
MAX_FIELD_CHARS = 16 << 20


def read_csv(source: Source, start: Mark, reached: Reached, is_growing: bool) -> Iterator[Row | BadRow]:
    """The records of the file. `row` is the index of the record after the header; blank lines are no records.

    Raises UsageError for a header that is missing, empty, not UTF-8, or names a column twice.
    """
    # The limit belongs to the process, so it is only ever raised.
    csv.field_size_limit(max(csv.field_size_limit(), MAX_FIELD_CHARS))
    with streams.open_stream(source) as stream:
        lines = _Lines(stream)
        records = csv.reader(lines, delimiter="\t" if source.format.suffix == ".tsv" else ",", strict=True)
        names = _read_header(source, records)
        if start.row and not lines.bytes.skip(start.offset, start.digest):
            raise ChangedSourceError
        reached(start)
        number, is_left = start.row, False
        mark = ended = start if start.row else Mark(0, *lines.bytes.ended())
        while True:
            lines.start_record()
            try:
                record = next(records)
            except StopIteration:
                break
            except csv.Error as error:
                is_left = is_growing and (lines.bytes.is_open or _is_unfinished(error))
                if is_left:
                    break
                yield BadRow(source.location, number, _syntax_reason(lines, error), excerpt_of(lines.first))
                is_whole = not _is_unfinished(error)
            else:
                is_left = is_growing and lines.bytes.is_open
                if is_left:
                    break
                is_whole = True
                if not record:
                    continue
                yield _to_row(source.location, number, names, record)
            number += 1
            # A record that the file's end has cut off is read again once there is more.
            if is_whole and not lines.bytes.is_open:
                ended = Mark(number, *lines.bytes.ended())
                if is_due(number, ended.offset, mark):
                    mark = ended
                    reached(mark)
        reached(replace(ended, whole=None if is_left else lines.bytes.digest()))


class _Lines:
    """Decoded lines for csv.reader. An object, since a generator would be finished by the first error it raises."""

    def __init__(self, stream: IO[bytes]) -> None:
        self.bytes = streams.Lines(stream)
        self._lines = self.bytes.read()
        self.start_record()

    def start_record(self) -> None:
        """The next line is the first of a record: messages quote it."""
        self.first_number, self.first, self._num_bytes = self.bytes.num_lines + 1, b"", 0

    def __iter__(self) -> "_Lines":
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        if self.bytes.num_lines == self.first_number:
            self.first = line[:1000]
        self._num_bytes += len(line)
        if self._num_bytes > streams.MAX_LINE_BYTES:
            raise csv.Error(f"the record is longer than {streams.MAX_LINE_BYTES >> 20} MB")
        # Bytes that are not UTF-8 pass through csv.reader as lone surrogates, and are found again in the record.
        return line.decode("utf-8", "surrogateescape") + "\n"


def _read_header(source: Source, records: Iterator[list[str]]) -> list[str]:
    try:
        names = next((record for record in records if record), [])
    except csv.Error as error:
        raise UsageError(f"{source} has a header that is not readable CSV: {error}") from error
    if not all(map(_is_utf8, names)):
        raise UsageError(f"{source} is not UTF-8: convert it, for example with `iconv -t UTF-8`")
    check_header(source.location, names)
    return names


def _to_row(source: str, number: int, names: list[str], record: list[str]) -> Row | BadRow:
    if len(record) != len(names):
        reason = f"the record has {len(record)} columns, and the header names {len(names)}"
    elif not all(map(_is_utf8, record)):
        column = next(name for name, value in zip(names, record, strict=True) if not _is_utf8(value))
        reason = f'not valid UTF-8 in column "{column}"'
    else:
        return Row(source, number, dict(zip(names, record, strict=True)))
    return BadRow(source, number, reason, excerpt_of(",".join(value[:1000] for value in record[:1000])))


def _is_utf8(value: str) -> bool:
    if value.isascii():
        return True
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _is_unfinished(error: csv.Error) -> bool:
    """Whether the file ended inside of quotes."""
    return "unexpected end of data" in str(error)


def _syntax_reason(lines: _Lines, error: csv.Error) -> str:
    where = f"line {lines.first_number}" + (
        f" to {lines.bytes.num_lines}" if lines.bytes.num_lines > lines.first_number else ""
    )
    if _is_unfinished(error):
        return f"a quote opened in {where} is never closed: everything after it was taken for one value"
    if "field larger than field limit" in str(error):
        return f"a value in {where} is longer than {MAX_FIELD_CHARS >> 20} million characters: is a quote not closed?"
    return f"not valid CSV ({where}): {error}"
