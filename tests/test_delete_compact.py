"""Delete, restore, compact: gone means gone from every answer, and nothing else changes."""

from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curator import Curator
from curator.errors import FilterError
from curator.value import METHODS
from tests.stores import CORPUS, NAMED, QUESTION, SIZE, add, contents, values_of, write_jsonl

KEYS = [row["id"] for row in CORPUS[:SIZE]]
WRONG = {row["id"] for row in CORPUS[:SIZE] if row["is_wrong"]}


def answered(curator: Curator, **how: Any) -> set[str]:
    result = curator.query(**QUESTION, top=SIZE, harmful=SIZE, **how)
    assert {item.key for item in result.helpful} == {item.key for item in result.harmful}
    return {item.key for item in result.helpful}


def stored(curator: Curator) -> dict[int, tuple[bytes, ...]]:
    """Every byte that is kept of every sample, by id."""
    store = curator._store
    with store.session() as session:
        found = {}
        for segment in store.segments(session, 1):
            for row, id_ in enumerate(segment.ids.tolist()):
                factors = segment.factors(row)
                parts = [segment.norms[row], *segment.quantized(np.array([row]))]
                parts += [getattr(factors, field.name) for field in fields(factors)]
                found[id_] = tuple(np.asarray(part).tobytes() for part in parts)
    return found


@pytest.mark.parametrize("method", METHODS)
def test_deleted_samples_are_in_no_answer_and_restored_ones_are(copied: Curator, method: Any):
    before = values_of(copied, **QUESTION, method=method)
    assert copied.delete("is_wrong = true") == len(WRONG) > 3
    assert copied.delete("is_wrong = true") == 0
    left = set(KEYS) - WRONG
    for how in ({"rerank": 0}, {}, {"exact": True}, {"where": "id > 0"}):
        assert answered(copied, method=method, **how) == left
    assert copied.query(**QUESTION, where="is_wrong = true").helpful == []
    assert copied.query(**QUESTION).how.num_samples == len(left)
    assert set(values_of(copied, **QUESTION, method=method)) == left
    assert copied.restore("is_wrong = true") == {"restored": len(WRONG), "to_ingest_again": 0, "key_taken": 0}
    assert values_of(copied, **QUESTION, method=method) == before
    assert answered(copied, method=method) == set(KEYS)


@pytest.mark.parametrize("where", ["", "   "])
def test_an_empty_filter_deletes_nothing(copied: Curator, where: str):
    with pytest.raises(FilterError, match="would match every sample"):
        copied.delete(where)
    with pytest.raises(FilterError, match="would match every sample"):
        copied.restore(where)
    assert len(contents(copied)) == SIZE


def test_compaction_keeps_every_byte_of_what_stays(copied: Curator):
    before, values = stored(copied), values_of(copied, **QUESTION)
    files = set((copied.path / "segments").iterdir())
    copied.delete("is_wrong = true")
    gone = {id_ for id_, key in enumerate(KEYS, start=1) if key in WRONG}
    done = copied.compact()
    assert done["samples_removed"] == len(WRONG)
    assert (done["segments_before"], done["segments_after"]) == (len(files), 1)
    assert done["bytes_reclaimed"] > 0
    assert stored(copied) == {id_: parts for id_, parts in before.items() if id_ not in gone}
    assert values_of(copied, **QUESTION) == pytest.approx({k: values[k] for k in KEYS if k not in WRONG}, rel=1e-5)
    assert not files & set((copied.path / "segments").iterdir())
    assert copied.verify()["problems"] == []
    assert copied.compact()["segments_after"] == 1  # and nothing left to do
    assert answered(copied) == set(KEYS) - WRONG


def test_no_file_keeps_a_deleted_sample(indexed: Curator):
    copied = indexed
    answered(copied)
    copied.delete(f'key = "{KEYS[0]}"')
    copied.compact()
    assert not any((copied.path / "indexes").rglob("*.faiss"))
    with copied._store.session() as session:
        assert session.connection().exec_driver_sql("select count(*) from samples where prompt is null").scalar() == 1
        found = session.connection().exec_driver_sql("select prompt from samples where id = 1").scalar()
    assert found is None


def test_everything_may_be_deleted(copied: Curator, tmp_path: Path):
    copied.delete("id > 0")
    assert copied.compact()["segments_after"] == 0
    assert list((copied.path / "segments").iterdir()) == []
    assert contents(copied) == []
    assert answered(copied) == set()
    assert copied.verify()["problems"] == []
    assert add(copied, tmp_path / "b.jsonl", CORPUS[70:73], dataset="next").added == 3
    assert [id_ for id_, _, _ in contents(copied)] == [SIZE + 1, SIZE + 2, SIZE + 3]  # ids are never given twice


def test_deleted_rows_do_not_come_back_by_themselves(copied: Curator, tmp_path: Path):
    data = write_jsonl(tmp_path / "corpus.jsonl", CORPUS[:SIZE])
    before = contents(copied)
    copied.delete("id <= 5")
    for _ in range(2):
        report = add(copied, data, **NAMED, reread=True)
        assert (report.added, report.deleted, report.present) == (0, 5, SIZE - 5)
        copied.compact()
    assert [row[:2] for row in contents(copied)] == [row[:2] for row in before[5:]]


def test_what_was_compacted_away_comes_back_with_its_source(copied: Curator, tmp_path: Path):
    before = values_of(copied)
    copied.delete("id <= 5")
    copied.compact()
    copied.delete("id = 6")
    assert copied.restore("id <= 6") == {"restored": 1, "to_ingest_again": 5, "key_taken": 0}
    assert set(values_of(copied)) == set(KEYS[5:])
    report = add(copied, write_jsonl(tmp_path / "corpus.jsonl", CORPUS[:SIZE]), **NAMED)
    assert (report.added, report.present) == (5, SIZE - 5)
    after = contents(copied)
    assert sorted(id_ for id_, _, _ in after) == [*range(6, SIZE + 1), *range(SIZE + 1, SIZE + 6)]
    assert values_of(copied) == pytest.approx(before, rel=1e-3, abs=1e-3)
    assert copied.verify()["problems"] == []


@pytest.mark.parametrize("place", ["write_segment", "rows_changed"])
def test_a_failed_compaction_changes_nothing(copied: Curator, monkeypatch: pytest.MonkeyPatch, place: str):
    copied.delete("is_wrong = true")
    before, values = stored(copied), values_of(copied)

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"curator.compact.{place}", fail)
    with pytest.raises(OSError, match="No space left"):
        copied.compact()
    monkeypatch.undo()
    assert stored(copied) == before
    assert values_of(copied) == values
    assert copied.verify()["problems"] == []
    assert copied.compact()["samples_removed"] == len(WRONG)
    assert set(values_of(copied)) == set(values)


def test_compaction_stopped_between_two_groups_is_taken_up_again(copied: Curator, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("curator.compact._MAX_SAMPLES", 30)
    copied.delete("is_wrong = true")
    left = values_of(copied)
    from curator import compact

    rewrite, done = compact._rewrite, []

    def once(*arguments: Any) -> int:
        if done:
            raise KeyboardInterrupt
        done.append(arguments)
        return rewrite(*arguments)

    monkeypatch.setattr("curator.compact._rewrite", once)
    with pytest.raises(KeyboardInterrupt):
        copied.compact()
    monkeypatch.setattr("curator.compact._rewrite", rewrite)
    assert copied.verify()["problems"] == []
    assert values_of(copied) == pytest.approx(left, rel=1e-5)
    assert copied.compact()["segments_after"] > 1
    assert values_of(copied) == pytest.approx(left, rel=1e-5)
    on_disk = {path.name for path in (copied.path / "segments").iterdir()}
    assert len(on_disk) == copied.status()["spaces"][0]["segments"]


STEPS = st.lists(
    st.tuples(st.sampled_from(["delete", "restore", "compact", "ingest"]), st.integers(1, 12), st.integers(0, 6)),
    max_size=6,
)


@given(steps=STEPS)
@settings(max_examples=6, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_order_of_changes_agrees_with_a_plain_set(tmp_path_factory: pytest.TempPathFactory, steps: list[Any]):
    """The model: rows are live, deleted, or compacted away; restoring the last lets the next ingest add them."""
    folder = tmp_path_factory.mktemp("steps")
    data = write_jsonl(folder / "a.jsonl", CORPUS[:12])
    with Curator.open(folder / "store", device="cpu") as curator:
        add(curator, data, segment_samples=5)
        state = {f"demo:{row}": "live" for row in range(12)}
        for step, first, length in steps:
            chosen = {f"demo:{row}" for row in range(first - 1, min(12, first + length))}
            where = "key in [" + ", ".join(f'"{key}"' for key in sorted(chosen)) + "]"
            if step == "delete":
                curator.delete(where)
                state |= {key: "deleted" for key in chosen if state[key] == "live"}
            elif step == "restore":
                curator.restore(where)
                back = {"deleted": "live", "compacted": "unknown"}
                state |= {key: back.get(state[key], state[key]) for key in chosen}
            elif step == "compact":
                curator.compact()
                state |= {key: "compacted" for key, was in state.items() if was == "deleted"}
            else:
                add(curator, data)
                state |= {key: "live" for key, was in state.items() if was == "unknown"}
            live = {key for key, was in state.items() if was == "live"}
            assert set(values_of(curator)) == live
        assert curator.verify()["problems"] == []
