import json
import os
from pathlib import Path

import pytest

from index.shard_files import ShardFiles


@pytest.fixture
def files(tmp_path: Path) -> ShardFiles:
    return ShardFiles(tmp_path / "made" / "on-write", prefix="none-")


def test_what_is_read_is_what_was_written_last(files: ShardFiles) -> None:
    assert files.read("a") is None
    files.write("a", b"first")
    files.write("a", b"second")
    assert files.read("a") == b"second"
    assert sorted(path.name for path in files.directory.iterdir()) == ["none-a.faiss", "none-a.json"]


def test_keys_are_equal_exactly_where_every_part_is(files: ShardFiles) -> None:
    recipes = [["a", "b"], ["ab"], ["a", "b", ""], ["b", "a"], ["a\0b"], ['a","b']]
    assert len({files.key(recipe) for recipe in recipes}) == len(recipes)
    assert files.key(["a", "b"]) == files.key(("a", "b"))


@pytest.mark.parametrize("damage", ["", "[]", "{", "null", '{"num_bytes": 5}', '{"sha256": 1, "num_bytes": 5}'])
def test_a_shard_without_its_seal_reads_as_absent(files: ShardFiles, damage: str) -> None:
    files.write("a", b"bytes")
    (files.directory / "none-a.json").write_text(damage)
    assert files.read("a") is None


@pytest.mark.parametrize("damage", [b"", b"byte", b"bytez", b"bytes!"])
def test_altered_or_truncated_bytes_read_as_absent(files: ShardFiles, damage: bytes) -> None:
    files.write("a", b"bytes")
    (files.directory / "none-a.faiss").write_bytes(damage)
    assert files.read("a") is None
    assert json.loads((files.directory / "none-a.json").read_bytes())["num_bytes"] == 5


def test_prune_removes_the_unused_of_its_prefix_and_what_a_dead_process_left(files: ShardFiles) -> None:
    files.write("kept", b"1")
    files.write("old", b"2")
    ShardFiles(files.directory, prefix="inverse_norm-").write("other", b"3")
    for name in ("none-x.faiss.1.tmp", "none-y.faiss.2.tmp", "none-notes.txt"):
        (files.directory / name).write_text("x")
    os.utime(files.directory / "none-x.faiss.1.tmp", (0, 0))
    removed = files.prune({"kept"})
    assert [path.name for path in removed] == ["none-old.faiss", "none-old.json", "none-x.faiss.1.tmp"]
    assert {path.name for path in files.directory.iterdir()} == {
        "none-kept.faiss",
        "none-kept.json",
        "inverse_norm-other.faiss",
        "inverse_norm-other.json",
        "none-y.faiss.2.tmp",  # may still be being written
        "none-notes.txt",
    }


def test_a_failed_write_leaves_nothing_behind(files: ShardFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(source: Path, target: Path) -> None:
        raise OSError("no space left")

    files.write("a", b"first")
    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", fail)
        with pytest.raises(OSError, match="no space"):
            files.write("a", b"second")
    assert files.read("a") == b"first"
    assert len(list(files.directory.iterdir())) == 2
