"""Audits against their definitions in plain numpy; what they find can be tagged, deleted, exported, and taken back."""

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from curator import Curator, demo
from curator.audit import AUDIT_METHODS
from curator.audit.robust import deviations
from curator.errors import FilterError, NotFoundError, UsageError
from curator.models import CausalLM
from curator.query import Query
from curator.types import Sample
from tests.stores import CORPUS, FIELDS, NAMED, QUESTION, SIZE, add, values_of, write_jsonl

ALL = 10**6
LABELLED = FIELDS | {"label_field": "task"}
GROUPS: dict[str, list[int]] = defaultdict(list)
for number, row in enumerate(CORPUS[:SIZE]):
    GROUPS[row["task"]].append(number)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Right answers of every task, none of them in the shared store."""
    rows = [row for row in CORPUS[200:] if not row["is_wrong"]]
    return write_jsonl(tmp_path_factory.mktemp("clean") / "clean.jsonl", rows[:120])


def sketches(curator: Curator) -> tuple[np.ndarray, np.ndarray]:
    """float64 [N, D] and ||G|| [N], as stored."""
    with curator._store.session() as session:
        segments = curator._store.segments(session, 1)
    found = [segment.sketches(0, segment.num_samples) for segment in segments]
    return np.concatenate(found).astype(np.float64), np.concatenate([segment.norms for segment in segments])


def weights(curator: Curator, method: str, damping: float) -> np.ndarray:
    """What preconditioning makes of sketches [D, D], by eigenvectors where the code inverts."""
    if method == "preconditioned-cosine":
        stored, norms = sketches(curator)
        unit = stored / norms[:, None]
        values, vectors = np.linalg.eigh(unit.T @ unit / len(unit))
        delta = damping * values.mean()
        return (vectors * (delta / (values + delta))) @ vectors.T
    with curator._asking(None, None) as answering:
        projection = answering.projection
    identity = np.eye(projection.width)
    if not method.startswith("preconditioned"):
        return identity
    rotation = projection.rotation.double().numpy()
    moment = np.diag(rotation @ np.diag(projection.second_moment.double().numpy()) @ rotation.T)
    return identity - rotation.T @ np.diag(moment / (moment + damping * moment.mean())) @ rotation


@pytest.mark.parametrize("method", AUDIT_METHODS)
def test_without_a_reference_a_value_is_the_mean_over_the_others_of_the_group(asked: Curator, method: Any):
    stored, norms = sketches(asked)
    if "cosine" in method:
        stored = stored / norms[:, None]
    pairs = stored @ weights(asked, method, 3.0) @ stored.T
    result = asked.audit_mislabeled(method=method, damping=3.0, limit=ALL)
    assert len(result.items) == SIZE
    for item in result.items:
        others = [other for other in GROUPS[item.group] if other != item.id - 1]
        assert item.value == pytest.approx(pairs[item.id - 1, others].mean(), rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("method", AUDIT_METHODS)
def test_with_a_reference_a_value_is_that_of_a_query_of_the_groups_clean_rows(
    asked: Curator, clean: Path, tmp_path: Path, method: Any
):
    result = asked.audit_mislabeled(clean, method=method, limit=ALL, **LABELLED)
    for group in GROUPS:
        own = [json.loads(line) for line in clean.read_text().splitlines()]
        own = [row for row in own if row["task"] == group]
        data = write_jsonl(tmp_path / f"{group}.jsonl", own)
        if method == "preconditioned-cosine":  # no query has it: its definition, with the sketch that cosine has
            with asked._asking(None, None) as answering:
                samples = [Sample(prompt=row["prompt"], response=row["response"]) for row in own]
                search = answering.prepare(Query({}, samples), "cosine", 10.0)[0].search
            stored, norms = sketches(asked)
            values = stored / norms[:, None] @ weights(asked, method, 10.0) @ search
            expected = {row["id"]: value for row, value in zip(CORPUS[:SIZE], values.tolist(), strict=True)}
        else:
            expected = values_of(asked, data=data, method=method, damping=10.0, **FIELDS)
        found = {item.key: item.value for item in result.items if item.group == group}
        assert set(found) == {CORPUS[number]["id"] for number in GROUPS[group]}
        assert found == pytest.approx({key: expected[key] for key in found}, rel=1e-4, abs=1e-6)
        assert all(f"{len(own)} clean rows" in item.reason for item in result.items if item.group == group)


def test_the_worst_come_first_with_their_percentile(asked: Curator, clean: Path):
    result = asked.audit_mislabeled(clean, limit=ALL, **LABELLED)
    away = {}
    for group in GROUPS:
        items = [item for item in result.items if item.group == group]
        values = np.array([item.value for item in items])
        assert (np.diff(values) >= 0).all()
        below = (values[:, None] > values).sum(1) + (values[:, None] == values).sum(1) / 2
        assert [item.percentile for item in items] == pytest.approx((100 * below / len(items)).tolist(), abs=1e-3)
        spread = 1.4826 * np.median(np.abs(values - np.median(values)))
        away |= {item.id: (item.value - np.median(values)) / spread for item in items}
    assert [item.id for item in result.items] == sorted(away, key=lambda id_: (away[id_], id_))
    assert asked.audit_mislabeled(clean, limit=3, **LABELLED).items == result.items[:3]


def test_the_group_may_be_a_metadata_field(empty: Curator, tmp_path: Path):
    add(empty, tmp_path / "a.jsonl", CORPUS[:30], prompt_field="prompt", response_field="response")
    clean = write_jsonl(tmp_path / "clean.jsonl", CORPUS[100:140])
    assert {item.group for item in empty.audit_mislabeled(by="task", limit=ALL).items} <= set(GROUPS)
    by_field = empty.audit_mislabeled(clean, by="is_wrong", limit=ALL, **FIELDS)
    assert {item.group for item in by_field.items} == {"true", "false"}


def test_wrong_answers_of_the_demo_are_found(empty: Curator, clean: Path):
    empty.ingest(demo.CORPUS, model=str(demo.MODEL), dataset="demo", **NAMED)
    for reference in ([clean], []):
        worst = empty.audit_mislabeled(reference, limit=50, **LABELLED).items
        assert np.mean([item.meta["is_wrong"] for item in worst]) >= 0.9


def test_no_model_is_loaded_without_a_reference(built: Path, monkeypatch: pytest.MonkeyPatch):
    def refuse(*_: Any, **__: Any) -> Any:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(CausalLM, "load", refuse)
    with Curator.open(built, create=False, device="cpu") as curator:
        assert curator.audit_mislabeled().items
        assert curator.audit_duplicates(threshold=0.5).items
        curator.audit_outliers()


def test_what_was_not_judged_is_said(copied: Curator, tmp_path: Path):
    rows = [{**CORPUS[100], "task": None}, {**CORPUS[101], "task": "alone"}]
    add(copied, tmp_path / "more.jsonl", rows, **NAMED, dataset="more")
    result = copied.audit_mislabeled(limit=ALL)
    assert len(result.items) == SIZE
    assert result.notes == [
        "1 samples have no group and were not judged",
        "1 groups hold one sample and were not judged",
    ]
    clean = write_jsonl(tmp_path / "clean.jsonl", [row for row in CORPUS[300:320] if row["task"] == "capital"])
    result = copied.audit_mislabeled(clean, limit=ALL, **LABELLED)
    assert {item.group for item in result.items} == {"capital"}
    assert "groups have no clean row and were not judged" in result.notes[-1]


@pytest.mark.parametrize("threshold", [0.9, 0.98])
def test_duplicates_are_those_of_the_plain_loop(asked: Curator, threshold: float):
    stored, _ = sketches(asked)
    unit = stored / np.linalg.norm(stored, axis=1, keepdims=True)
    keeper: list[int] = []
    for row in range(SIZE):
        near = [other for other in range(row) if keeper[other] == other and unit[row] @ unit[other] >= threshold]
        keeper.append(min(near, default=row))
    result = asked.audit_duplicates(threshold=threshold, limit=ALL)
    assert {item.id: item.keeper for item in result.items} == {
        row + 1: kept + 1 for row, kept in enumerate(keeper) if row != kept
    }
    for item in result.items:
        assert item.cosine == pytest.approx(unit[item.id - 1] @ unit[item.keeper - 1], abs=1e-5)
        assert item.keeper_key == CORPUS[item.keeper - 1]["id"]
    cosines = [item.cosine for item in result.items]
    assert cosines == sorted(cosines, reverse=True)
    assert result.how["found"] == len(result.items)
    assert result.how["clusters"] == len({item.keeper for item in result.items})


def test_equal_texts_are_found_across_datasets_keys_and_labels(copied: Curator, tmp_path: Path):
    again = [{**CORPUS[at], "id": f"again-{at}", "task": "other"} for at in (3, 5)]
    add(copied, tmp_path / "b.jsonl", [*again, {**again[0], "id": "third"}], **NAMED, dataset="b")
    split = CORPUS[7]["prompt"], CORPUS[7]["response"]
    moved = {"prompt": split[0] + split[1][:2], "response": split[1][2:], "id": "moved"}
    add(copied, tmp_path / "c.jsonl", [moved], **FIELDS, id_field="id", dataset="c")
    result = copied.audit_duplicates(exact=True)
    assert [(item.key, item.keeper) for item in result.items] == [("again-3", 4), ("again-5", 6), ("third", 4)]
    assert all(item.is_exact and item.cosine == 1 for item in result.items)
    assert result.items[0].reason == f"the same text as {CORPUS[3]['id']} of demo"
    near = copied.audit_duplicates(limit=ALL)
    kept = {item.id for item in near.items}
    assert {item.keeper for item in near.items}.isdisjoint(kept)
    assert {item.id for item in result.items} <= kept
    copied.delete("id = 4")
    assert [(item.key, item.keeper_key) for item in copied.audit_duplicates(exact=True).items] == [
        ("again-5", CORPUS[5]["id"]),
        ("third", "again-3"),
    ]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0, 2.0, 3.0, 4.0, 100.0], [-2, -1, 0, 1, 97]),
        ([5.0, 5.0, 5.0, 5.0, 9.0], None),
        ([5.0, 5.0], [0, 0]),
        ([], []),
    ],
)
def test_deviations_are_in_robust_standard_deviations(values: list[float], expected: list[float] | None):
    found = deviations(np.array(values))
    if expected is None:
        assert found.tolist() == pytest.approx([0, 0, 0, 0, 4 / (1.2533 * 0.8)])
    else:
        assert found.tolist() == pytest.approx([value / 1.4826 for value in expected])


def test_outliers_are_those_beyond_the_limit_in_one_measure(asked: Curator):
    with asked._store.session() as session:
        rows = session.connection().exec_driver_sql("select id, captured, norm, loss from samples order by id").all()
    table = np.array(rows, dtype=np.float64)
    table[:, 2] = np.log(table[:, 2])
    away = {}
    for column, name in ((1, "captured"), (2, "norm"), (3, "loss")):
        values = table[:, column]
        z = (values - np.median(values)) / (1.4826 * np.median(np.abs(values - np.median(values))))
        for row, value in enumerate(z):
            if abs(value) >= 2 and (name != "captured" or value < 0):
                away.setdefault(row + 1, {})[name] = value
    result = asked.audit_outliers(deviation=2, limit=ALL)
    assert {item.id for item in result.items} == set(away)
    assert away
    for item in result.items:
        assert item.measure == max(away[item.id], key=lambda name: abs(away[item.id][name]))
        assert item.deviation == pytest.approx(away[item.id][item.measure])
        assert item.reason.count("robust standard deviations") == len(away[item.id])
    far = [abs(item.deviation) for item in result.items]
    assert far == sorted(far, reverse=True)


def test_outliers_are_looked_for_within_each_dataset(copied: Curator, tmp_path: Path):
    before = {item.id for item in copied.audit_outliers(deviation=2, limit=ALL).items}
    add(copied, tmp_path / "b.jsonl", [{"prompt": f"zq {n} xv", "response": " qq zz" * 9} for n in range(20)],
        **FIELDS, dataset="b")  # fmt: skip
    found = copied.audit_outliers(deviation=2, limit=ALL).items
    assert {item.id for item in found if item.dataset == "demo"} == before


@pytest.mark.parametrize("audit", ["mislabeled", "duplicates", "outliers"])
def test_the_command_line_says_and_does_the_same(run: Any, copied: Curator, tmp_path: Path, audit: str):
    more: dict[str, Any] = {"mislabeled": {}, "duplicates": {"threshold": 0.9}, "outliers": {"deviation": 1.0}}[audit]
    options = [word for name, value in more.items() for word in (f"--{name}", str(value))]
    expected = getattr(copied, f"audit_{audit}")(where="id > 4", limit=5, **more)
    assert 1 < len(expected.items) <= 5
    command = ["audit", audit, "--store", str(copied.path), "--where", "id > 4", "--limit", "5", *options]
    code, out, _ = run(*command, "--json")
    assert (code, json.loads(out)) == (0, json.loads(json.dumps(expected.to_dict())))
    file = tmp_path / "found.jsonl"
    code, out, err = run(*command, "--tag", "found", "--delete", "--out", str(file))
    assert (code, "robust" in out or "cosine" in out) == (0, True)
    assert "samples tagged found" in err
    assert [json.loads(line) for line in file.read_text().splitlines()] == json.loads(out_of(expected))
    keys = {item.key for item in expected.items}
    assert keys.isdisjoint(values_of(copied))
    copied.undo()
    assert {row["key"] for row in copied.values(**QUESTION, where='tag = "found"')} == keys
    assert len(expected.to_pandas()) == len(keys)
    copied.undo()
    assert copied.tags() == []
    assert len(values_of(copied)) == SIZE


def out_of(result: Any) -> str:
    return json.dumps(result.to_dict()["items"])


def test_nothing_found_is_nothing_done(run: Any, copied: Curator, tmp_path: Path):
    file = tmp_path / "found.jsonl"
    code, _, err = run(
        "audit", "duplicates", "--exact", "--store", str(copied.path), "--tag", "x", "--delete", "--out", str(file)
    )
    assert (code, file.read_text(), copied.changes()) == (0, "", [])
    assert "0 findings written" in err


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda c, f: c.audit_mislabeled(f, **FIELDS), UsageError, "which column of the reference holds the label"),
        (lambda c, f: c.audit_mislabeled(f, text_field="no", label_field="task"), UsageError, "no usable row"),
        (lambda c, f: c.audit_mislabeled(f, label_field="id", **FIELDS), UsageError, "no usable row of any"),
        (lambda c, f: c.audit_mislabeled(f, by="none", **FIELDS), UsageError, "no sample has a field 'none'"),
        (lambda c, f: c.audit_mislabeled("gone.jsonl", **LABELLED), NotFoundError, "gone.jsonl"),
        (lambda c, f: c.audit_mislabeled(where="id < 0"), UsageError, "no sample matches the filter"),
        (lambda c, f: c.audit_mislabeled(where="id = 1"), UsageError, "every group holds one sample"),
        (lambda c, f: c.audit_mislabeled(where="x = 1"), FilterError, "unknown field"),
        (lambda c, f: c.audit_mislabeled(method="other"), UsageError, "method 'other'"),
        (lambda c, f: c.audit_mislabeled(damping=0), UsageError, "damping"),
        (lambda c, f: c.audit_duplicates(threshold=0), UsageError, "--threshold"),
        (lambda c, f: c.audit_duplicates(threshold=1.1), UsageError, "--threshold"),
        (lambda c, f: c.audit_outliers(deviation=-1), UsageError, "--deviation"),
        (lambda c, f: c.audit_outliers().write("x.csv"), UsageError, r"ends in \.jsonl"),
    ],
)
def test_what_cannot_be_is_refused(asked: Curator, clean: Path, call: Any, error: Any, message: str):
    with pytest.raises(error, match=message):
        call(asked, clean)


def test_an_empty_choice_has_no_findings(asked: Curator):
    assert asked.audit_duplicates(where="id < 0").items == []
    assert asked.audit_outliers(where="id < 0").items == []
