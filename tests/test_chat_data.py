"""Conversations and preference pairs through the whole service, under the demo model and a template given as a file."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from curator import Curator, demo
from curator.errors import UsageError
from tests.models.templates import CHATML, NO_PROMPT
from tests.stores import CORPUS, write_jsonl


def turns(row: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": row["prompt"]}, {"role": "assistant", "content": row["response"].strip()}]


ROWS = [{"messages": turns(row), "task": row["task"]} for row in CORPUS[:24]]
ASKED = [*ROWS[0]["messages"], {"role": "user", "content": "Again?"}, ROWS[0]["messages"][1]]
PAIRS = [
    {"prompt": one["prompt"], "chosen": one["response"], "rejected": other["response"]}
    for one, other in zip(CORPUS[:6], CORPUS[6:12], strict=True)
]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("template") / "chatml.jinja"
    path.write_text(CHATML, "utf-8")
    return path


def chat(curator: Curator, path: Path, rows: list[Any], template: Path, **options: Any) -> Any:
    write_jsonl(path, rows)
    options = {"dataset": "chat", "model": str(demo.MODEL), "chat_template": template} | options
    return curator.ingest(path, **options)


def test_conversations_are_ingested_asked_and_exported(empty: Curator, tmp_path: Path, template: Path) -> None:
    report = chat(empty, tmp_path / "a.jsonl", ROWS, template, label_field="task")
    assert report.reading == "chat: 24 conversations (messages)"
    assert (report.added, report.quarantined) == (24, 0)
    first = ROWS[0]["messages"]
    text = f"user: {first[0]['content']}\nassistant: {first[1]['content']}"
    write_jsonl(tmp_path / "q.jsonl", [ROWS[0]])
    # The template of the space stays: neither a second ingest nor a query names it.
    again = empty.ingest(tmp_path / "a.jsonl", dataset="chat", label_field="task")
    assert (again.space, again.present, again.added) == (report.space, 24, 0)
    factors = empty.query(data=tmp_path / "q.jsonl", top=24)
    exact = empty.query(data=tmp_path / "q.jsonl", top=24, exact=True)
    assert factors.helpful[0].text == text or factors.helpful[0].value > 0
    np.testing.assert_allclose(
        [item.value for item in sorted(factors.helpful, key=lambda item: item.id)],
        [item.value for item in sorted(exact.helpful, key=lambda item: item.id)],
        rtol=0.05, atol=0.05 * exact.helpful[0].value,
    )  # fmt: skip
    [found] = empty.query(data=tmp_path / "q.jsonl", where='text contains "user: ' + first[0]["content"] + '"').helpful
    assert found.text == text
    assert found.value == pytest.approx(empty.explain(found.id, data=tmp_path / "q.jsonl", exact=True).value, rel=0.05)
    empty.select(data=tmp_path / "q.jsonl", count=24, out=tmp_path / "out.jsonl")
    empty.select(data=tmp_path / "q.jsonl", count=24, out=tmp_path / "out.parquet")
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    assert all(row["messages"] in [one["messages"] for one in ROWS] for row in written)
    assert pq.read_table(tmp_path / "out.parquet")["messages"].to_pylist() == [row["messages"] for row in written]


def test_columns_read_as_turns_are_exported_as_columns(empty: Curator, tmp_path: Path, template: Path) -> None:
    rows = [{"instruction": row["prompt"], "input": "", "output": row["response"], "n": 1} for row in CORPUS[:8]]
    rows += [row | {"input": "now"} for row in rows]
    report = chat(empty, tmp_path / "a.jsonl", rows, template, shape="chat")
    assert report.reading == "chat: 16 conversations (instruction, input, output)"
    empty.select(text="x", count=16, out=tmp_path / "out.jsonl")
    written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text("utf-8").splitlines()]
    kept = [{name: row[name] for name in rows[0]} for row in written]
    assert sorted(kept, key=json.dumps) == sorted(rows, key=json.dumps)


def test_a_query_of_conversations_can_be_saved(empty: Curator, tmp_path: Path, template: Path) -> None:
    chat(empty, tmp_path / "a.jsonl", ROWS, template)
    write_jsonl(tmp_path / "q.jsonl", ROWS[:3])
    empty.save_query("good", data=tmp_path / "q.jsonl")
    asked = empty.query(data=tmp_path / "q.jsonl", exact=True)
    saved = empty.query(saved="good", exact=True)  # runs its samples again
    assert [(item.id, item.value) for item in saved.helpful] == [(item.id, item.value) for item in asked.helpful]


def test_a_template_of_ones_own_makes_a_space_and_text_alone_none(
    empty: Curator, tmp_path: Path, template: Path
) -> None:
    write_jsonl(tmp_path / "t.jsonl", CORPUS[:20])
    plain = empty.ingest(tmp_path / "t.jsonl", dataset="plain", model=str(demo.MODEL))
    first = chat(empty, tmp_path / "a.jsonl", ROWS, template)
    other = tmp_path / "other.jinja"
    other.write_text(CHATML.replace("im_start", "begin"), "utf-8")
    second = chat(empty, tmp_path / "a.jsonl", ROWS, other)
    assert len({plain.space, first.space, second.space}) == 3
    shown = [space["chat_template"] for space in empty.status()["spaces"]]
    assert shown[0] is None
    assert len({*shown}) == 3
    with empty._store.session() as session:
        from curator.metadata.spaces import find_space

        assert "chat_template" not in find_space(session, plain.space).recipe


@pytest.mark.parametrize("kind", ["none", "unclear"])
def test_a_template_that_will_not_do_is_an_error_before_the_first_write(
    empty: Curator, tmp_path: Path, kind: str
) -> None:
    given = {}
    if kind == "unclear":
        given["chat_template"] = tmp_path / "t.jinja"
        given["chat_template"].write_text(NO_PROMPT, "utf-8")
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(UsageError, match="--chat-template FILE"):
        empty.ingest(tmp_path / "a.jsonl", dataset="chat", model=str(demo.MODEL), **given)
    assert empty.status()["datasets"] == []
    assert empty.status()["spaces"] == []


def test_bad_conversations_are_quarantined_and_the_rest_goes_on(empty: Curator, tmp_path: Path, template: Path) -> None:
    said = ROWS[0]["messages"]
    bad: list[Any] = [
        {"messages": [said[0]]},
        {"messages": [said[0], {"role": "assistant", "content": None}]},
        {"messages": [said[0], {"role": "narrator", "content": "x"}]},
        {"messages": [said[0], {"role": "assistant", "content": ""}]},
        {"messages": []},
        {"messages": [{"role": "user", "content": "so " * 700_000}, said[1]]},  # two megabytes
    ]
    report = chat(empty, tmp_path / "a.jsonl", [*ROWS, *bad, {"messages": ASKED[:3]}], template)
    assert (report.added, report.quarantined, report.duplicates) == (25, 6, 0)
    reasons = [row["reason"].split(":")[0] for row in empty.quarantined()]
    assert reasons == [
        "no assistant turn", "content is not text", "unknown role", "empty turn", "empty conversation",
        "no counted token",
    ]  # fmt: skip


def test_a_pair_keeps_its_name_and_sides(empty: Curator, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "p.jsonl", PAIRS)
    report = empty.ingest(tmp_path / "p.jsonl", dataset="prefs", model=str(demo.MODEL))
    assert report.reading == "preference: 6 preference pairs (prompt, chosen, rejected)"
    assert (report.rows, report.added) == (6, 12)
    rows = {row["key"] for row in empty.values(text="x")}
    assert rows == {f"prefs:{i}/{side}" for i in range(6) for side in ("chosen", "rejected")}
    assert empty.ingest(tmp_path / "p.jsonl", dataset="prefs").present == 12
    [one, other] = empty.query(text="x", where='key = "prefs:3/chosen" or key = "prefs:3/rejected"').helpful
    assert one.meta["pair"] == other.meta["pair"]
    assert {one.meta["side"], other.meta["side"]} == {"chosen", "rejected"}
    # A changed pair has a new number, the same for both.
    write_jsonl(tmp_path / "p.jsonl", [*PAIRS[:5], PAIRS[5] | {"prompt": "Now?"}])
    assert empty.ingest(tmp_path / "p.jsonl", dataset="prefs").added == 2
    new = {row["key"] for row in empty.values(text="x")} - rows
    assert {key.split("/")[1] for key in new} == {"chosen", "rejected"}
    assert len({key.split("/")[0] for key in new}) == 1


def test_a_row_whose_samples_are_both_refused_is_quarantined_once(empty: Curator, tmp_path: Path) -> None:
    long = {"prompt": "so " * 2_000, "chosen": " yes", "rejected": " no"}
    write_jsonl(tmp_path / "p.jsonl", [*PAIRS, long])
    report = empty.ingest(tmp_path / "p.jsonl", dataset="prefs", model=str(demo.MODEL))
    assert report.added == 12
    assert [row["row"] for row in empty.quarantined()] == [6]


@pytest.mark.parametrize("method", ["raw", "preconditioned"])
def test_pairs_as_a_query_are_chosen_less_rejected(asked: Curator, tmp_path: Path, method: Any) -> None:
    """<mean of chosen - mean of rejected, G> = <mean of chosen, G> - <mean of rejected, G>."""
    write_jsonl(tmp_path / "p.jsonl", PAIRS)
    for side in ("chosen", "rejected"):
        write_jsonl(tmp_path / f"{side}.jsonl", [{"prompt": row["prompt"], "response": row[side]} for row in PAIRS])

    def values(name: str) -> np.ndarray:
        return np.array([row["value"] for row in asked.values(data=tmp_path / f"{name}.jsonl", method=method)])

    expected = values("chosen") - values("rejected")
    scale = np.abs(expected).max()
    np.testing.assert_allclose(values("p"), expected, atol=1e-4 * scale)
    answer = asked.query(data=tmp_path / "p.jsonl", method=method)
    assert answer.query["num_samples"] == 12
    assert answer.notes[0] == "reading as preference: preference pairs (prompt, chosen, rejected)"
    each = list(asked.queries(data=tmp_path / "p.jsonl", method=method, each=True))
    assert [result.query["row"] for result in each] == list(range(6))


def test_pairs_as_a_saved_query_and_explained(copied: Curator, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "p.jsonl", PAIRS[:2])
    copied.save_query("better", data=tmp_path / "p.jsonl")
    asked = copied.query(data=tmp_path / "p.jsonl", exact=True)
    saved = copied.query(saved="better", exact=True)
    np.testing.assert_allclose(
        [item.value for item in saved.helpful], [item.value for item in asked.helpful], rtol=1e-4
    )
    found = copied.explain(asked.helpful[0].id, data=tmp_path / "p.jsonl", exact=True)
    assert found.value == pytest.approx(asked.helpful[0].value, rel=1e-3)
    assert abs(found.rest) < 1e-3 * abs(found.value) + 1e-6


def test_preview_tells_what_an_ingest_would_read(tmp_path: Path, template: Path, run: Callable[..., Any]) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"messages": ASKED}, *ROWS, {"messages": [ASKED[0]]}])
    found = Curator.preview(path, model=str(demo.MODEL), num=1, chat_template=template)
    [sample] = found.samples
    said = ASKED[1]["content"]
    counted = [text for text, is_counted in sample.pieces if is_counted]
    assert counted == [f"{said}<|im_end|>"] * 2
    everything = "".join(text for text, _ in sample.pieces)
    assert everything == (
        f"<|im_start|>user\n{ASKED[0]['content']}<|im_end|>\n<|im_start|>assistant\n{said}<|im_end|>\n"
        f"<|im_start|>user\nAgain?<|im_end|>\n<|im_start|>assistant\n{said}<|im_end|>\n"
    )
    assert (found.num_rows, found.num_samples, found.num_quarantined) == (26, 25, 1)
    with Curator.open(tmp_path / "store", device="cpu") as curator:
        report = curator.ingest(path, dataset="d", model=str(demo.MODEL), chat_template=template)
        [space] = curator.status()["spaces"]
    assert (report.added, report.truncated) == (found.num_samples, found.num_truncated)
    assert (space["tokens"], space["counted_tokens"]) == (found.num_tokens, found.num_counted)
    command = ["preview", str(path), "--model", str(demo.MODEL), "-n", "1", "--chat-template", str(template)]
    code, out, err = run(*command, "--json")
    assert (code, err) == (0, "")
    assert json.loads(out) == json.loads(json.dumps(found.to_dict()))
    code, out, err = run(*command)
    assert (code, err) == (0, "")
    assert out.startswith("reading as chat: conversations (messages)\n")
    assert f"«{said}<|im_end|>»" in out
    assert "row 25 would go to quarantine: no assistant turn" in out


def test_nothing_to_preview_is_an_error(tmp_path: Path, run: Callable[..., Any]) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": ""}])
    code, out, err = run("preview", str(path), "--model", str(demo.MODEL))
    assert (code, out) == (2, "")
    assert err.startswith("curator: nothing to preview in a.jsonl: none of the first 1 rows is usable: empty text")
