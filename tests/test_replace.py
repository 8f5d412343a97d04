"""A row of a known key with another content is a new version: one of the two answers, never both or none."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from curator import Curator
from curator.errors import UsageError
from tests.stores import CORPUS, NAMED, QUESTION, add, contents, values_of, write_jsonl

FEW = CORPUS[:6]
KEY = FEW[2]["id"]


def changed(row: dict[str, Any], response: str = " something else") -> dict[str, Any]:
    return {**row, "response": response}


CHANGED = [*FEW[:2], changed(FEW[2]), *FEW[3:]]


def texts(curator: Curator) -> dict[str, str]:
    """The text that answers under each key; fails where two samples answer under one."""
    found = curator.query(**QUESTION, top=1000).helpful
    assert len({item.key for item in found}) == len(found)
    return {item.key: item.text for item in found}


def expected(rows: list[dict[str, Any]]) -> dict[str, str]:
    return {row["id"]: row["prompt"] + row["response"] for row in rows}


def test_a_changed_row_takes_the_old_ones_place(empty: Curator, tmp_path: Path):
    add(empty, tmp_path / "a.jsonl", FEW, **NAMED)
    report = add(empty, tmp_path / "a.jsonl", CHANGED, **NAMED)
    assert (report.added, report.replaced, report.present, report.num_samples) == (0, 1, 5, 6)
    assert texts(empty) == expected(CHANGED)
    values = values_of(empty)
    add(empty, tmp_path / "b.jsonl", CHANGED, dataset="new", **NAMED)
    fresh = values_of(empty, **QUESTION, where='dataset = "new"')
    assert values == pytest.approx(fresh, abs=1e-4 * max(map(abs, fresh.values())))
    again = add(empty, tmp_path / "a.jsonl", reread=True, **NAMED)
    assert (again.replaced, again.present) == (0, 6)
    assert empty.verify()["problems"] == []


@pytest.mark.parametrize("is_compacted", [False, True])
def test_a_row_that_is_as_it_was_brings_the_old_version_back(empty: Curator, tmp_path: Path, is_compacted: bool):
    add(empty, tmp_path / "a.jsonl", FEW, **NAMED)
    before = values_of(empty)
    for _ in range(2):
        assert add(empty, tmp_path / "a.jsonl", CHANGED, **NAMED).replaced == 1
        assert texts(empty) == expected(CHANGED)
        if is_compacted:
            empty.compact()
        report = add(empty, tmp_path / "a.jsonl", FEW, **NAMED)
        assert (report.added, report.replaced, report.num_samples) == (0, 1, 6)
        assert texts(empty) == expected(FEW)
        assert values_of(empty) == pytest.approx(before, rel=1e-5)
    assert empty.verify()["problems"] == []


def test_tags_and_notes_go_with_the_key(empty: Curator, tmp_path: Path):
    add(empty, tmp_path / "a.jsonl", FEW, **NAMED)
    empty.tag("seen", where="id <= 4")
    empty.note(KEY, "look")
    add(empty, tmp_path / "a.jsonl", CHANGED, **NAMED)
    assert {row["key"] for row in empty.values(**QUESTION, where='tag = "seen"')} == {row["id"] for row in FEW[:4]}
    assert [(row["key"], row["note"]) for row in empty.notes()] == [(KEY, "look")]
    assert empty.tags() == [{"tag": "seen", "samples": 4}]
    empty.note(KEY, "looked")
    add(empty, tmp_path / "a.jsonl", FEW, **NAMED)
    assert [row["note"] for row in empty.notes()] == ["looked"]
    empty.undo(1)  # what was tagged before there was another version loses the tag in every version
    assert empty.tags() == []
    assert add(empty, tmp_path / "a.jsonl", CHANGED, **NAMED).replaced == 1
    assert empty.tags() == []


def test_a_replacement_is_a_change_that_can_be_undone(empty: Curator, tmp_path: Path):
    add(empty, tmp_path / "a.jsonl", FEW, **NAMED)
    rows = [changed(FEW[0]), changed(FEW[1]), *CHANGED[2:]]
    add(empty, tmp_path / "a.jsonl", rows, segment_samples=1, **NAMED)
    (change,) = empty.changes()
    assert (change["kind"], change["samples"], change["detail"]) == ("replace", 3, {"dataset": "demo"})
    assert empty.undo()["done"] == {"restored": 3, "deleted": 3, "compacted": 0}
    assert texts(empty) == expected(FEW)
    report = add(empty, tmp_path / "a.jsonl", reread=True, **NAMED)  # what the user took back stays away
    assert (report.added, report.replaced, report.deleted, report.present) == (0, 0, 3, 3)
    assert texts(empty) == expected(FEW)


def test_replacements_lie_on_each_other_like_plates(empty: Curator, tmp_path: Path):
    add(empty, tmp_path / "a.jsonl", FEW, **NAMED)
    add(empty, tmp_path / "a.jsonl", CHANGED, **NAMED)
    add(empty, tmp_path / "a.jsonl", FEW, **NAMED)
    third = [*FEW[:2], changed(FEW[2], " a third"), *FEW[3:]]
    add(empty, tmp_path / "a.jsonl", third, **NAMED)
    with pytest.raises(UsageError, match=r"change 3 \(replace\) has changed some of the same samples since"):
        empty.undo(1)
    for rows in (FEW, CHANGED, FEW):
        empty.undo()
        assert texts(empty) == expected(rows)


def test_compacted_versions_cannot_come_back_by_undo_and_the_new_one_stays(empty: Curator, tmp_path: Path):
    add(empty, tmp_path / "a.jsonl", FEW, **NAMED)
    add(empty, tmp_path / "a.jsonl", CHANGED, **NAMED)
    empty.compact()
    assert empty.undo()["done"] == {"restored": 0, "deleted": 0, "compacted": 1}
    assert texts(empty) == expected(CHANGED)


def test_what_the_user_deleted_stays_deleted_until_its_content_changes(empty: Curator, tmp_path: Path):
    add(empty, tmp_path / "a.jsonl", FEW, **NAMED)
    empty.delete(f'key = "{KEY}"')
    assert add(empty, tmp_path / "a.jsonl", reread=True, **NAMED).deleted == 1
    report = add(empty, tmp_path / "a.jsonl", CHANGED, **NAMED)
    assert (report.added, report.replaced, report.present) == (1, 0, 5)
    assert texts(empty) == expected(CHANGED)
    assert add(empty, tmp_path / "a.jsonl", FEW, **NAMED).deleted == 1


def test_restore_does_not_bring_back_older_versions(empty: Curator, tmp_path: Path):
    add(empty, tmp_path / "a.jsonl", FEW, **NAMED)
    add(empty, tmp_path / "a.jsonl", CHANGED, **NAMED)
    where = f'key = "{KEY}"'
    assert empty.restore(where)["restored"] == 0
    empty.delete(where)
    assert empty.restore(where)["restored"] == 1
    assert texts(empty) == expected(CHANGED)


def test_a_row_that_cannot_be_used_any_more_leaves_the_old_version(empty: Curator, tmp_path: Path):
    add(empty, tmp_path / "a.jsonl", FEW, **NAMED)
    report = add(empty, tmp_path / "a.jsonl", [*FEW[:2], changed(FEW[2], " "), *FEW[3:]], **NAMED)
    assert (report.quarantined, report.replaced) == (1, 0)
    assert texts(empty) == expected(FEW)


def test_the_first_of_two_rows_with_one_key_counts_however_the_rows_are_cut(empty: Curator, tmp_path: Path):
    first, second, other = changed(FEW[0], " one"), changed(FEW[0], " two"), changed(FEW[1], " three")
    add(empty, tmp_path / "a.jsonl", FEW, **NAMED)
    rows = [first, FEW[0], second, FEW[1], other, *FEW[2:]]
    for size in (1, 2, 100):
        add(empty, tmp_path / "a.jsonl", FEW, **NAMED)
        report = add(empty, tmp_path / "a.jsonl", rows, segment_samples=size, **NAMED)
        assert (report.replaced, report.quarantined, report.present) == (1, 3, 5), size
        assert texts(empty) == expected([first, *FEW[1:]])


def test_rows_without_ids_are_not_replaced(empty: Curator, tmp_path: Path):
    add(empty, tmp_path / "a.jsonl", FEW)
    report = add(empty, tmp_path / "a.jsonl", CHANGED)
    assert (report.added, report.replaced, report.num_samples) == (1, 0, 7)


START = """
import sys
from curator import Curator
with Curator.open(sys.argv[1], device="cpu") as curator:
    curator.ingest(sys.argv[2], dataset="demo", segment_samples=1, prompt_field="prompt", response_field="response",
                   id_field="id", label_field="task")
"""


@pytest.mark.slow
def test_killed_anywhere_one_version_of_every_key_answers(empty: Curator, tmp_path: Path):
    rows = CORPUS[:40]
    add(empty, tmp_path / "a.jsonl", rows, **NAMED)
    empty.tag("seen", where="id > 0")
    other = [changed(row) for row in rows]
    store = empty.path
    empty.close()
    for round_ in range(6):
        new = other if round_ % 2 == 0 else rows
        write_jsonl(tmp_path / "a.jsonl", new)
        process = subprocess.Popen([sys.executable, "-c", START, str(store), str(tmp_path / "a.jsonl")])
        deadline = time.monotonic() + 60
        while process.poll() is None and not is_writing(store) and time.monotonic() < deadline:
            time.sleep(0.0005)
        time.sleep(0.03 * round_)
        process.send_signal(signal.SIGKILL)
        process.wait()
        with Curator.open(store, create=False, device="cpu") as curator:
            found = texts(curator)
            assert found.keys() == {row["id"] for row in rows}
            assert all(found[key] in (expected(rows)[key], expected(other)[key]) for key in found)
            assert curator.tags() == [{"tag": "seen", "samples": 40}]
            add(curator, tmp_path / "a.jsonl", **NAMED)
            assert texts(curator) == expected(new)
            assert curator.verify()["problems"] == []
            assert len(contents(curator)) == 40


def is_writing(store: Path) -> bool:
    return any(name.startswith("0") for name in os.listdir(store / "tmp"))


def test_the_command_line_counts_what_was_replaced(run: Any, empty: Curator, tmp_path: Path):
    add(empty, tmp_path / "a.jsonl", FEW, **NAMED)
    write_jsonl(tmp_path / "a.jsonl", CHANGED)
    store = ["--store", str(empty.path)]
    columns = ["--prompt-field", "prompt", "--response-field", "response", "--id-field", "id", "--label-field", "task"]
    command = ["ingest", str(tmp_path / "a.jsonl"), *store, "--dataset", "demo", *columns, "--device", "cpu"]
    code, out, _ = run(*command)
    assert (code, out.splitlines()[0]) == (0, "dataset demo: 0 samples added, 1 replaced, 6 in all")
    assert "6 rows not read again" in run(*command)[1]
    assert "replace" in run("changes", *store)[1]
    assert run("undo", *store)[0] == 0
