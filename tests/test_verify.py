"""Verify: whatever is damaged is found and named, and a question says so too where it meets it."""

from collections.abc import Callable
from pathlib import Path

import pytest
import sqlalchemy as sa

from curator import Curator
from curator.errors import CuratorError, IntegrityError
from curator.store import Store
from tests.stores import QUESTION, SIZE


def problems(store: Path) -> list[str]:
    with Curator.open(store, create=False, device="cpu") as curator:
        return list(curator.verify()["problems"])


def ask(store: Path) -> None:
    with Curator.open(store, create=False, device="cpu") as curator:
        list(curator.queries(**QUESTION, rerank=100))


def test_a_sound_store(asked: Curator):
    found = asked.verify()
    assert found["problems"] == []
    assert (found["spaces"], found["samples"]) == (1, SIZE)
    assert found["files"] == 1 + 3 * found["segments"]
    folders = [asked.path / "segments", asked.path / "spaces"]
    assert found["bytes"] == sum(p.stat().st_size for f in folders for p in f.rglob("*.safetensors"))


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-20] ^= 1
    path.write_bytes(data)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


FILES = ["segments/*/sketches.safetensors", "segments/*/factors.safetensors", "spaces/*/projection.safetensors"]
LISTS = "segments/*/rare_tokens.safetensors"


@pytest.mark.parametrize("pattern", [*FILES, LISTS])
@pytest.mark.parametrize("damage", [flip, cut, Path.unlink])
def test_every_damaged_file_is_named(store: Path, pattern: str, damage: Callable[[Path], None]):
    path = sorted(store.glob(pattern))[0]
    damage(path)
    found = problems(store)
    assert len(found) == 1
    assert str(path) in found[0]


@pytest.mark.parametrize("pattern", FILES)
@pytest.mark.parametrize("damage", [cut, Path.unlink])
def test_a_question_names_a_missing_or_cut_file(store: Path, pattern: str, damage: Callable[[Path], None]):
    path = sorted(store.glob(pattern))[0]
    damage(path)
    with pytest.raises(IntegrityError, match="run: curator verify") as caught:
        ask(store)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("delete from samples where id = 3", "holds"),
        ("update samples set num_counted = num_counted + 1 where id = 3", "tokens"),
        ("update segments set num_tokens = 1 where id = 1", "counts differ"),
        ("update counters set value = 5 where name = 'next_sample_id'", "the id counter is at 5"),
        ("update samples set segment_id = null where id = 3", "have no segment"),
    ],
)
def test_a_database_that_disagrees_is_found(store: Path, statement: str, problem: str):
    opened = Store(store)
    with opened.engine.begin() as connection:
        connection.execute(sa.text("pragma foreign_keys=off"))
        connection.execute(sa.text(statement))
    opened.close()
    found = problems(store)
    assert any(problem in line for line in found), found


def test_a_database_that_is_none_is_a_clear_error(store: Path):
    (store / "curator.db").write_bytes(b"no database" * 1000)
    with pytest.raises(CuratorError, match="cannot be opened"):
        Curator.open(store)


def test_the_vector_index_is_a_cache(indexed: Curator):
    """Whatever happens to its files, the answer stays."""
    store = indexed.path

    def answer() -> list[tuple[int, float]]:
        with Curator.open(store, create=False, device="cpu") as curator:
            found = [(item.id, item.value) for item in curator.query(**QUESTION).helpful]
            assert curator._opened is not None
            assert curator._opened.answering is not None
            curator._opened.answering.indexes.wait()  # the files are damaged next: nobody may be writing them
            return found

    before = answer()
    for damage in (flip, cut, Path.unlink):
        files = [path for path in (store / "indexes").rglob("*") if path.is_file()]
        assert files
        for path in files:
            damage(path)
        assert answer() == before
    assert problems(store) == []
