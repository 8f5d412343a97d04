"""Laws of read_rows that hold for every format."""

import gzip
import tracemalloc
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curator.errors import NotFoundError, UsageError
from curator.sources import read_rows
from curator.types import Row
from tests.sources.files import columns_of, read, write_bytes, write_csv, write_jsonl, write_parquet

LAX = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Lone surrogates are category Cs: no file in UTF-8 holds them.
TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=30)
SCALARS = (
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.floats(allow_nan=False, allow_infinity=False) | TEXT
)
JSON_ROWS = st.lists(
    st.dictionaries(
        TEXT, st.recursive(SCALARS, lambda x: st.lists(x, max_size=3) | st.dictionaries(TEXT, x, max_size=3))
    )
)
# csv takes \r and \n inside quotes as they are, so values may hold both.
CSV_ROWS = st.lists(st.fixed_dictionaries({"text": TEXT, "a, b": TEXT, 'q"': TEXT}), min_size=1)


@LAX
@given(rows=JSON_ROWS, suffix=st.sampled_from(["", ".gz", ".zst"]), ensure_ascii=st.booleans())
def test_json_lines_come_back_equal(tmp_path: Path, rows: list, suffix: str, ensure_ascii: bool) -> None:
    assert columns_of(write_jsonl(tmp_path / f"a.jsonl{suffix}", rows, ensure_ascii=ensure_ascii)) == rows


@LAX
@given(rows=CSV_ROWS, suffix=st.sampled_from(["", ".gz", ".zst"]), name=st.sampled_from(["csv", "tsv"]))
def test_csv_comes_back_equal(tmp_path: Path, rows: list, suffix: str, name: str) -> None:
    path = write_csv(tmp_path / f"a.{name}{suffix}", rows, delimiter="," if name == "csv" else "\t")
    assert columns_of(path) == rows


@LAX
@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "text": st.none() | TEXT,
                "n": st.none() | st.integers(-(2**63), 2**63 - 1),
                "x": st.none() | st.floats(allow_nan=False, allow_infinity=False),
                "list": st.lists(TEXT, max_size=2),
                "object": st.fixed_dictionaries({"k": st.booleans()}),
            }
        ),
        min_size=1,
    )
)
def test_parquet_comes_back_equal(tmp_path: Path, rows: list) -> None:
    assert columns_of(write_parquet(tmp_path / "a.parquet", rows, row_group_size=3)) == rows


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.parquet", "a.jsonl.gz", "a.csv.zst"])
def test_rows_are_numbered_and_carry_the_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    rows = [{"text": str(number)} for number in range(200)]
    writer = write_jsonl if "json" in name else write_parquet if "parquet" in name else write_csv
    writer(tmp_path / name, rows)
    monkeypatch.chdir(tmp_path)
    source = (tmp_path / name).as_posix()
    assert read(Path(name)) == [Row(source, number, row) for number, row in enumerate(rows)]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.jsonl.gz"])
def test_a_byte_order_mark_is_no_content(tmp_path: Path, name: str) -> None:
    content = b'{"text": "x"}\n' if "json" in name else b"text\r\nx\r\n"
    assert columns_of(write_bytes(tmp_path / name, b"\xef\xbb\xbf" + content)) == [{"text": "x"}]


def long_rows(count: int) -> list[dict[str, str]]:
    # Numbers in the text keep the compressed stream long enough to be cut in the middle of the rows.
    return [{"text": " ".join(str((number * 7919 + place) ** 3) for place in range(50))} for number in range(count)]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.csv.gz", "a.csv.zst"])
def test_a_truncated_file_gives_its_good_rows_and_then_says_so(tmp_path: Path, name: str) -> None:
    rows = long_rows(8000)
    path = (write_jsonl if "json" in name else write_csv)(tmp_path / name, rows)
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    got = []
    with pytest.raises(UsageError, match="is damaged or incomplete") as caught:
        got.extend(row.columns for row in read_rows(path) if isinstance(row, Row))
    assert len(got) > 1000
    assert got == rows[: len(got)]
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_a_file_of_other_content_than_its_name_says_is_a_usage_error(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b'{"text": "plain"}\n' * 20)
    with pytest.raises(UsageError, match="is damaged or incomplete"):
        read(tmp_path / name)


@pytest.mark.parametrize(("name", "compress"), [("a.jsonl.gz", gzip.compress), ("a.jsonl.zst", zstandard.compress)])
def test_streams_written_one_after_the_other_are_one_file(tmp_path: Path, name: str, compress) -> None:
    (tmp_path / name).write_bytes(compress(b'{"text": "a"}\n') + compress(b'{"text": "b"}\n'))
    assert columns_of(tmp_path / name) == [{"text": "a"}, {"text": "b"}]


def test_a_missing_file_and_an_unknown_suffix_are_told_apart(tmp_path: Path) -> None:
    for name in ("gone.jsonl", "gone.csv.gz", "gone.jsonl.zst", "gone.parquet"):
        with pytest.raises(NotFoundError, match="does not exist"):
            read(tmp_path / name)
    with pytest.raises(UsageError, match="has a suffix that is not read"):
        read_rows(tmp_path / "a.txt")


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json"])
def test_an_empty_file_of_json_lines_has_no_rows(tmp_path: Path, name: str) -> None:
    assert read(write_bytes(tmp_path / name, b"")) == []


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.csv.gz", "a.parquet"])
def test_memory_does_not_grow_with_the_file(tmp_path: Path, name: str) -> None:
    rows = [{"text": f"{number} some words " * 60} for number in range(30_000)]  # 30 to 40 MB
    if name == "a.parquet":
        path = write_parquet(tmp_path / name, rows, row_group_size=30_000)
    else:
        path = (write_jsonl if "json" in name else write_csv)(tmp_path / name, rows)
    del rows
    tracemalloc.start()
    try:
        count, peak_arrow = 0, 0
        for row in read_rows(path):
            count += isinstance(row, Row)
            peak_arrow = max(peak_arrow, pa.total_allocated_bytes())  # tracemalloc does not see Arrow's memory
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert count == 30_000
    assert peak < 6 << 20
    assert peak_arrow < 8 << 20
