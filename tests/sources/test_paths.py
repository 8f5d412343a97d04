"""Which files a list of paths stands for."""

import os
from pathlib import Path
from typing import Any

import pytest

from curator import sources
from curator.errors import NotFoundError, UsageError
from curator.sources.formats import DataFormat, data_format


def resolve(data: Any) -> list[Path]:
    return [Path(source.location) for source in sources.resolve(data)]


def touch(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a.jsonl", DataFormat("json", ".jsonl")),
        ("a.JSONL.GZ", DataFormat("json", ".jsonl", ".gz")),
        ("a.b.ndjson.zst", DataFormat("json", ".ndjson", ".zst")),
        ("a.json", DataFormat("json", ".json")),
        ("a.csv.gz", DataFormat("csv", ".csv", ".gz")),
        ("a.tsv", DataFormat("csv", ".tsv")),
        ("a.parquet", DataFormat("parquet", ".parquet")),
        ("a.parquet.gz", None),
        ("a.arrow", DataFormat("arrow", ".arrow")),
        ("a.Feather", DataFormat("arrow", ".feather")),
        ("a.txt", None),
        ("jsonl", None),
    ],
)
def test_the_name_says_the_format(name: str, expected: DataFormat | None) -> None:
    assert data_format(Path(name)) == expected


def test_a_directory_is_its_readable_files_sorted_without_hidden_ones(tmp_path: Path) -> None:
    touch(
        tmp_path, "b.csv", "a.jsonl", "sub/c.parquet", "sub/.hidden.jsonl", ".git/d.jsonl", "README.md", "z.jsonl.zst"
    )
    names = [path.relative_to(tmp_path).as_posix() for path in resolve([tmp_path])]
    assert names == ["a.jsonl", "b.csv", "sub/c.parquet", "z.jsonl.zst"]


def test_files_keep_the_order_given_and_come_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path, "a.jsonl", "b.jsonl", "sub/c.jsonl")
    (tmp_path / "link.jsonl").symlink_to(tmp_path / "b.jsonl")
    monkeypatch.chdir(tmp_path)
    found = resolve(["b.jsonl", tmp_path / "sub" / ".." / "a.jsonl", ".", "link.jsonl"])
    assert found == [tmp_path / "b.jsonl", tmp_path / "a.jsonl", tmp_path / "sub" / "c.jsonl"]


def test_one_string_is_one_path(tmp_path: Path) -> None:
    touch(tmp_path, "a.jsonl")
    assert resolve(str(tmp_path / "a.jsonl")) == [tmp_path / "a.jsonl"]


def test_linked_directories_are_followed_and_loops_end(tmp_path: Path) -> None:
    touch(tmp_path, "data/a.jsonl", "elsewhere/b.jsonl")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "more").symlink_to(tmp_path / "elsewhere")
    assert [path.name for path in resolve([tmp_path / "data"])] == ["a.jsonl", "b.jsonl"]


def test_a_missing_path_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match=r"gone\.jsonl does not exist"):
        resolve([tmp_path / "gone.jsonl"])


def test_a_broken_link_in_a_directory_is_not_passed_over(tmp_path: Path) -> None:
    touch(tmp_path, "a.jsonl")
    (tmp_path / "b.jsonl").symlink_to(tmp_path / "gone.jsonl")
    with pytest.raises(NotFoundError, match=r"b\.jsonl"):
        resolve([tmp_path])


def test_what_cannot_be_data_is_a_usage_error(tmp_path: Path) -> None:
    touch(tmp_path, "notes.txt", "empty/readme.md")
    with pytest.raises(UsageError, match=r"notes\.txt has a suffix that is not read: expected one of \.jsonl"):
        resolve([tmp_path / "notes.txt"])
    with pytest.raises(UsageError, match="holds no data files"):
        resolve([tmp_path / "empty"])
    with pytest.raises(UsageError, match="no data given"):
        resolve([])
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(UsageError, match="not a regular file"):
        resolve([tmp_path / "pipe.jsonl"])
