"""CSV and TSV: headers, quoting, ragged records."""

from pathlib import Path

import pytest

from curator.errors import UsageError
from curator.sources import csv_records, streams
from curator.types import BadRow, Row
from tests.sources.files import columns_of, read, write_bytes


def test_every_value_is_text_and_quotes_hold_line_ends(tmp_path: Path) -> None:
    path = write_bytes(tmp_path / "a.csv", b'id,text\r\n1,"two\r\nlines, ""quoted"""\r\n\r\n2,\r\n')
    assert read(path) == [
        Row(path.as_posix(), 0, {"id": "1", "text": 'two\r\nlines, "quoted"'}),
        Row(path.as_posix(), 1, {"id": "2", "text": ""}),
    ]


def test_tsv_is_split_at_tabs(tmp_path: Path) -> None:
    assert columns_of(write_bytes(tmp_path / "a.tsv", b"a\tb\n1,2\t3\n")) == [{"a": "1,2", "b": "3"}]


def test_a_value_may_be_long(tmp_path: Path) -> None:
    text = "word " * 100_000
    assert columns_of(write_bytes(tmp_path / "a.csv", f"text\n{text}\n".encode())) == [{"text": text}]


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (b"1", "the record has 1 columns, and the header names 2"),
        (b"1,2,3", "the record has 3 columns, and the header names 2"),
        (b"1,\xff", 'not valid UTF-8 in column "text"'),
        (b'1,"a"b', "not valid CSV (line 3): ',' expected after '\"'"),
    ],
)
def test_a_bad_record_says_why_and_the_rest_goes_on(tmp_path: Path, record: bytes, reason: str) -> None:
    path = write_bytes(tmp_path / "a.csv", b"id,text\n1,x\n" + record + b"\n2,y\n")
    first, bad, last = read(path)
    assert isinstance(first, Row)
    assert isinstance(bad, BadRow)
    assert (bad.row, bad.reason) == (1, reason)
    assert bad.excerpt.startswith("1")
    bad.excerpt.encode()
    assert last == Row(path.as_posix(), 2, {"id": "2", "text": "y"})


def test_a_quote_that_is_never_closed_names_the_lines_it_took(tmp_path: Path) -> None:
    good, bad = read(write_bytes(tmp_path / "a.csv", b'text\nfine\n"open\nmore\nlast\n'))
    assert isinstance(good, Row)
    assert isinstance(bad, BadRow)
    assert bad.reason.startswith("a quote opened in line 3 to 5 is never closed")
    assert bad.excerpt == '"open'


def test_a_record_of_no_end_is_given_up_and_reading_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_LINE_BYTES", 1 << 20)
    lines = [b"text", b'"open'] + [b"x" * 1000] * 1500 + [b"last"]
    rows = read(write_bytes(tmp_path / "a.csv", b"\n".join(lines)))
    assert isinstance(rows[0], BadRow)
    assert "the record is longer than 1 MB" in rows[0].reason
    assert rows[0].excerpt == '"open'
    assert isinstance(rows[-1], Row)
    assert rows[-1].columns == {"text": "last"}


def test_a_value_above_the_field_limit_is_a_bad_row(tmp_path: Path) -> None:
    value = b"x" * (csv_records.MAX_FIELD_CHARS + 1)
    bad, good = read(write_bytes(tmp_path / "a.csv", b"text\n" + value + b"\nfine\n"))
    assert isinstance(bad, BadRow)
    assert "longer than 16 million characters" in bad.reason
    assert isinstance(good, Row)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no columns"),
        (b"\n\n", "has no columns"),
        (b"id,,text\n", "has no name for column 2"),
        (b"id,text,id\n", 'names the column "id" twice'),
        (b"t\xe9xt\n", "is not UTF-8: convert it"),
        (b'"open\n', "has a header that is not readable CSV"),
    ],
)
def test_a_header_must_name_every_column_once(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        read(write_bytes(tmp_path / "a.csv", content))
