"""The contract: the same document, with the same numbers, by every way in."""

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from curator import Curator
from curator.ingest import IngestReport
from tests.stores import CORPUS, QUESTION, SIZE, VALIDATION, add

ITEM = {"id", "key", "dataset", "label", "value", "percentile", "text", "meta"}
HOW = {
    "space", "method", "damping", "tier", "candidates", "rare_candidates", "index", "num_samples", "num_eligible",
    "where", "captured", "percentiles", "seconds", "trust",
}  # fmt: skip
Run = Callable[..., tuple[int, str, str]]

QUESTIONS: dict[str, dict[str, Any]] = {
    "prompt": {**QUESTION},
    "text": {"text": "Two and two make four."},
    "set": {**VALIDATION},
    "options": {
        **VALIDATION, "method": "preconditioned", "damping": 3.0, "where": "id > 20", "top": 3, "harmful": 2
    },
    "sketch": {**QUESTION, "rerank": 0},
    "exact": {**QUESTION, "exact": True, "method": "cosine"},
    "tokens": {**QUESTION, "tokens": True},
}  # fmt: skip


def on_command_line(question: dict[str, Any]) -> list[str]:
    """The same question as options: the same names, with dashes."""
    words = []
    for name, value in question.items():
        words += [f"--{name.replace('_', '-')}"] + ([] if value is True else [str(value)])
    return words


def plain(document: dict[str, Any]) -> dict[str, Any]:
    """The document as JSON reads it, without the one number that depends on the day."""
    document = json.loads(json.dumps(document))
    assert document["how"].pop("seconds") > 0
    return document


@pytest.mark.parametrize("name", QUESTIONS)
def test_the_command_line_gives_the_document_of_the_python_api(asked: Curator, run: Run, name: str):
    question = QUESTIONS[name]
    code, out, _ = run("query", "--store", str(asked.path), "--json", *on_command_line(question))
    assert code == 0
    assert out.count("\n") == 1
    assert plain(json.loads(out)) == plain(asked.query(**question).to_dict())


def test_the_document_has_exactly_its_keys(asked: Curator):
    document = asked.query(**VALIDATION).to_dict()
    assert set(document) == {"query", "helpful", "harmful", "how"}
    assert set(document["how"]) == HOW
    for item in (*document["helpful"], *document["harmful"]):
        assert set(item) == ITEM
    assert set(asked.query(**QUESTION, tokens=True).to_dict()["helpful"][0]) == ITEM | {"tokens"}
    counts = {"num_samples", "num_tokens", "num_skipped", "num_truncated"}
    assert set(document["query"]) == {"data"} | counts
    assert set(asked.query(**QUESTION).query) == {"prompt", "response"} | counts
    grouped = next(asked.queries(**VALIDATION, by="task"))
    assert set(grouped.query) == {"data", "by", "group"} | counts
    single = next(asked.queries(**VALIDATION, id_field="id", each=True))
    assert set(single.query) == {"data", "row", "key"} | counts


def test_an_item_is_the_row_that_was_ingested(asked: Curator):
    rows = {row["id"]: row for row in CORPUS[:SIZE]}
    for item in asked.query(**QUESTION, top=SIZE).helpful:
        row = rows[item.key]
        assert (item.dataset, item.label, item.text) == ("demo", row["task"], row["prompt"] + row["response"])
        assert item.meta == {"is_wrong": row["is_wrong"]}


@pytest.mark.parametrize("way", [{"each": True}, {"by": "task"}], ids=str)
def test_several_answers_are_one_document_a_line(asked: Curator, run: Run, way: dict[str, Any]):
    code, out, _ = run("query", "--store", str(asked.path), "--json", *on_command_line(VALIDATION | way))
    expected = [plain(result.to_dict()) for result in asked.queries(**VALIDATION | way)]
    assert code == 0
    assert [plain(json.loads(line)) for line in out.splitlines()] == expected


def test_values_are_the_same_rows_everywhere(asked: Curator, run: Run, tmp_path: Path):
    expected = list(asked.values(**VALIDATION))
    command = ["values", "--store", str(asked.path), *on_command_line(VALIDATION)]
    code, out, err = run(*command)
    assert (code, err) == (0, "")
    assert [json.loads(line) for line in out.splitlines()] == expected
    for name in ("v.jsonl", "v.parquet"):
        code, out, err = run(*command, "--out", str(tmp_path / name))
        assert (code, out) == (0, "")
        assert err == f"curator: {SIZE} values written to {tmp_path / name}\n"
    assert [json.loads(line) for line in (tmp_path / "v.jsonl").read_text().splitlines()] == expected
    assert pq.read_table(tmp_path / "v.parquet").to_pylist() == expected


def test_the_ingest_report_is_the_same_by_every_way(empty: Curator, run: Run, tmp_path: Path):
    report = add(empty, tmp_path / "a.jsonl", [*CORPUS[:3], {"prompt": 1}])
    again = add(empty, tmp_path / "a.jsonl", reread=True)
    code, out, err = run(
        "ingest", str(tmp_path / "a.jsonl"), "--dataset", "demo", "--store", str(empty.path), "--json", "--quiet",
        "--prompt-field", "prompt", "--response-field", "response", "--reread",
    )  # fmt: skip
    assert code == 3
    assert re.fullmatch(r"curator: 1 rows in quarantine \(1 x .*\); see: curator quarantined .*\n", err)
    document = json.loads(out)
    assert list(document) == [field.name for field in dataclasses.fields(IngestReport)]
    assert document | {"seconds": 0} == again.to_dict() | {"seconds": 0}
    assert (report.added, again.present) == (3, 3)


@pytest.mark.parametrize(("command", "method"), [("status", "status"), ("verify", "verify"), ("compact", "compact")])
def test_commands_print_what_the_api_returns(copied: Curator, run: Run, command: str, method: str):
    code, out, err = run(command, "--store", str(copied.path), "--json")
    assert (code, err) == (0, "")
    assert set(json.loads(out)) == set(getattr(copied, method)())
    if command != "compact":
        assert json.loads(out) == json.loads(json.dumps(getattr(copied, method)()))


def test_results_convert_to_tables(asked: Curator):
    result = asked.query(**QUESTION, top=3, harmful=2)
    frame, table = result.to_pandas(), result.to_arrow()
    assert list(frame.columns) == ["end", "rank", *result.helpful[0].to_dict()]
    assert frame["end"].tolist() == ["helpful"] * 3 + ["harmful"] * 2
    assert frame["rank"].tolist() == [1, 2, 3, 1, 2]
    assert frame["value"].tolist() == [item.value for item in (*result.helpful, *result.harmful)]
    assert table.column_names == list(frame.columns)
    assert table["value"].to_pylist() == frame["value"].tolist()
    assert [json.loads(meta) for meta in table["meta"].to_pylist()] == frame["meta"].tolist()
