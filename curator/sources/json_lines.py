"""JSON lines: one object per line."""

import json
from collections.abc import Iterator
from pathlib import Path

from curator.errors import UsageError
from curator.sources import streams
from curator.sources.excerpt import excerpt_of
from curator.sources.paths import DataFormat
from curator.sources.plain import finite
from curator.types import BadRow, Row

__all__ = ["read_json_lines"]

_KINDS = {str: "a string", bool: "true or false", int: "a number", float: "a number", list: "an array"}


def read_json_lines(path: Path, data_format: DataFormat, source: str) -> Iterator[Row | BadRow]:
    """The objects of the file. `row` is the index of the line; blank lines are skipped, but numbered.

    Raises UsageError where a .json file holds one document (an array, an object over several lines) and not lines.
    """
    with streams.open_stream(path, data_format.compression) as stream:
        is_first = True
        for number, line in enumerate(streams.read_lines(stream)):
            stripped = line.strip()
            if not stripped:
                continue
            if is_first and data_format.suffix == ".json":
                _check_is_lines(path, stripped)
            is_first = False
            yield parse_line(source, number, line)


def _check_is_lines(path: Path, first: bytes) -> None:
    """The first line of a document shows what it is: an array opens with [, a pretty-printed object has { alone."""
    if first.startswith(b"["):
        what, query = "one JSON array", ".[]"
    elif first == b"{":
        what, query = "one JSON object over several lines", "."
    else:
        return
    target = path.with_suffix(".jsonl").name
    raise UsageError(
        f"{path} holds {what}, and JSON lines are needed (one object per line): "
        f"convert it with `jq -c '{query}' {path.name} > {target}`"
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
