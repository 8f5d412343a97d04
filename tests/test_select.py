"""A selection is what sorting by value gives, within its limits; its export is the original rows, value and rank."""

import json
import os
from collections import Counter
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from curator import Curator
from curator.errors import CuratorError, FilterError, UsageError
from curator.select.choose import Candidates, Limits, best
from index.stored import hash_file
from tests.stores import CORPUS, NAMED, QUESTION, SIZE, VALIDATION, add


def ranked(curator: Curator, **question: Any) -> list[tuple[int, float]]:
    """(id, value) of all samples, best first, ties by id: sorting all values is the oracle."""
    found = [(row["id"], row["value"]) for row in curator.values(**question)]
    return sorted(found, key=lambda item: (-item[1], item[0]))


@pytest.mark.parametrize("method", ["raw", "cosine", "preconditioned"])
def test_a_count_is_the_head_of_all_values_sorted(asked: Curator, method: Any) -> None:
    found = asked.select(count=17, **VALIDATION, method=method)
    expected = ranked(asked, **VALIDATION, method=method)[:17]
    assert found.ids.tolist() == [id_ for id_, _ in expected]
    assert found.values.tolist() == pytest.approx([value for _, value in expected], rel=1e-6)
    assert found.counts["taken"]["samples"] == 17
    assert found.counts["of"]["samples"] == SIZE


@pytest.mark.parametrize(("ratio", "number"), [(0.1, 6), (1.0, SIZE), (0.001, 1)])
def test_a_ratio_is_of_what_the_filter_admits(asked: Curator, ratio: float, number: int) -> None:
    assert len(asked.select(ratio=ratio, **QUESTION).ids) == number
    where = f'label = "{CORPUS[0]["task"]}"'
    num_admitted = sum(row["task"] == CORPUS[0]["task"] for row in CORPUS[:SIZE])
    found = asked.select(ratio=0.5, where=where, **QUESTION)
    assert len(found.ids) == round(num_admitted / 2)
    assert found.ids.tolist() == [id_ for id_, _ in ranked(asked, where=where, **QUESTION)][: len(found.ids)]


def test_values_and_percentiles_are_floors(asked: Curator) -> None:
    """The percentile of an answer's items is the same number."""
    values = ranked(asked, **VALIDATION)
    floor = values[11][1]
    found = asked.select(min_value=floor, **VALIDATION)
    assert len(found.ids) in (11, 12)  # the floor went through float32
    assert (found.values >= floor).all()
    assert len(asked.select(min_percentile=90, **VALIDATION).ids) == SIZE // 10
    items = asked.query(**VALIDATION, rerank=0, top=SIZE).helpful
    found = asked.select(min_percentile=77, **VALIDATION)
    assert set(found.ids.tolist()) == {item.id for item in items if item.percentile >= 77}


@given(
    st.lists(st.tuples(st.integers(-5, 5), st.integers(1, 9), st.integers(0, 2)), max_size=25),
    st.fixed_dictionaries(
        {},
        optional={
            "count": st.integers(1, 10),
            "ratio": st.sampled_from([0.1, 0.5, 1.0]),
            "budget_tokens": st.integers(1, 40),
            "min_value": st.integers(-5, 5),
            "each": st.integers(1, 4),
        },
    ),
)
@settings(suppress_health_check=[HealthCheck.too_slow])
def test_the_limits_hold_and_nothing_better_is_passed_over(rows: list[tuple[int, int, int]], given: Any) -> None:
    """Written out: go down the ranking, take what its group's quota and the budget have room for."""
    if not given:
        return
    values, tokens, groups = (np.array(column, dtype=np.int64) for column in zip(*rows, strict=True)) if rows else (
        np.empty(0, np.int64),
    ) * 3  # fmt: skip
    limits = Limits(**given, by="label" if "each" in given else None)
    candidates = Candidates(np.arange(len(rows)), values.astype(float), tokens, groups)
    taken, spent, of_group = [], 0, Counter[int]()
    most = min(given.get("count", 99), max(1, round(given.get("ratio", 99) * len(rows))))
    for at in sorted(range(len(rows)), key=lambda i: (-values[i], i)):
        if len(taken) == most or values[at] < given.get("min_value", -9):
            break
        if of_group[groups[at]] < given.get("each", 99) and spent + tokens[at] <= given.get("budget_tokens", 10**9):
            taken.append(at)
            spent += tokens[at]
            of_group[groups[at]] += 1
    assert best(candidates, limits).tolist() == taken


def test_quotas_by_label_and_by_a_column_of_the_data(asked: Curator) -> None:
    for by, field in (("label", "task"), ("is_wrong", "is_wrong")):
        found = asked.select(by=by, each=3, **QUESTION)
        rows = {str(row["id"]): row for row in CORPUS}
        keys = {row["id"]: row["key"] for row in asked.values(**QUESTION)}
        of_group: dict[str, list[int]] = {}
        for id_, _ in ranked(asked, **QUESTION):
            of_group.setdefault(str(rows[keys[id_]][field]), []).append(id_)
        assert set(found.ids.tolist()) == {id_ for ids in of_group.values() for id_ in ids[:3]}


def test_a_diverse_selection_follows_the_query_better_than_the_most_helpful(asked: Curator) -> None:
    top, found = (asked.select(count=12, diverse=diverse, **VALIDATION) for diverse in (False, True))
    with asked._asking(None, None) as answering:
        sketches = np.concatenate([segment.sketches(0, segment.num_samples) for segment in answering.segments])
        ids = np.concatenate([segment.ids for segment in answering.segments])
        query = next(iter(_queries()))
        search = answering.prepare(query, "raw", 10.0)[0].search

    def cosine(chosen: np.ndarray) -> float:
        total = sketches[np.isin(ids, chosen)].sum(0)
        return float(total @ search / np.linalg.norm(total) / np.linalg.norm(search))

    assert found.how["follows"]["cosine"] == pytest.approx(cosine(found.ids), rel=1e-4)
    assert cosine(found.ids) > cosine(top.ids)
    assert len(set(found.ids.tolist())) == 12
    again = asked.select(count=12, diverse=True, **VALIDATION)
    assert again.ids.tolist() == found.ids.tolist()
    assert asked.select(count=12, diverse=True, seed=7, **VALIDATION).how["seed"] == 7


def test_a_query_unlike_the_corpus_is_called_out_with_what_helps_here(asked: Curator) -> None:
    strange = asked.select(count=3, prompt="zzz", response=" %%@@ qq")
    assert any("the sketch sees only" in note and "curator query --exact" in note for note in strange.notes)


def _queries() -> Any:
    from curator.query import parts_of, read_queries

    return read_queries(parts_of({**VALIDATION})[0])


def test_a_diverse_selection_keeps_the_limits(asked: Curator) -> None:
    found = asked.select(diverse=True, by="label", each=2, budget_tokens=90, min_percentile=20, **QUESTION)
    assert found.counts["taken"]["tokens"] <= 90
    assert all(group["taken"] <= 2 for group in found.groups)
    allowed = {id_ for id_, _ in ranked(asked, **QUESTION)[: round(SIZE * 0.8) + 1]}
    assert set(found.ids.tolist()) <= allowed


def test_groups_and_histogram_add_up(asked: Curator) -> None:
    found = asked.select(count=20, **VALIDATION)
    for name, number in (("taken", 20), ("of", SIZE)):
        assert sum(group[name] for group in found.groups) == number
    assert sum(group["tokens"] for group in found.groups) == found.counts["taken"]["tokens"]
    assert sum(found.histogram["all"]) == SIZE
    assert sum(found.histogram["taken"]) == 20
    assert len(found.histogram["edges"]) == len(found.histogram["all"]) + 1


def read(path: Path) -> list[dict[str, Any]]:
    if path.is_dir():
        return [row for file in sorted((path / "data").iterdir()) for row in pq.read_table(file).to_pylist()]
    if path.suffix == ".parquet":
        return list(pq.read_table(path).to_pylist())
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def manifest_of(path: Path) -> Path:
    return path / "manifest.json" if path.is_dir() else path.with_name(f"{path.name}.manifest.json")


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet", "out"])
def test_an_export_is_the_original_rows_with_value_and_rank(asked: Curator, name: str, tmp_path: Path) -> None:
    """In order of rank, columns by their own names; the manifest has the hashes of what was written and asked."""
    out = tmp_path / name
    found = asked.select(count=9, out=out, **VALIDATION)
    assert found.out == str(out)
    rows = {str(row["id"]): row for row in CORPUS}
    keys = {row["id"]: row["key"] for row in asked.values(**VALIDATION)}
    expected = [
        {**rows[keys[id_]], "value": value, "rank": rank}
        for rank, (id_, value) in enumerate(zip(found.ids.tolist(), found.values.tolist(), strict=True), start=1)
    ]
    assert read(out) == expected
    assert [list(row) for row in read(out)] == [list(row) for row in expected]  # id, text, label, the others
    manifest = json.loads(manifest_of(out).read_text())
    for file in manifest["files"]:
        assert file["sha256"] == hash_file(out / file["name"] if out.is_dir() else out)
    (asked_with,) = manifest["query_files"]
    assert asked_with["sha256"] == hash_file(Path(VALIDATION["data"]))
    assert manifest["space"] == found.how["space"]
    assert manifest["how"]["limits"] == {"count": 9}
    assert {file["name"] for segment in manifest["segments"] for file in segment["files"]}
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_a_manifest_tells_saved_queries_from_others_of_the_same_name(copied: Curator, tmp_path: Path) -> None:
    def asked_with(name: str, expr: str) -> list[dict[str, Any]]:
        copied.select(count=2, expr=expr, out=tmp_path / name)
        return list(json.loads(manifest_of(tmp_path / name).read_text())["saved_queries"])

    copied.save_query("good", **VALIDATION)
    copied.save_query("one", **QUESTION)
    good, one = asked_with("first", "good - 0.5 * one")
    assert (good["name"], good["factor"], one["name"], one["factor"]) == ("good", 1.0, "one", -0.5)
    assert one["query"]["prompt"] == QUESTION["prompt"]
    copied.save_query("one", replace=True, prompt="Which city?", response=" Ottawa")
    again, other = asked_with("second", "good - 0.5 * one")
    assert again == good
    assert other["sha256"] != one["sha256"]


MIXED = [
    {"question": "2+2", "reply": " 4", "value": 5, "odd": 1, "nested": {"a": [1, 2]}},
    {"question": "3+3", "reply": " 6", "value": 6, "odd": "text", "nested": {"b": None}, "late": 0.5},
    {"question": "4+4", "reply": " 8", "value": 7, "odd": [1], "more": None},
]


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
def test_columns_of_any_kind_survive(empty: Curator, name: str, tmp_path: Path) -> None:
    """Columns whose types do not go together are JSON text in Parquet; our names give way to the data's."""
    fields = {"prompt_field": "question", "response_field": "reply"}
    add(empty, tmp_path / "mixed.jsonl", MIXED, **fields)
    empty.select(count=3, out=tmp_path / name, **QUESTION)
    found = sorted(read(tmp_path / name), key=lambda row: str(row["question"]))
    for row, original in zip(found, MIXED, strict=True):
        assert {"curator_value", "curator_rank"} <= row.keys()
        for column, value in original.items():
            shown = row[column]
            if name.endswith("parquet") and column == "odd":
                shown = json.loads(shown)
            if name.endswith("parquet") and isinstance(value, dict):
                shown = {key: item for key, item in shown.items() if item is not None or key in value}
            assert shown == value


def test_what_was_there_stays_until_the_new_is_whole(
    asked: Curator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out.jsonl"
    out.write_text("before")

    def fail(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("curator.select.write.os.fsync", fail)
    with pytest.raises(CuratorError, match="cannot be written: No space left"):
        asked.select(count=3, out=out, **QUESTION)
    monkeypatch.undo()
    assert out.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl"]
    (tmp_path / "there").mkdir()
    with pytest.raises(UsageError, match="exists; give the directory another name"):
        asked.select(count=3, out=tmp_path / "there", **QUESTION)
    with pytest.raises(UsageError, match=r"ends in .jsonl or .parquet"):
        asked.select(count=3, out=tmp_path / "out.txt", **QUESTION)
    with pytest.raises(CuratorError, match=r"cannot be written: there is no directory .*such; make it first"):
        asked.select(count=3, out=tmp_path / "no" / "such" / "out.jsonl", **QUESTION)
    (tmp_path / "there.jsonl").mkdir()
    with pytest.raises(CuratorError, match="cannot be written: it is a directory"):
        asked.select(count=3, out=tmp_path / "there.jsonl", **QUESTION)


@pytest.mark.parametrize("name", ["out.jsonl", "out.parquet"])
@pytest.mark.parametrize("renames", [0, 1, 2])
def test_wherever_it_is_cut_off_no_manifest_tells_of_other_data(
    asked: Curator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, renames: int
) -> None:
    """An export over a former one, stopped after so many files have taken their places."""
    out = tmp_path / name
    asked.select(count=3, out=out, **QUESTION)
    replace, done = os.replace, 0

    def stopped(source: Path, target: Path) -> None:
        nonlocal done
        if done == renames:
            raise KeyboardInterrupt
        done += 1
        replace(source, target)

    monkeypatch.setattr("os.replace", stopped)
    with nullcontext() if renames == 2 else pytest.raises(KeyboardInterrupt):
        asked.select(count=4, out=out, **QUESTION)
    assert len(read(out)) == (4 if renames else 3)
    manifest = manifest_of(out)
    assert manifest.exists() == (renames == 2)
    assert not manifest.exists() or json.loads(manifest.read_text())["files"][0]["sha256"] == hash_file(out)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_where_nothing_can_be_written_is_said_before_the_work(
    asked: Curator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("curator.query.answer.Answering.prepare", lambda *_, **__: pytest.fail("asked the model"))
    for name in ("no/out.jsonl", "out.txt", "."):
        with pytest.raises(CuratorError):
            asked.select(count=3, out=tmp_path / name, **QUESTION)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({}, "how much to select"),
        ({"ratio": 0}, "above 0 and at most 1"),
        ({"ratio": float("nan")}, "above 0 and at most 1"),
        ({"count": 0}, "--count must be at least 1"),
        ({"budget_tokens": -1}, "--budget-tokens must be at least 1"),
        ({"min_percentile": 101}, "0 to 100"),
        ({"min_value": float("nan")}, "must be a number"),
        ({"by": "label"}, "go together"),
        ({"each": 3}, "go together"),
        ({"by": "nothing", "each": 3}, "no sample has this field"),
        ({"count": 3, "diverse": True, "seed": -1}, "--seed must be at least 0"),
        ({"by": "tag", "each": 3}, "several, so that they make no groups"),
    ],
)
def test_limits_that_are_none_are_refused(asked: Curator, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        asked.select(**options, **QUESTION)


def test_a_limit_beyond_any_corpus_takes_all(asked: Curator) -> None:
    huge = 10**23
    for limits in ({"count": huge}, {"budget_tokens": huge}, {"by": "label", "each": huge}):
        for diverse in (False, True):
            assert len(asked.select(diverse=diverse, **limits, **QUESTION).ids) == SIZE


def test_a_filter_that_admits_nothing_selects_nothing(asked: Curator, tmp_path: Path) -> None:
    found = asked.select(count=3, where="num_tokens > 100000", out=tmp_path / "none.parquet", **QUESTION)
    assert len(found.ids) == 0
    assert read(tmp_path / "none.parquet") == []
    with pytest.raises(FilterError):
        asked.select(count=3, where="nothing = 1", **QUESTION)


def test_deleted_samples_are_never_selected(copied: Curator) -> None:
    best_ids = copied.select(count=5, **QUESTION).ids.tolist()
    copied.delete(f"id in [{', '.join(map(str, best_ids))}]")
    for diverse in (False, True):
        assert not set(copied.select(count=SIZE, diverse=diverse, **QUESTION).ids.tolist()) & set(best_ids)


def test_the_command_line_says_the_same(run: Any, asked: Curator, tmp_path: Path) -> None:
    arguments = ["select", "--store", str(asked.path), "--prompt", QUESTION["prompt"], "--response", " Ottawa"]
    code, out, _ = run(*arguments, "--count", "5", "--dry-run", "--json")
    assert code == 0
    found, expected = json.loads(out), asked.select(count=5, prompt=QUESTION["prompt"], response=" Ottawa").to_dict()
    for document in (found, expected):
        document["how"].pop("seconds")
    assert found == json.loads(json.dumps(expected))
    code, out, err = run(*arguments, "--count", "5", "--out", str(tmp_path / "five.jsonl"))
    assert (code, "5 samples written" in err, "taken, by dataset" in out) == (0, True, True)
    assert "curator select" in json.loads((tmp_path / "five.jsonl.manifest.json").read_text())["command"]
    assert run(*arguments, "--count", "5")[0] == 2
    assert run(*arguments, "--count", "5", "--dry-run", "--out", "x.jsonl")[0] == 2


def test_what_an_older_store_did_not_note_has_our_names(copied: Curator, tmp_path: Path) -> None:
    """A dataset ingested before its columns were kept: text, prompt, response, id and label."""
    with copied._store.session() as session:
        from curator.metadata.spaces import dataset_named

        dataset_named(session, "demo").fields = None
        session.commit()
    copied.select(count=2, out=tmp_path / "two.jsonl", **QUESTION)
    assert read(tmp_path / "two.jsonl")[0].keys() >= {"prompt", "response", "id", "label", "value", "rank"}
    assert NAMED["label_field"] not in read(tmp_path / "two.jsonl")[0]


def test_bars_and_counts_fit_a_narrow_terminal(run: Any, asked: Curator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "60")
    code, out, _ = run("select", "--store", str(asked.path), "--prompt", "a", "--response", " b", "--count", "5",
                       "--dry-run")  # fmt: skip
    shown = out[out.index("values: taken among all") :].splitlines()[1:-1]
    assert code == 0
    assert len(shown) == 20  # one line a bin: none is folded
    assert max(line.count("░") + line.count("█") for line in shown) == 24
