"""An evaluation is what counting pairs and sorting all values gives, for each class and method."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator import Curator, demo
from curator.errors import EmptyQueryError, FilterError, UsageError
from curator.evaluate import area, recall
from curator.value import METHODS
from tests.stores import CORPUS, FIELDS, SIZE, write_jsonl

Run = Callable[..., tuple[int, str, str]]
ROWS = CORPUS[:SIZE]
DATA = {"data": [demo.VALIDATION["addition"], demo.VALIDATION["sentiment"]], **FIELDS}
WRONG = "is_wrong = true"


def test_the_shared_store_has_wrong_samples_in_both_classes() -> None:
    for task in ("addition", "sentiment"):
        assert {row["is_wrong"] for row in ROWS if row["task"] == task} == {True, False}


@given(st.lists(st.tuples(st.integers(-3, 3), st.booleans()), max_size=30))
def test_the_area_is_the_share_of_pairs_in_order(items: list[tuple[int, bool]]) -> None:
    positives, others = ([value for value, kind in items if kind is wanted] for wanted in (True, False))
    pairs = [(a > b) + 0.5 * (a == b) for a in positives for b in others]
    found = area(np.array([v for v, _ in items], np.float32), np.array([k for _, k in items], bool))
    assert found == (pytest.approx(sum(pairs) / len(pairs)) if pairs else None)


def test_recall_counts_among_as_many_as_there_are() -> None:
    assert recall(np.array([5.0, 1.0, 3.0, 2.0]), np.array([True, True, False, False])) == 0.5
    assert recall(np.array([1.0, 1.0, 1.0]), np.array([False, True, True])) == 0.5  # ties in order
    assert recall(np.array([1.0]), np.array([False])) is None


@pytest.mark.parametrize("method", METHODS)
def test_scores_are_those_of_the_values_that_values_streams(asked: Curator, method: Any) -> None:
    found = asked.evaluate(**DATA, label_field="task", wrong=WRONG, methods=[method], damping=3.0)
    of = {row["id"]: row for row in ROWS}
    assert [score.group for score in found.groups] == ["addition", "sentiment"]
    for score in found.groups:
        question = {"data": demo.VALIDATION[score.group], **FIELDS, "method": method, "damping": 3.0}
        values = [(row["value"], of[row["key"]]) for row in asked.values(**question)]
        own = [(value, row) for value, row in values if row["task"] == score.group]
        others = [value for value, row in values if row["task"] != score.group]
        assert score.retrieval_auc == pytest.approx(np.mean([a > b for a, _ in own for b in others]))
        best = sorted(values, key=lambda item: -item[0])[: len(own)]
        assert score.retrieval_recall == pytest.approx(np.mean([row["task"] == score.group for _, row in best]))
        wrong, right = ([value for value, row in own if row["is_wrong"] is kind] for kind in (True, False))
        assert (score.num_own, score.num_wrong) == (len(own), len(wrong))
        assert score.detection_auc == pytest.approx(np.mean([a < b for a in wrong for b in right]))
        last = sorted(own, key=lambda item: item[0])[: len(wrong)]
        assert score.detection_recall == pytest.approx(np.mean([row["is_wrong"] for _, row in last]))


def test_without_known_wrong_samples_there_is_no_detection(asked: Curator) -> None:
    found = asked.evaluate(**DATA, label_field="task")
    assert [score.method for score in found.groups] == [*METHODS, *METHODS]
    assert all(score.num_wrong is None and score.detection_auc is None for score in found.groups)
    assert all(row["detection_auc"] is None for row in found.methods)


def test_classes_can_be_a_column_of_the_corpus(asked: Curator) -> None:
    found = asked.evaluate(**DATA, by="is_wrong", methods=["raw"])
    (score,) = found.groups  # every row of the validation sets is right
    assert score.group == "False"
    assert score.num_own == sum(not row["is_wrong"] for row in ROWS)


def test_the_mean_is_over_the_classes_that_have_both_kinds(asked: Curator) -> None:
    found = asked.evaluate(**DATA, label_field="task", wrong=f'{WRONG} and label = "addition"', methods=["raw"])
    (row,) = found.methods
    addition, sentiment = found.groups
    assert (sentiment.num_wrong, sentiment.detection_auc) == (0, None)
    assert row["detection_auc"] == {"mean": addition.detection_auc, "std": 0.0, "num_groups": 1}
    assert row["retrieval_auc"]["num_groups"] == 2
    assert row["retrieval_auc"]["mean"] == pytest.approx((addition.retrieval_auc + sentiment.retrieval_auc) / 2)


def test_deleted_samples_and_a_filter_leave_the_corpus(copied: Curator) -> None:
    where = "id <= 40"
    filtered = copied.evaluate(**DATA, label_field="task", where=where)
    copied.delete("id > 40")
    assert copied.evaluate(**DATA, label_field="task").groups == filtered.groups
    assert filtered.how["num_eligible"] == 40


def test_classes_that_the_corpus_lacks_are_told(asked: Curator, tmp_path: Path) -> None:
    rows = [{"prompt": "Hello?", "response": " yes", "task": "greeting"}]
    data = [write_jsonl(tmp_path / "other.jsonl", rows), demo.VALIDATION["addition"]]
    found = asked.evaluate(data, **FIELDS, label_field="task")
    assert {score.group for score in found.groups} == {"addition"}
    assert any("greeting" in note for note in found.notes)
    with pytest.raises(UsageError, match="greeting"):
        asked.evaluate(data[:1], **FIELDS, label_field="task")


def test_what_is_no_question_is_refused(asked: Curator) -> None:
    with pytest.raises(UsageError, match="method"):
        asked.evaluate(**DATA, label_field="task", methods=["best"])  # type: ignore[list-item]
    with pytest.raises(UsageError, match="damping"):
        asked.evaluate(**DATA, label_field="task", damping=0.0)
    with pytest.raises(FilterError):
        asked.evaluate(**DATA, label_field="task", wrong="is_wrong =")
    with pytest.raises((UsageError, EmptyQueryError)):
        asked.evaluate(**DATA, label_field="nothing")


def test_the_command_prints_what_the_api_returns(asked: Curator, run: Run) -> None:
    files = [word for path in DATA["data"] for word in ("--data", str(path))]
    command = ["evaluate", "--store", str(asked.path), *files, "--prompt-field", "prompt", "--response-field",
               "response", "--label-field", "task", "--wrong", WRONG]  # fmt: skip
    code, out, err = run(*command, "--json")
    assert (code, err) == (0, "")
    document, expected = json.loads(out), asked.evaluate(**DATA, label_field="task", wrong=WRONG).to_dict()
    for one in (document, expected):
        assert one["how"].pop("seconds") > 0
    assert document == json.loads(json.dumps(expected))
    code, out, err = run(*command, "--method", "raw")
    assert (code, err) == (0, "")
    assert "detection AUC" in out
    assert "addition" in out
    assert "cosine" not in out
