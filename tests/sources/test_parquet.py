"""Parquet: every value comes out as plain JSON, and damage is found."""

import json
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from curator.errors import UsageError
from curator.sources import read_rows
from curator.types import BadRow, Row
from tests.sources.files import columns_of, read, write_parquet

MOMENT = datetime(2024, 5, 6, 7, 8, 9, 123456)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (pa.array([MOMENT], pa.timestamp("us")), "2024-05-06T07:08:09.123456"),
        (pa.array([1_700_000_000_123_456_789], pa.timestamp("ns")), "2023-11-14T22:13:20.123456"),
        (pa.array([MOMENT.replace(tzinfo=UTC)], pa.timestamp("ms", "UTC")), "2024-05-06T07:08:09.123000+00:00"),
        (pa.array([date(2024, 5, 6)]), "2024-05-06"),
        (pa.array([time(7, 8, 9)]), "07:08:09"),
        (pa.array([timedelta(seconds=90)]), 90.0),
        (pa.array([Decimal("12345678901234567890")]), 12345678901234567890),
        (pa.array([Decimal("1.50")]), 1.5),
        (pa.array([float("nan")]), None),
        (pa.array([float("-inf")]), None),
        (pa.array([[1.5, float("nan"), None]]), [1.5, None, None]),
        (pa.array([1.5], pa.float16()), 1.5),
        (pa.array([b"\x00\xff\x01"]), {"dropped_bytes": 3}),
        (pa.array([{"bytes": b"12345", "path": "a.png"}]), {"bytes": {"dropped_bytes": 5}, "path": "a.png"}),
        (pa.array([[("k", 1)]], pa.map_(pa.string(), pa.int64())), [["k", 1]]),
        (pa.array(["a"]).dictionary_encode(), "a"),
        (pa.array([None]), None),
        (pa.array([True]), True),
    ],
)
def test_values_come_out_as_plain_json(tmp_path: Path, array: pa.Array, expected: Any) -> None:
    (columns,) = columns_of(write_parquet(tmp_path / "a.parquet", pa.table({"value": array})))
    assert columns == {"value": expected}
    assert type(columns["value"]) is type(expected)
    assert json.loads(json.dumps(columns, allow_nan=False)) == columns


def test_a_value_python_cannot_hold_costs_its_row_alone(tmp_path: Path) -> None:
    table = pa.table({"text": ["a", "b", "c"], "at": pa.array([0, 2**60, 0], pa.timestamp("ms"))})
    first, bad, last = read(write_parquet(tmp_path / "a.parquet", table))
    assert isinstance(bad, BadRow)
    assert bad.row == 1
    assert bad.reason.startswith('column "at" (timestamp[ms]) holds a value that cannot be read')
    assert [row.columns["text"] for row in (first, last) if isinstance(row, Row)] == ["a", "c"]


def test_text_that_is_not_utf8_costs_its_row_alone(tmp_path: Path) -> None:
    text = pa.array([b"fine", b"\xff", b"fine"]).view(pa.string())
    rows = read(write_parquet(tmp_path / "a.parquet", pa.table({"text": text})))
    assert [type(row) for row in rows] == [Row, BadRow, Row]
    assert isinstance(rows[1], BadRow)
    assert rows[1].reason == 'not valid UTF-8 in column "text"'


def test_two_columns_of_one_name_are_a_usage_error(tmp_path: Path) -> None:
    table = pa.table([pa.array([1]), pa.array([2])], names=["text", "text"])
    with pytest.raises(UsageError, match='names the column "text" twice'):
        read(write_parquet(tmp_path / "a.parquet", table))


def test_a_damaged_page_ends_the_file_with_an_error_after_the_good_rows(tmp_path: Path) -> None:
    rows = [{"text": " ".join(str((number * 7919 + place) ** 3) for place in range(50))} for number in range(3000)]
    path = write_parquet(tmp_path / "a.parquet", rows, row_group_size=300)
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 20_000] = b"\xff" * 20_000
    path.write_bytes(content)
    got = []
    with pytest.raises(UsageError, match=r"a\.parquet is damaged or incomplete"):
        got.extend(row.columns for row in read_rows(path) if isinstance(row, Row))
    assert len(got) >= 600
    assert got == rows[: len(got)]


def test_a_truncated_file_is_a_usage_error(tmp_path: Path) -> None:
    path = write_parquet(tmp_path / "a.parquet", [{"text": "x"}] * 100)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UsageError, match=r"a\.parquet is damaged or incomplete"):
        read(path)


def test_a_file_without_rows_has_none(tmp_path: Path) -> None:
    assert read(write_parquet(tmp_path / "a.parquet", pa.table({"text": pa.array([], pa.string())}))) == []
