"""Marks: reading on from any of them gives what is new, and nothing else, whatever happened to the file."""

import csv
import io
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curator.sources import is_unchanged, read_rows, seen
from curator.sources.source import local_source
from curator.types import BadRow, Bookmark, Mark, Row
from tests.sources.files import write_bytes, write_parquet

NAMES = ["a.jsonl", "a.csv", "a.jsonl.gz", "a.csv.zst"]
LAX = settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def content(name: str, texts: list[str]) -> bytes:
    if "json" in name:
        return "".join(f'{{"text": "{text}"}}\n' for text in texts).encode()
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([["text"], *([text] for text in texts)])
    return out.getvalue().encode()


def read(path: Path, start: Mark | None = None, is_growing: bool = False) -> tuple[list[Row | BadRow], list[Mark]]:
    marks: list[Mark] = []
    rows = list(read_rows(path, start=start or Mark(), reached=marks.append, is_growing=is_growing))
    return rows, marks


@pytest.mark.parametrize("name", NAMES)
def test_every_mark_is_a_place_to_go_on_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setattr("curator.sources.bookmark._ROWS_BETWEEN", 7)
    texts = [f"text {number}" for number in range(40)]
    path = write_bytes(tmp_path / name, b"\xef\xbb\xbf" + content(name, texts))
    rows, marks = read(path)
    assert [mark.row for mark in marks] == [0, 7, 14, 21, 28, 35, 40]
    assert marks[-1].whole is not None
    for mark in marks:
        assert read(path, mark)[0] == rows[mark.row :]
    write_bytes(path, b"\xef\xbb\xbf" + content(name, [*texts, "new"]))
    for mark in marks:
        assert [row.columns["text"] for row in read(path, mark)[0]] == [*texts[mark.row :], "new"]
    write_bytes(path, content(name, ["other", *texts]))
    found, told = read(path, marks[3])
    assert (len(found), told[0].row) == (41, 0)  # what lies before is not what was read: from the start
    write_bytes(path, content(name, texts[:3]))
    assert len(read(path, marks[3])[0]) == 3


@LAX
@given(
    texts=st.lists(st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters='"\\'), min_size=1)),
    cut=st.floats(0, 1),
    name=st.sampled_from(NAMES[:2]),
)
def test_a_file_written_in_two_parts_gives_its_rows_once(tmp_path: Path, texts: list[str], cut: float, name: str):
    """Cut anywhere, a last line without its end is left until it has one."""
    if name == "a.csv":
        texts = [text.strip() + "," for text in texts]
    whole = content(name, texts)
    header = len(content(name, [])) if "csv" in name else 0
    path = tmp_path / name
    path.write_bytes(whole[: header + int(cut * (len(whole) - header))])
    first, marks = read(path, is_growing=True)
    path.write_bytes(whole)
    second, _ = read(path, marks[-1], is_growing=True)
    assert [row.columns["text"] for row in [*first, *second]] == texts
    assert [row.row for row in [*first, *second]] == list(range(len(texts)))


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv"])
def test_a_last_line_without_its_end_is_read_again_when_it_has_grown(tmp_path: Path, name: str):
    path = tmp_path / name
    path.write_bytes(content(name, ["one", "two"])[:-1])
    rows, marks = read(path)
    assert (len(rows), marks[-1].row, marks[-1].whole is None) == (2, 1, False)
    assert marks[-1].whole is not None, "there is no more to read, until the file changes"
    left, marks = read(path, is_growing=True)
    assert (len(left), marks[-1].whole) == (1, None)
    path.write_bytes(content(name, ["one", "twofold"]))
    assert [row.columns["text"] for row in read(path, marks[-1])[0]] == ["twofold"]


def test_row_groups_that_are_known_are_not_read(tmp_path: Path):
    rows = [{"text": f"{number}" * 100} for number in range(1000)]
    path = write_parquet(tmp_path / "a.parquet", rows, row_group_size=100)
    for row in (0, 99, 100, 101, 950, 1000):
        found, _ = read(path, Mark(row))
        assert [(one.row, one.columns) for one in found] == list(enumerate(rows))[row:]
    damaged = bytearray(path.read_bytes())
    damaged[200:2000] = bytes(1800)  # in the first group
    path.write_bytes(damaged)
    assert len(read(path, Mark(500))[0]) == 500


@pytest.mark.parametrize("name", [*NAMES, "a.parquet"])
def test_the_same_file_is_known_by_stamp_or_hash_and_another_one_is_not(tmp_path: Path, name: str):
    def write(texts: list[str]) -> None:
        if name == "a.parquet":
            write_parquet(tmp_path / name, [{"text": text} for text in texts])
        else:
            write_bytes(tmp_path / name, content(name, texts))

    write(["one", "two"])
    source = local_source(tmp_path / name)
    version, stamp, size = seen(source)
    assert stamp is None, "a file that was just written may change within the same tick of the clock"
    mark = read(tmp_path / name)[1][-1]
    assert is_unchanged(source, Bookmark(mark, stamp, size))
    write(["one", "two"])  # touched
    assert seen(source).version != version
    assert is_unchanged(source, Bookmark(mark, None, size))
    write(["one", "owt"])
    assert not is_unchanged(source, Bookmark(mark, None, size))
    write(["one", "two", "three"])
    assert not is_unchanged(source, Bookmark(mark, None, size))
