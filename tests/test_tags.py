"""Tags, notes and the log of changes: filters find them, undo brings back exactly what was, bulk is one by one."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from curator import Curator
from curator.errors import FilterError, NotFoundError, UsageError
from tests.stores import CORPUS, NAMED, QUESTION, SIZE, VALIDATION, add, write_jsonl

WRONG = {row["id"] for row in CORPUS[:SIZE] if row["is_wrong"]}
CAPITALS = {row["id"] for row in CORPUS[:SIZE] if row["task"] == "capital"}


def found(curator: Curator, where: str) -> set[str]:
    return {row["key"] for row in curator.values(**QUESTION, where=where)}


def test_a_tag_is_a_field_of_filters(copied: Curator):
    assert copied.tag("wrong", where="is_wrong = true") == {"change": 1, "tag": "wrong", "samples": len(WRONG)}
    copied.tag("a capital's", where='label = "capital"')
    keys = {row["id"] for row in CORPUS[:SIZE]}
    for where, expected in {
        'tag = "wrong"': WRONG,
        'tag != "wrong"': keys - WRONG,
        'tag in ["wrong", "a capital\'s"]': WRONG | CAPITALS,
        'tag not in ["wrong", "a capital\'s"]': keys - WRONG - CAPITALS,
        'tag contains "CAPITAL"': CAPITALS,
        'tag not contains "capital"': keys - CAPITALS,
        "tag is null": keys - WRONG - CAPITALS,
        "tag is not null": WRONG | CAPITALS,
        'tag = "wrong" and not tag = "a capital\'s"': WRONG - CAPITALS,
        'tag = "wrong" and num_tokens > 0 and id <= 30': WRONG & {row["id"] for row in CORPUS[:30]},
        'tag = "Wrong"': set(),
    }.items():
        assert found(copied, where) == expected, where
    assert copied.tags() == [
        {"tag": "a capital's", "samples": len(CAPITALS)},
        {"tag": "wrong", "samples": len(WRONG)},
    ]
    assert copied.delete('tag = "wrong"') == len(WRONG)
    assert copied.tags() == [{"tag": "a capital's", "samples": len(CAPITALS - WRONG)}]


def test_only_what_changes_is_changed(copied: Curator):
    copied.tag("x", where="id <= 5")
    assert copied.tag("x", where="id <= 8")["samples"] == 3
    assert copied.tag("x", where="id <= 8") == {"change": None, "tag": "x", "samples": 0}
    assert copied.untag("x", where="id >= 5")["samples"] == 4
    assert copied.undo()["done"] == {"tagged": 4}
    assert found(copied, 'tag = "x"') == {row["id"] for row in CORPUS[:8]}
    assert copied.undo(2)["done"] == {"untagged": 3}
    assert found(copied, 'tag = "x"') == {row["id"] for row in CORPUS[:5]}
    assert [(row["change"], row["kind"], row["samples"]) for row in copied.changes()] == [
        (3, "untag", 4),
        (2, "tag", 3),
        (1, "tag", 5),
    ]
    assert copied.changes(1)[0]["undone_at"]
    assert copied.tag("new", where="id < 0")["change"] is None
    assert len(copied.changes()) == 3


def test_bulk_is_one_by_one(copied: Curator):
    copied.tag("bulk", where="is_wrong = true")
    for key in WRONG:
        copied.tag("single", ids=[key])
    copied.tag("numbers", ids=[number for number, row in enumerate(CORPUS[:SIZE], start=1) if row["is_wrong"]])
    assert found(copied, 'tag = "bulk"') == found(copied, 'tag = "single"') == found(copied, 'tag = "numbers"') == WRONG


def test_the_ends_of_an_answer_are_tagged(copied: Curator):
    result = copied.query(**VALIDATION, where="id > 10", top=4, harmful=3)
    copied.tag("top", **VALIDATION, where="id > 10", top=4)
    copied.tag("low", **VALIDATION, where="id > 10", harmful=3)
    assert found(copied, 'tag = "top"') == {item.key for item in result.helpful}
    assert found(copied, 'tag = "low"') == {item.key for item in result.harmful}
    assert copied.changes()[0]["detail"]["harmful"] == 3


def test_notes_are_written_replaced_found_and_taken_back(copied: Curator):
    key = CORPUS[0]["id"]
    copied.note(key, "wrong answer")
    copied.note(key, "right after all")
    assert found(copied, 'note contains "RIGHT"') == {key}
    assert found(copied, "note is not null and id < 100") == {key}
    assert len(found(copied, "note is null")) == SIZE - 1
    assert copied.notes() == [{"id": 1, "key": key, "dataset": "demo", "note": "right after all"}]
    assert copied.note(key, "right after all")["change"] is None
    copied.undo()
    assert copied.notes()[0]["note"] == "wrong answer"
    copied.note(key, "")
    assert copied.notes() == []
    copied.undo()
    copied.undo()
    assert copied.notes() == []
    assert copied.note(key, " ")["change"] is None


def test_a_change_under_another_one_is_not_undone(copied: Curator):
    copied.tag("x", where="id <= 5")
    copied.untag("x", where="id = 5")
    copied.tag("x", where="id = 9")
    copied.delete("id = 1")
    with pytest.raises(UsageError, match=r"change 2 \(untag\) has changed some of the same samples since"):
        copied.undo(1)
    copied.undo(2)
    copied.undo(1)  # what lies on other samples, or is of another kind, is in nobody's way
    assert found(copied, 'tag = "x"') == {CORPUS[8]["id"]}


def test_a_delete_that_was_compacted_is_undone_by_the_next_ingest(copied: Curator, tmp_path: Path):
    copied.tag("x", where="id <= 4")
    copied.delete("id <= 5")
    copied.note(CORPUS[7]["id"], "stays")
    copied.compact()
    done = copied.undo(2)
    assert done["done"] == {"restored": 0, "to_ingest_again": 5, "key_taken": 0}
    assert copied.tags() == []
    assert add(copied, write_jsonl(tmp_path / "corpus.jsonl", CORPUS[:SIZE]), **NAMED).added == 5
    copied.undo(1)  # of samples that are gone: nothing left to do
    assert len(copied.notes()) == 1
    assert copied.verify()["problems"] == []


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda c: c.tag("x"), UsageError, "which samples"),
        (lambda c: c.tag("x", where=" "), FilterError, "would match every sample"),
        (lambda c: c.tag("x", where="nothing = 1"), FilterError, "unknown field"),
        (lambda c: c.tag("x", where="tag < 3"), FilterError, "tag is text"),
        (lambda c: c.tag("x", where="id > 0", ids=[1]), UsageError, "exclude each other"),
        (lambda c: c.tag("x", ids=[1], **QUESTION, top=1), UsageError, "exclude each other"),
        (lambda c: c.tag("x", ids=[1, 99999]), NotFoundError, "no sample with id 99999"),
        (lambda c: c.tag("x", ids=["nobody"]), NotFoundError, "nobody"),
        (lambda c: c.tag("x", **QUESTION), UsageError, "how many samples"),
        (lambda c: c.tag("", where="id > 0"), UsageError, "a tag is"),
        (lambda c: c.tag(" x", where="id > 0"), UsageError, "a tag is"),
        (lambda c: c.tag("a\nb", where="id > 0"), UsageError, "a tag is"),
        (lambda c: c.tag("x" * 201, where="id > 0"), UsageError, "a tag is"),
        (lambda c: c.untag("wrongg", where="id > 0"), NotFoundError, "no tag 'wrongg'; did you mean 'wrong'"),
        (lambda c: c.note("nobody", "x"), NotFoundError, "nobody"),
        (lambda c: c.note(1, "x" * 10_001), UsageError, "a note is up to"),
        (lambda c: c.undo(7), NotFoundError, "no change 7: the newest is 2"),
        (lambda c: c.undo(1), UsageError, "change 1 is undone already"),
        (lambda c: (c.undo(), c.undo()), NotFoundError, "no change to undo"),
        (lambda c: c.delete(), UsageError, "which samples"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(copied: Curator, call: Any, error: Any, message: str):
    copied.tag("old", where="id = 1")
    copied.undo()
    copied.tag("wrong", where="id = 2")
    with pytest.raises(error, match=message):
        call(copied)
    assert len(copied.changes()) == 2


def test_the_command_line_says_the_same(run: Any, copied: Curator):
    store = ["--store", str(copied.path)]
    code, out, _ = run("tag", "wrong", "--where", "is_wrong = true", *store, "--json")
    assert (code, json.loads(out)) == (0, {"change": 1, "tag": "wrong", "samples": len(WRONG)})
    assert run("tag", "wrong", "--where", "is_wrong = true", *store)[1].startswith("nothing changed")
    assert run("untag", "wrong", "--id", min(WRONG), *store)[1] == "change 2: 1 samples untagged wrong\n"
    assert run("tag", "low", "--prompt", "a", "--response", "b", "--harmful", "3", *store)[0] == 0
    assert run("note", min(WRONG), "look again", *store)[0] == 0
    for command, expected in (("tags", copied.tags()), ("notes", copied.notes()), ("changes", copied.changes())):
        assert [json.loads(line) for line in run(command, *store, "--json")[1].splitlines()] == expected
        assert run(command, *store)[0] == 0
    code, out, _ = run("undo", *store)
    assert (code, out) == (0, "change 4 is taken back: note: 1 samples, after look again\n")
    code, out, _ = run("undo", "--change", "2", *store, "--json")
    assert json.loads(out)["done"] == {"tagged": 1}
    code, _, err = run("undo", "--change", "2", *store)
    assert (code, "undone already" in err) == (2, True)
    assert run("undo", "--change", "9", *store)[0] == 4
    assert run("untag", "none", "--where", "id > 0", *store)[0] == 4


@pytest.fixture(scope="module")
def for_states(tmp_path_factory: pytest.TempPathFactory) -> Any:
    folder = tmp_path_factory.mktemp("states")
    with Curator.open(folder / "store", device="cpu") as curator:
        add(curator, folder / "a.jsonl", CORPUS[:10], **NAMED)
        yield curator


IDS = st.sets(st.integers(1, 10), min_size=1, max_size=4)
TAGS = st.sampled_from(["a", "b"])


@settings(max_examples=15, stateful_step_count=20, suppress_health_check=list(HealthCheck))
class Changes(RuleBasedStateMachine):
    """Any order of changes and undos agrees with a model that knows only sets and whole former states."""

    curator: Curator

    @initialize()
    def start(self) -> None:
        while any(not row["undone_at"] for row in self.curator.changes()):
            self.curator.undo()
        self.state: dict[str, set[int]] = {"a": set(), "b": set(), "deleted": set()}
        self.log: list[tuple[int, str, str, set[int]]] = []  # number, name, what undoes it, ids

    def done(self, change: int | None, name: str, opposite: str, changed: set[int]) -> None:
        assert (change is None) == (not changed)
        if changed:
            assert change is not None
            self.state[name] ^= changed
            self.log.append((change, name, opposite, changed))

    def newest(self) -> int | None:
        return self.curator.changes(1)[0]["change"]

    @rule(name=TAGS, ids=IDS)
    def tag(self, name: str, ids: set[int]) -> None:
        where = f"id in [{', '.join(map(str, ids))}]"
        done = self.curator.tag(name, where=where)
        self.done(done["change"], name, "untag", ids - self.state[name] - self.state["deleted"])

    @rule(name=TAGS, ids=IDS)
    def untag(self, name: str, ids: set[int]) -> None:
        try:
            done = self.curator.untag(name, ids=list(ids))
        except NotFoundError:
            assert not self.state[name]
            return
        self.done(done["change"], name, "tag", (ids & self.state[name]) - self.state["deleted"])

    @rule(ids=IDS)
    def delete(self, ids: set[int]) -> None:
        changed = ids - self.state["deleted"]
        assert self.curator.delete(ids=list(ids)) == len(changed)
        self.done(self.newest() if changed else None, "deleted", "restore", changed)

    @rule(ids=IDS)
    def restore(self, ids: set[int]) -> None:
        changed = ids & self.state["deleted"]
        done = self.curator.restore(f"id in [{', '.join(map(str, ids))}]")
        assert done["restored"] == len(changed)
        self.done(self.newest() if changed else None, "deleted", "delete", changed)

    @precondition(lambda self: self.log)
    @rule(data=st.data())
    def undo(self, data: st.DataObject) -> None:
        at = data.draw(st.integers(0, len(self.log) - 1))
        number, name, _, changed = self.log[at]
        if any(other == name and touched & changed for _, other, _, touched in self.log[at + 1 :]):
            with pytest.raises(UsageError):
                self.curator.undo(number)
            return
        assert self.curator.undo(number)["change"] == number
        self.state[name] ^= changed
        del self.log[at]

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "state"):
            return
        live = set(range(1, 11)) - self.state["deleted"]
        for name in ("a", "b"):
            bearing = [row["samples"] for row in self.curator.tags() if row["tag"] == name]
            assert bearing == ([len(self.state[name] & live)] if self.state[name] & live else [])
        with self.curator._store.session() as session:
            rows = session.connection().exec_driver_sql("select id, deleted_at is not null from samples").all()
            tagged = session.connection().exec_driver_sql(
                "select name, sample_id from sample_tags join tags on tags.id = tag_id"
            )
            pairs = {tuple(row) for row in tagged}
        assert {id_ for id_, is_deleted in rows if is_deleted} == self.state["deleted"]
        assert pairs == {(name, id_) for name in ("a", "b") for id_ in self.state[name]}


def test_any_order_of_changes_and_undos_agrees_with_plain_sets(for_states: Curator):
    """The machine's invariant asserts it after every step."""
    machine = type("Changes", (Changes,), {"curator": for_states})
    machine.TestCase.settings = Changes.TestCase.settings
    machine.TestCase().runTest()
