"""The value of everything: linear in the query, in order of ids, whole or absent on disk."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from curator import Curator
from curator.errors import CuratorError, FilterError, UsageError
from tests.stores import CORPUS, FIELDS, QUESTION, SIZE, VALIDATION, contents, values_of, write_jsonl


def test_every_sample_has_a_value_in_order_of_ids(asked: Curator):
    rows = list(asked.values(**VALIDATION))
    assert [row["id"] for row in rows] == list(range(1, SIZE + 1))
    assert [row["key"] for row in rows] == [row["id"] for row in CORPUS[:SIZE]]
    assert all(set(row) == {"id", "key", "value"} and np.isfinite(row["value"]) for row in rows)


def test_the_value_of_a_set_is_the_mean_of_its_values(asked: Curator, tmp_path: Path):
    rows = CORPUS[70:76]
    data = write_jsonl(tmp_path / "set.jsonl", rows)
    of_set = np.array([row["value"] for row in asked.values(data=data, **FIELDS)])
    one_by_one = [
        [row["value"] for row in asked.values(prompt=row["prompt"], response=row["response"])] for row in rows
    ]
    mean = np.mean(one_by_one, axis=0)
    assert np.abs(of_set - mean).max() <= 1e-5 * np.abs(one_by_one).max()


@pytest.mark.parametrize("method", ["raw", "cosine", "preconditioned"])
def test_a_filter_selects_and_changes_no_value(asked: Curator, method: Any):
    everything = values_of(asked, **QUESTION, method=method)
    some = values_of(asked, **QUESTION, method=method, where='label = "capital" and is_wrong = false')
    expected = {r["id"] for r in CORPUS[:SIZE] if r["task"] == "capital" and not r["is_wrong"]}
    assert set(some) == expected
    # The products are float32, whose last bits depend on the rows that are multiplied together.
    assert some == pytest.approx({key: everything[key] for key in expected}, rel=1e-5)
    assert values_of(asked, **QUESTION, method=method, where="id < 0") == {}


def test_preconditioning_with_a_large_damping_is_raw(asked: Curator):
    raw = np.array(list(values_of(asked, **QUESTION).values()))
    nearly = np.array(list(values_of(asked, **QUESTION, method="preconditioned", damping=1e9).values()))
    assert np.abs(raw - nearly).max() <= 1e-5 * np.abs(raw).max()


def test_rows_are_the_same_in_every_format(asked: Curator, tmp_path: Path):
    rows = list(asked.values(**QUESTION))
    assert asked.write_values(tmp_path / "v.jsonl", **QUESTION) == SIZE
    assert asked.write_values(str(tmp_path / "v.parquet"), **QUESTION) == SIZE
    assert [json.loads(line) for line in (tmp_path / "v.jsonl").read_text("utf-8").splitlines()] == rows
    assert pq.read_table(tmp_path / "v.parquet").to_pylist() == rows


def test_no_row_is_still_a_file_with_columns(asked: Curator, tmp_path: Path):
    for name in ("v.jsonl", "v.parquet"):
        assert asked.write_values(tmp_path / name, **QUESTION, where="id < 0") == 0
    assert pq.read_table(tmp_path / "v.parquet").column_names == ["id", "key", "value"]
    assert (tmp_path / "v.jsonl").read_text() == ""


@pytest.mark.parametrize("name", ["v.jsonl", "v.parquet"])
@pytest.mark.parametrize("old", [None, "kept"])
def test_a_failure_in_the_middle_changes_no_file(
    asked: Curator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, old: str | None
):
    if old:
        (tmp_path / name).write_text(old)
    calls = []

    def fail_later(*arguments: Any) -> dict[int, str]:
        calls.append(arguments)
        if len(calls) > 2:
            raise RuntimeError("lost")
        return dict.fromkeys(range(1000), "key")

    monkeypatch.setattr("curator.query.values.keys_between", fail_later)
    with pytest.raises(RuntimeError, match="lost"):
        asked.write_values(tmp_path / name, **QUESTION)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == ({name: old} if old else {})


def test_a_place_that_cannot_be_written_is_named(asked: Curator, tmp_path: Path):
    with pytest.raises(UsageError, match=r"v\.txt: write to a file that ends in"):
        asked.write_values(tmp_path / "v.txt", **QUESTION)
    with pytest.raises(CuratorError, match="missing"):
        asked.write_values(tmp_path / "missing" / "v.jsonl", **QUESTION)


def test_what_another_process_does_never_stops_a_stream(copied: Curator):
    expected = contents(copied)
    stream = copied.values(**QUESTION)
    first = next(stream)
    with Curator.open(copied.path) as other:
        other.delete("id > 30")
        other.compact()
    found = [(row["id"], row["key"], row["value"]) for row in (first, *stream)]
    assert found == expected  # as it was when the question was asked
    assert len(contents(copied)) == 30


@pytest.mark.parametrize(
    ("way", "names"), [({"each": True}, ["0", "1", "2"]), ({"by": "task"}, ["capital", "group"])], ids=str
)
def test_each_of_several_queries_has_its_values(asked: Curator, tmp_path: Path, way: dict[str, Any], names: list[str]):
    rows = [next(row for row in CORPUS if row["task"] == task) for task in ("capital", "group")]
    rows.append({**rows[0], "prompt": "Which city?"})
    data = write_jsonl(tmp_path / "q.jsonl", rows)
    found = list(asked.values(data=data, **FIELDS, **way))
    assert list(dict.fromkeys(row["query"] for row in found)) == names
    assert len(found) == SIZE * len(names)
    alone = values_of(asked, prompt=rows[1]["prompt"], response=rows[1]["response"])
    assert {row["key"]: row["value"] for row in found if row["query"] == names[1]} == pytest.approx(alone, rel=1e-5)
    assert asked.write_values(tmp_path / "v.parquet", data=data, **FIELDS, **way) == len(found)
    assert pq.read_table(tmp_path / "v.parquet").to_pylist() == found


@pytest.mark.parametrize(
    ("question", "error"),
    [
        ({}, UsageError),
        ({"text": "a", "data": "b.jsonl"}, UsageError),
        ({"text": "  "}, UsageError),
        ({"prompt": "a"}, UsageError),
        ({**QUESTION, "where": "nonsense >"}, FilterError),
        ({**QUESTION, "where": "unknown_field = 1"}, FilterError),
        ({**QUESTION, "method": "best"}, UsageError),
        ({**QUESTION, "method": "preconditioned", "damping": 0.0}, UsageError),
        ({**QUESTION, "damping": float("nan")}, UsageError),
    ],
    ids=str,
)
def test_questions_that_cannot_be(asked: Curator, question: dict[str, Any], error: type[Exception]):
    with pytest.raises(error):
        list(asked.values(**question))
    with pytest.raises(error):
        asked.query(**question)
