"""JSON lines: one object per line."""

import json
from collections.abc import Iterator
from pathlib import PurePosixPath

from curator.errors import UsageError
from curator.sources import streams
from curator.sources.bookmark import ChangedSourceError, Reached, is_due
from curator.sources.excerpt import excerpt_of
from curator.sources.plain import finite
from curator.sources.source import Source
from curator.types import BadRow, Mark, Row

__all__ = ["read_json_lines"]

_KINDS = {str: "a string", bool: "true or false", int: "a number", float: "a number", list: "an array"}


def read_json_lines(source: Source, start: Mark, reached: Reached, is_growing: bool) -> Iterator[Row | BadRow]:
    """The objects of the file. `row` is the index of the line; blank lines are skipped, but numbered.

    Raises UsageError where a .json file holds one document (an array, an object over several lines) and not lines.
    """
    with streams.open_stream(source) as stream:
        lines = streams.Lines(stream)
        if start.row and not lines.skip(start.offset, start.digest):
            raise ChangedSourceError
        reached(start)
        mark, number, is_first = start, start.row, start.row == 0
        for line in lines.read():
            if lines.is_open and is_growing:
                break
            if stripped := line.strip():
                if is_first and source.format.suffix == ".json":
                    _check_is_lines(source, stripped)
                is_first = False
                yield parse_line(source.location, number, line)
            number += 1
            if is_due(number, lines.offset, mark) and not lines.is_open:
                mark = Mark(number, *lines.ended())
                reached(mark)
        is_left = lines.is_open and is_growing
        num_ended = number - (lines.is_open and not is_left)
        reached(Mark(num_ended, *lines.ended(), whole=None if is_left else lines.digest()))


def _check_is_lines(source: Source, first: bytes) -> None:
    """The first line of a document shows what it is: an array opens with [, a pretty-printed object has { alone."""
    if first.startswith(b"["):
        what, query = "one JSON array", ".[]"
    elif first == b"{":
        what, query = "one JSON object over several lines", "."
    else:
        return
    target = PurePosixPath(source.name).with_suffix(".jsonl")
    raise UsageError(
        f"{source} holds {what}, and JSON lines are needed (one object per line): "
        f"convert it with `jq -c '{query}' {source.name} > {target}`"
    )


def parse_line(source: str, number: int, line: bytes) -> Row | BadRow:
    """One line as a row, or as the bad row that says what is wrong with it."""
    if len(line) > streams.MAX_LINE_BYTES:
        reason = f"the line is longer than {streams.MAX_LINE_BYTES >> 20} MB"
        return BadRow(source, number, reason, excerpt_of(line))
    try:
        value = json.loads(line.decode("utf-8"), parse_constant=_no_constant, parse_float=_finite_float)
    except UnicodeDecodeError as error:
        reason = f"not valid UTF-8: byte {error.start + 1} of the line is 0x{line[error.start]:02x}"
    except json.JSONDecodeError as error:
        reason = f"not valid JSON: {error.msg} at character {error.pos + 1}"
    except RecursionError:
        reason = "not readable JSON: nested too deeply"
    except ValueError:  # the interpreter's limit on the digits of an integer
        reason = "not readable JSON: a number has too many digits"
    else:
        if isinstance(value, dict):
            return Row(source, number, value)
        reason = f"not a JSON object: the line is {_KINDS.get(type(value), 'null')}"
    return BadRow(source, number, reason, excerpt_of(line))


def _no_constant(_name: str) -> None:
    """NaN, Infinity and -Infinity, which Python writes though JSON has no such constants."""
    return


def _finite_float(text: str) -> float | None:
    return finite(float(text))  # 1e999 is valid JSON, and inf in Python
