"""The store's directory: made once, written by one, swept of what no commit names."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from curator import Curator
from curator.errors import CuratorError, IntegrityError, LockedError, NotFoundError, UsageError
from curator.store import Store
from tests.stores import CORPUS, QUESTION, SIZE, add, contents


def test_a_store_is_made_where_there_is_none(tmp_path: Path):
    with Curator.open(tmp_path / "deep" / "store") as curator:
        assert curator.status() == {"store": str(tmp_path / "deep" / "store"), "spaces": [], "datasets": []}
    with Curator.open(tmp_path / "deep" / "store", create=False) as curator:
        assert curator.verify()["problems"] == []


def test_a_missing_store_is_not_made_by_asking(tmp_path: Path):
    with pytest.raises(NotFoundError, match="no store at"):
        Curator.open(tmp_path / "store", create=False)
    assert not (tmp_path / "store").exists()


@pytest.mark.parametrize("name", ["notes.txt", "tmp/mine.txt", "segments/a/b"])
def test_a_directory_in_other_use_stays_as_it_is(tmp_path: Path, name: str):
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text("mine")
    with pytest.raises(UsageError, match="is not empty and holds no store"):
        Curator.open(tmp_path)
    assert [path.read_text() for path in tmp_path.rglob("*") if path.is_file()] == ["mine"]


def test_a_creation_that_was_killed_is_taken_up_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("curator.store._write_durably", interrupt)
    with pytest.raises(KeyboardInterrupt):
        Curator.open(tmp_path / "store")
    monkeypatch.undo()
    (tmp_path / "store" / "FORMAT_VERSION.new").write_text("{")
    with Curator.open(tmp_path / "store") as curator:
        assert curator.status()["spaces"] == []


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("marker", "error"),
    [
        ("", IntegrityError),
        ("{", IntegrityError),
        ("[]", IntegrityError),
        ("7", IntegrityError),
        ('{"format": 1}', IntegrityError),
        ('{"format": 1, "database": "sqlite"}', IntegrityError),
        ('{"format": 2, "database": "sqlite"}', CuratorError),
    ],
)
def test_a_damaged_or_newer_layout_is_refused(store: Path, marker: str, error: type[CuratorError]):
    (store / "FORMAT_VERSION").write_text(marker)
    with pytest.raises(CuratorError) as caught:
        Curator.open(store)
    assert type(caught.value) is error
    assert str(store) in str(caught.value)


def test_a_newer_schema_is_refused(store: Path):
    opened = Store(store)
    with opened.engine.begin() as connection:
        connection.execute(sa.text("update alembic_version set version_num = '9999'"))
    opened.close()
    with pytest.raises(CuratorError, match="9999 is newer than this version"):
        Curator.open(store)


def test_a_lost_database_is_no_empty_store(store: Path):
    (store / "curator.db").unlink()
    with pytest.raises(NotFoundError, match="holds no store"):
        Curator.open(store)


def test_the_next_writer_sweeps_what_no_commit_names(copied: Curator, tmp_path: Path):
    before = contents(copied)
    for name in ("segments/000000000099-abc/x", "spaces/ffff/projection.safetensors", "tmp/x/y", "tmp/half"):
        (copied.path / name).parent.mkdir(parents=True, exist_ok=True)
        (copied.path / name).write_text("left over")
    assert copied.delete("id < 0") == 0
    left = {path for folder in ("segments", "spaces", "tmp") for path in (copied.path / folder).glob("*")}
    assert {path.name for path in left} & {"000000000099-abc", "ffff", "x", "half"} == set()
    assert contents(copied) == before
    assert copied.verify()["problems"] == []


def test_a_failed_commit_leaves_the_store_as_it_was(copied: Curator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    before = contents(copied)
    monkeypatch.setattr("curator.ingest.segment_writer.commit_segment", fail)
    with pytest.raises(RuntimeError, match="disk"):
        add(copied, tmp_path / "b.jsonl", CORPUS[:8], dataset="again")
    monkeypatch.undo()
    assert contents(copied) == before
    assert copied.verify()["problems"] == []
    assert add(copied, tmp_path / "b.jsonl", dataset="again").added == 8
    assert [id_ for id_, _, _ in contents(copied)] == list(range(1, SIZE + 9))


def fail(*_: Any, **__: Any) -> None:
    raise RuntimeError("the disk is full")


def test_one_writes_and_others_ask(copied: Curator, tmp_path: Path):
    """During an ingest: every other write is refused at once, queries see whole segments as they are committed."""
    seen: list[int] = []

    def meanwhile(progress: Any) -> None:
        if progress.committed == 4 and not seen:
            with Curator.open(copied.path, create=False, device="cpu") as other:
                for work in (
                    lambda: add(other, tmp_path / "c.jsonl", CORPUS[8:9]),
                    lambda: other.delete("id > 0"),
                    lambda: other.restore("id > 0"),
                    other.compact,
                ):
                    with pytest.raises(LockedError, match=r"another process \(pid \d+\) writes"):
                        work()
                seen.append(len(contents(other)))
                assert other.query(**QUESTION).helpful
                assert other.verify()["problems"] == []

    add(copied, tmp_path / "b.jsonl", CORPUS[:8], dataset="again", segment_samples=4, on_progress=meanwhile)
    assert seen in ([SIZE + 4], [SIZE + 8])  # the second one may be in by the time of the look
    assert len(contents(copied)) == SIZE + 8
    assert copied.delete("id > 1000") == 0  # the lock is free again


@pytest.mark.slow
def test_another_process_is_refused_in_one_line(copied: Curator):
    command = [sys.executable, "-m", "curator", "delete", "--store", str(copied.path), "--where", "id > 0"]
    with copied._store.writing():
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (6, "")
    assert done.stderr.startswith("curator: another process (pid ")
    assert done.stderr.count("\n") == 1


def test_an_opened_store_sees_what_others_commit(copied: Curator, tmp_path: Path):
    """One process keeps its Curator open while another adds, deletes, restores and compacts."""
    assert len(contents(copied)) == SIZE
    with Curator.open(copied.path, device="cpu") as other:
        add(other, tmp_path / "b.jsonl", CORPUS[:8], dataset="again")
        assert len(contents(copied)) == SIZE + 8
        other.delete("id <= 10")
        assert len(contents(copied)) == SIZE - 2
        other.compact()
        assert len(contents(copied)) == SIZE - 2
        assert all(item.id > 10 for item in copied.query(**QUESTION, top=100).helpful)
        other.restore("id <= 10")
        other.delete('dataset = "again"')
        other.restore('dataset = "again"')
        assert len(contents(copied)) == SIZE - 2


def test_the_marker_says_where_the_database_is(tmp_path: Path):
    url = f"sqlite:///{tmp_path / 'elsewhere.db'}"
    with Curator.open(tmp_path / "store", database_url=url):
        marker = json.loads((tmp_path / "store" / "FORMAT_VERSION").read_text())
        assert marker.pop("id") > 0
        assert marker == {"format": 1, "database": "url"}
    with pytest.raises(UsageError, match="set CURATOR_DATABASE_URL"):
        Curator.open(tmp_path / "store")
    with Curator.open(tmp_path / "store", database_url=url) as curator:
        assert curator.status()["spaces"] == []
    assert not (tmp_path / "store" / "curator.db").exists()
