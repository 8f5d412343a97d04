"""JSON lines: what is a row, what is a bad row, and what is said about it."""

import json
from pathlib import Path

import pytest

from curator.errors import UsageError
from curator.sources import streams
from curator.types import BadRow, Row
from tests.sources.files import columns_of, read, write_bytes

GOOD = b'{"text": "fine"}'


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"text": "cut', "not valid JSON: Unterminated string starting at at character 10"),
        (b"{'text': 1}", "not valid JSON: Expecting property name enclosed in double quotes at character 2"),
        (b"[1, 2]", "not a JSON object: the line is an array"),
        (b'"text"', "not a JSON object: the line is a string"),
        (b"3", "not a JSON object: the line is a number"),
        (b"true", "not a JSON object: the line is true or false"),
        (b"null", "not a JSON object: the line is null"),
        (b"NaN", "not a JSON object: the line is null"),
        (b'{"text": "\xff\xfe"}', "not valid UTF-8: byte 11 of the line is 0xff"),
        (b"[" * 100_000, "not readable JSON: nested too deeply"),
        (b'{"n": ' + b"9" * 5000 + b"}", "not readable JSON: a number has too many digits"),
    ],
)
def test_a_bad_line_says_why_and_the_rest_goes_on(tmp_path: Path, line: bytes, reason: str) -> None:
    path = write_bytes(tmp_path / "a.jsonl", GOOD + b"\n" + line + b"\n" + GOOD)
    first, bad, last = read(path)
    assert isinstance(first, Row)
    assert isinstance(bad, BadRow)
    assert (bad.source, bad.row, bad.reason) == (path.as_posix(), 1, reason)
    assert bad.excerpt
    assert len(bad.excerpt) <= 200
    bad.excerpt.encode()
    assert last == Row(path.as_posix(), 2, {"text": "fine"})


def test_blank_lines_are_numbered_and_not_rows(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "a.jsonl", b"\n" + GOOD + b"\r\n  \r\n" + GOOD + b"\n\n")
    assert [row.row for row in read(path)] == [1, 3]


def test_numbers_that_json_cannot_hold_become_null(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "a.jsonl", b'{"a": NaN, "b": [Infinity, -Infinity], "c": 1e999, "d": 1.5}\n')
    (columns,) = columns_of(path)
    assert columns == {"a": None, "b": [None, None], "c": None, "d": 1.5}
    json.dumps(columns, allow_nan=False)


def test_a_json_file_may_hold_lines(tmp_path: Path) -> None:
    assert len(columns_of(write_bytes(tmp_path / "a.json", GOOD + b"\n" + GOOD))) == 2


@pytest.mark.parametrize(
    ("document", "message"),
    [
        (b'\n [{"text": "a"}]', r"holds one JSON array.*jq -c '\.\[\]' a\.json > a\.jsonl"),
        (b'{\n  "text": "a"\n}\n', r"holds one JSON object over several lines.*jq -c '\.' a\.json > a\.jsonl"),
    ],
)
def test_a_json_document_says_how_to_convert_it(tmp_path: Path, document: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(write_bytes(tmp_path / "a.json", document))


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_an_overlong_line_is_one_bad_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(streams, "MAX_LINE_BYTES", 1 << 20)
    longest = b'{"text": "' + b"x" * ((1 << 20) - 12) + b'"}'
    assert len(longest) == 1 << 20
    too_long = b'{"text": "' + b"y" * (5 << 20) + b'"}'
    path = write_bytes(tmp_path / name, b"\n".join([GOOD, longest, too_long, GOOD, longest + b" "]))
    rows = read(path)
    assert [type(row) for row in rows] == [Row, Row, BadRow, Row, BadRow]
    assert [row.row for row in rows] == [0, 1, 2, 3, 4]
    assert isinstance(rows[2], BadRow)
    assert rows[2].reason == "the line is longer than 1 MB"
    assert rows[2].excerpt.startswith('{"text": "yyy')
    assert len(rows[2].excerpt) == 200
