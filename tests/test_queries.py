"""Saved queries answer as the queries they were made of, without the model, in Python and on the command line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curator import Curator, demo
from curator.errors import IntegrityError, NotFoundError, SpaceError, UsageError
from curator.models import CausalLM
from tests.stores import CORPUS, FIELDS, NAMED, QUESTION, SIZE, VALIDATION, add, values_of

OTHER = {"data": demo.VALIDATION["sentiment"], **FIELDS}


def refuse(*arguments: Any, **options: Any) -> Any:
    raise AssertionError("the model was loaded")


@pytest.fixture
def saved(copied: Curator) -> Curator:
    """A store with two saved queries."""
    copied.save_query("good", **VALIDATION)
    copied.save_query("other", **OTHER)
    return copied


@pytest.fixture
def without_model(saved: Curator, monkeypatch: pytest.MonkeyPatch) -> Curator:
    """The same, opened anew where no model can be loaded."""
    monkeypatch.setattr(CausalLM, "load", refuse)
    return Curator.open(saved.path, create=False, device="cpu")


@pytest.mark.parametrize("method", ["raw", "cosine", "preconditioned"])
def test_a_saved_query_answers_as_the_query_itself_and_loads_no_model(
    saved: Curator, without_model: Curator, method: Any
) -> None:
    """What is kept is all that answers see, to float16 of what lies outside the sketch."""
    expected, found = saved.query(**VALIDATION, method=method), without_model.query(saved="good", method=method)
    for end in ("helpful", "harmful"):
        one, other = getattr(expected, end), getattr(found, end)
        assert [item.id for item in one] == [item.id for item in other]
        largest = max(abs(item.value) for item in one)
        np.testing.assert_allclose([i.value for i in other], [i.value for i in one], atol=2e-4 * largest)
    assert found.how.captured == pytest.approx(expected.how.captured, rel=1e-5)
    assert found.query == {"saved": "good", **{k: v for k, v in expected.query.items() if k != "data"}}


def test_values_of_an_expression_are_that_expression_of_values(saved: Curator, without_model: Curator) -> None:
    good, other = values_of(saved, **VALIDATION), values_of(saved, **OTHER)
    found = values_of(without_model, expr="2 * good - other / 4")
    assert found == pytest.approx({key: 2 * good[key] - other[key] / 4 for key in good}, rel=1e-4, abs=1e-6)


def test_the_exact_tier_of_a_saved_query_is_that_of_the_query(saved: Curator) -> None:
    expected = saved.query(**VALIDATION, exact=True, rerank=20)
    found = saved.query(saved="good", exact=True, rerank=20)
    assert [i.value for i in found.helpful] == pytest.approx([i.value for i in expected.helpful], rel=1e-5)


def test_an_expression_can_be_saved_and_outlives_its_parts(saved: Curator) -> None:
    saved.save_query("both", expr="good - 0.5 * other")
    expected = values_of(saved, expr="good - 0.5 * other")
    exact = saved.query(expr="good - 0.5 * other", exact=True, rerank=10)
    saved.delete_query("good")
    saved.delete_query("other")
    assert values_of(saved, saved="both") == pytest.approx(expected, rel=1e-3, abs=1e-6)
    found = saved.query(saved="both", exact=True, rerank=10)
    assert [i.value for i in found.helpful] == pytest.approx([i.value for i in exact.helpful], rel=1e-5)
    assert not saved.verify()["problems"]


def test_a_saved_query_serves_after_new_ingests_and_its_history_tells_what_changed(
    saved: Curator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What entered and left is the difference between the answers before and after."""
    before = saved.query(saved="good")
    add(saved, tmp_path / "more.jsonl", CORPUS[SIZE : 2 * SIZE], **NAMED, dataset="more")
    monkeypatch.setattr(CausalLM, "load", refuse)
    after = Curator.open(saved.path, create=False, device="cpu").query(saved="good")
    first, second = saved.query_history("good")
    assert (first["num_samples"], second["num_samples"]) == (SIZE, 2 * SIZE)
    for end in ("helpful", "harmful"):
        was, now = ([item.key for item in getattr(answer, end)] for answer in (before, after))
        assert [item["key"] for item in first[end]] == was
        assert [item["key"] for item in second[end]] == now
        assert second["entered"][end] == [key for key in now if key not in was]
        assert second["left"][end] == [key for key in was if key not in now]
    assert second["entered"]["helpful"]
    assert "entered" not in first


def test_an_ingest_that_adds_nothing_adds_no_history(saved: Curator, tmp_path: Path) -> None:
    add(saved, tmp_path / "again.jsonl", CORPUS[:SIZE], **NAMED)
    assert len(saved.query_history("good")) == 1


def test_a_refitted_space_runs_the_samples_again_and_keeps_what_it_saw(
    saved: Curator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    add(saved, tmp_path / "more.jsonl", CORPUS[SIZE:400], **NAMED, dataset="more")
    old = saved.query(saved="good").how.space
    assert saved.refit(force=True)["is_replaced"]
    found = saved.query(saved="good")
    assert found.how.space != old
    expected = saved.query(**VALIDATION)
    assert [i.value for i in found.helpful] == pytest.approx([i.value for i in expected.helpful], rel=1e-3)
    monkeypatch.setattr(CausalLM, "load", refuse)
    again = Curator.open(saved.path, create=False, device="cpu").query(saved="good")
    assert [i.id for i in again.helpful] == [i.id for i in found.helpful]
    assert not saved.verify()["problems"]


def test_what_is_saved_is_listed_replaced_and_deleted(saved: Curator) -> None:
    good, other = saved.saved_queries()
    assert (good["name"], other["name"]) == ("good", "other")
    assert good["num_samples"] == len(demo.VALIDATION["addition"].read_text().splitlines())
    assert good["spaces"] == [saved.status()["spaces"][0]["fingerprint"]]
    with pytest.raises(UsageError, match="'good' is saved already"):
        saved.save_query("good", **QUESTION)
    saved.save_query("good", replace=True, **QUESTION)
    assert values_of(saved, saved="good") == pytest.approx(values_of(saved, **QUESTION), rel=1e-3, abs=1e-6)
    saved.delete_query("good")
    assert [query["name"] for query in saved.saved_queries()] == ["other"]
    with pytest.raises(NotFoundError, match="no saved query named 'othr'; did you mean other"):
        saved.query(saved="othr")
    with saved._store.writing():
        pass  # sweeps
    assert len(list((saved.path / "queries").iterdir())) == 1


@pytest.mark.parametrize("name", ["", "a-b", "1a", "a b", "../x", "a" * 300, "not", "None", "\ufb01t"])
def test_a_name_must_fit_into_an_expression(copied: Curator, name: str) -> None:
    with pytest.raises(UsageError, match="letters, digits and _"):
        copied.save_query(name, **QUESTION)


def test_a_query_that_cannot_be_run_is_not_saved(copied: Curator) -> None:
    with pytest.raises(UsageError, match="leave --each and --by out"):
        copied.save_query("each", **VALIDATION, each=True)
    with pytest.raises(UsageError, match="a query is one of"):
        copied.save_query("none")
    with pytest.raises(NotFoundError):
        copied.save_query("term", expr="2 * nothing")
    assert copied.saved_queries() == []


def test_a_damaged_file_is_named_by_query_and_by_verify(saved: Curator) -> None:
    for path in (saved.path / "queries").iterdir():
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    with pytest.raises(IntegrityError, match="saved query 'good' is missing or damaged"):
        saved.query(saved="good")
    assert len(saved.verify()["problems"]) == 2
    saved.save_query("good", replace=True, **VALIDATION)
    assert saved.query(saved="good").helpful


def test_a_saved_query_of_a_changed_model_is_refused_where_the_model_is_needed(
    saved: Curator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And answers where it is not: from what the space saw before."""
    monkeypatch.setattr("curator.models.checkpoint.hash_model_files", lambda *_: {"config.json": {"sha256": "other"}})
    again = Curator.open(saved.path, create=False, device="cpu")
    assert again.query(saved="good").helpful
    with pytest.raises(SpaceError, match="is not the one of space"):
        again.query(saved="good", exact=True)


def test_the_command_line_says_the_same(run: Any, saved: Curator) -> None:
    store = str(saved.path)
    code, out, _ = run("query", "--store", store, "--expr", "good - 0.5*other", "--json")
    assert code == 0
    expected = saved.query(expr="good - 0.5*other").to_dict()
    found = json.loads(out)
    assert found["helpful"] == expected["helpful"]
    assert found["query"] == expected["query"]
    code, out, _ = run("queries", "list", "--store", store, "--json")
    assert [json.loads(line) for line in out.splitlines()] == saved.saved_queries()
    code, out, _ = run("queries", "save", "third", "--store", store, "--text", "two and two", "--json")
    assert (code, json.loads(out)["name"]) == (0, "third")
    code, out, _ = run("queries", "history", "good", "--store", store, "--json")
    assert [json.loads(line) for line in out.splitlines()] == saved.query_history("good")
    assert run("queries", "show", "good", "--store", store)[0] == 0
    assert "12 samples" in run("queries", "list", "--store", store)[1]
    assert run("queries", "delete", "third", "--store", store)[:2] == (0, "third is deleted\n")
    code, out, err = run("queries", "show", "third", "--store", store)
    assert (code, out) == (4, "")
    assert "no saved query named 'third'" in err
    code, _, err = run("query", "--store", store, "--expr", "good * other")
    assert code == 2
    assert "two queries cannot be multiplied" in err
