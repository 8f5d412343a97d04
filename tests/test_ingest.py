"""Ingest: what comes in, what is counted, and what no option changes."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curator import Curator, demo
from curator.errors import UsageError
from curator.models import CausalLM, Encoder, load_tokenizer
from curator.types import Sample
from curator.value import Forward
from index.projection import Projection
from tests.sources.files import write_bytes, write_parquet
from tests.stores import CORPUS, NAMED, QUESTION, add, contents, values_of, write_jsonl

FEW = CORPUS[:6]


def keys(curator: Curator) -> list[str]:
    return [key for _, key, _ in contents(curator)]


def counted(report: Any) -> int:
    parts = (report.added, report.replaced, report.present, report.duplicates, report.deleted, report.quarantined)
    return int(sum(parts))


def test_ingesting_again_adds_nothing(empty: Curator, tmp_path: Path):
    first = add(empty, tmp_path / "a.jsonl", FEW)
    before = contents(empty)
    again = add(empty, tmp_path / "a.jsonl")
    assert (first.added, first.present, first.is_new_space) == (6, 0, True)
    assert (again.added, again.unread, again.is_new_space, again.num_samples) == (0, 6, False, 6)
    assert contents(empty) == before


def test_a_grown_file_adds_only_its_new_rows(empty: Curator, tmp_path: Path):
    add(empty, tmp_path / "a.jsonl", FEW)
    before = contents(empty)
    report = add(empty, tmp_path / "a.jsonl", CORPUS[:9])
    assert (report.added, report.unread, report.rows) == (3, 6, 3)
    assert contents(empty)[:6] == before
    assert keys(empty) == [f"demo:{row}" for row in range(9)]
    assert [id_ for id_, _, _ in contents(empty)] == list(range(1, 10))


def test_rows_keep_their_numbers_while_several_files_grow(empty: Curator, tmp_path: Path):
    add(empty, tmp_path / "a.jsonl", CORPUS[:3])
    add(empty, tmp_path / "b.jsonl", CORPUS[3:5])
    add(empty, tmp_path / "a.jsonl", CORPUS[:3] + CORPUS[5:7])
    expected = [*CORPUS[:3], *CORPUS[3:5], *CORPUS[5:7]]  # in the order of their coming
    found = {item.key: item.text for item in empty.query(**QUESTION, top=20).helpful}
    assert found == {f"demo:{row}": item["prompt"] + item["response"] for row, item in enumerate(expected)}
    assert add(empty, tmp_path / "a.jsonl").unread == 5
    assert add(empty, tmp_path / "b.jsonl").unread == 2


def test_a_moved_file_adds_nothing(empty: Curator, tmp_path: Path):
    add(empty, tmp_path / "a.jsonl", FEW)
    (tmp_path / "a.jsonl").rename(tmp_path / "moved.jsonl")
    report = add(empty, tmp_path / "moved.jsonl")
    assert (report.added, report.present, report.num_samples) == (0, 6, 6)


def test_duplicates_are_counted_and_kept_once(empty: Curator, tmp_path: Path):
    report = add(empty, tmp_path / "a.jsonl", [*FEW, FEW[2], *FEW[:2]], segment_samples=4)
    assert (report.added, report.duplicates, counted(report)) == (6, 3, 9)


def test_a_dataset_of_its_own_takes_the_same_rows(empty: Curator, tmp_path: Path):
    add(empty, tmp_path / "a.jsonl", FEW)
    report = add(empty, tmp_path / "a.jsonl", dataset="other")
    assert (report.added, report.is_new_space) == (6, False)


def test_a_key_that_two_rows_of_the_data_have_is_quarantined_with_the_reason(empty: Curator, tmp_path: Path):
    twice = [*FEW, {**CORPUS[9], "id": FEW[0]["id"]}]
    report = add(empty, tmp_path / "a.jsonl", twice, **NAMED)
    assert (report.added, report.quarantined) == (6, 1)
    write_jsonl(tmp_path / "b.jsonl", [{**CORPUS[10], "id": FEW[1]["id"]}, CORPUS[11]])
    later = add(empty, tmp_path, **NAMED)  # the first file is not read again, and counts all the same
    assert (later.added, later.quarantined, later.unread) == (1, 1, 7)
    reasons = {(Path(row["source"]).name, row["row"]): row["reason"] for row in empty.quarantined()}
    assert list(reasons) == [("a.jsonl", 6), ("b.jsonl", 0)]
    assert all(reason.startswith("key taken: ") for reason in reasons.values())


def test_a_changed_label_updates_the_same_sample(empty: Curator, tmp_path: Path):
    add(empty, tmp_path / "a.jsonl", FEW, **NAMED)
    before = contents(empty)
    changed = [{**FEW[0], "task": "new", "source": "x"}, *FEW[1:]]
    report = add(empty, tmp_path / "a.jsonl", changed, **NAMED)
    assert (report.added, report.present, report.updated) == (0, 6, 1)
    assert contents(empty) == before
    found = empty.query(**QUESTION, where='label = "new"').helpful
    assert [(item.key, item.meta) for item in found] == [
        (FEW[0]["id"], {"is_wrong": FEW[0]["is_wrong"], "source": "x"})
    ]


BAD_LINES = {
    '{"prompt": "a"}': "no field",
    '{"prompt": "a", "response": "  "}': "empty text",
    '{"prompt": "a", "response": 4}': "not text: it is a number",
    '{"prompt": "a", "response": ': "not valid JSON",
    '["a"]': "not a JSON object",
    '{"prompt": "a", "response": "\\ud800"}': "not valid Unicode",
    '{"prompt": "a", "response": "\\u0000"}': "NUL",
    json.dumps({"prompt": "word " * 400, "response": "b"}): "no counted token: the prompt alone has",
}


def test_every_row_read_is_in_exactly_one_count(empty: Curator, tmp_path: Path):
    good = [json.dumps(row) for row in FEW]
    lines = [*good[:3], *BAD_LINES, *good, good[0]]
    (tmp_path / "a.jsonl").write_text("\n".join(lines) + "\n")
    report = add(empty, tmp_path / "a.jsonl", segment_samples=2)
    assert (report.rows, report.added, report.duplicates) == (len(lines), 6, 4)
    assert report.quarantined == len(BAD_LINES) == sum(report.reasons.values())
    assert counted(report) == report.rows
    again = add(
        empty, write_bytes(tmp_path / "b.jsonl", b"\n" + (tmp_path / "a.jsonl").read_bytes()), segment_samples=3
    )
    assert counted(again) == again.rows
    assert (again.added, again.present, again.duplicates) == (0, 6, 4)


def test_bad_rows_are_quarantined_until_the_file_is_repaired(empty: Curator, tmp_path: Path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join([json.dumps(FEW[0]), *BAD_LINES]) + "\n")
    add(empty, path)
    found = empty.quarantined("demo")
    assert [(row["source"], row["row"]) for row in found] == [(str(path), row + 1) for row in range(len(BAD_LINES))]
    for row, reason in zip(found, BAD_LINES.values(), strict=True):
        assert reason in row["reason"]
        assert row["excerpt"].isprintable()
    report = add(empty, path, FEW[:4])
    assert (report.added, report.present) == (3, 1)
    left = [row["row"] for row in empty.quarantined()]
    assert left == list(range(4, len(BAD_LINES) + 1))  # rows that the file no longer has were not read again
    add(empty, path, CORPUS[: len(BAD_LINES) + 1])
    assert empty.quarantined() == []


def test_long_samples_are_cut_and_marked_or_refused(empty: Curator, tmp_path: Path):
    long = {"prompt": "Count.", "response": " one two" * 300}
    cut = add(empty, tmp_path / "a.jsonl", [FEW[0], long])
    assert (cut.added, cut.truncated) == (2, 1)
    assert len(list(empty.values(**QUESTION, where="is_truncated = true"))) == 1
    refused = add(empty, tmp_path / "b.jsonl", [FEW[1], long], dataset="other", on_long="reject")
    assert (refused.added, refused.quarantined) == (1, 1)
    assert "too long" in empty.quarantined("other")[0]["reason"]


@pytest.mark.parametrize(
    "options",
    [{"prompt_field": "question"}, {"prompt_field": None}, {"max_length": 9999}, {"dataset": " "}, {"batch_tokens": 0}],
    ids=str,
)
def test_what_cannot_be_done_leaves_no_trace(empty: Curator, tmp_path: Path, options: dict[str, Any]):
    with pytest.raises(UsageError):
        add(empty, tmp_path / "a.jsonl", FEW, **options)
    status = empty.status()
    assert (status["spaces"], status["datasets"]) == ([], [])
    assert [list((empty.path / folder).iterdir()) for folder in ("spaces", "segments", "tmp")] == [[], [], []]


def test_rows_that_are_all_too_long_make_no_space(empty: Curator, tmp_path: Path):
    with pytest.raises(UsageError, match=r"no row of a\.jsonl is usable"):
        add(empty, tmp_path / "a.jsonl", [{"prompt": "word " * 400, "response": "b"}])
    assert empty.status()["spaces"] == []


@pytest.mark.parametrize("size", [1, 3])
@pytest.mark.parametrize("method", ["raw", "cosine", "preconditioned"])
def test_a_tiny_corpus_answers(empty: Curator, tmp_path: Path, size: int, method: Any):
    add(empty, tmp_path / "a.jsonl", CORPUS[:size])
    for how in ({"rerank": 0}, {}, {"exact": True}):
        result = empty.query(**QUESTION, method=method, **how)
        assert len(result.helpful) == len(result.harmful) == size
        assert all(np.isfinite(item.value) for item in result.helpful)


def test_every_format_makes_the_same_samples(empty: Curator, tmp_path: Path):
    rows = [{name: str(row[name]) for name in ("prompt", "response")} for row in FEW]
    (tmp_path / "folder" / "deep").mkdir(parents=True)
    plain = write_jsonl(tmp_path / "a.jsonl", rows)
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "response"])
        writer.writeheader()
        writer.writerows(rows)
    write_jsonl(tmp_path / "folder" / "1.jsonl", rows[:2])
    write_jsonl(tmp_path / "folder" / "deep" / "2.jsonl", rows[2:])
    paths = [
        plain,
        tmp_path / "a.csv",
        write_bytes(tmp_path / "b.jsonl.gz", plain.read_bytes()),
        write_bytes(tmp_path / "c.jsonl.zst", plain.read_bytes()),
        write_parquet(tmp_path / "a.parquet", rows),
        tmp_path / "folder",
    ]
    for path in paths:
        assert add(empty, path, dataset=path.name).added == len(rows), path
    by_dataset = {p.name: list(empty.values(**QUESTION, where=f'dataset = "{p.name}"')) for p in paths}
    expected = [row["value"] for row in by_dataset["a.jsonl"]]
    for name, found in by_dataset.items():
        assert [row["value"] for row in found] == expected, name


def test_a_file_that_breaks_off_keeps_what_was_read(empty: Curator, tmp_path: Path):
    add(empty, tmp_path / "a.jsonl", FEW)
    lines = [json.dumps(row) for row in CORPUS[:40]]
    whole = write_bytes(tmp_path / "b.jsonl.gz", ("\n".join(["{broken", *lines * 60]) + "\n").encode())
    whole.write_bytes(whole.read_bytes()[:-40])
    with pytest.raises(UsageError):
        add(empty, whole, dataset="b")
    kept = {row["dataset"]: row for row in empty.status()["datasets"]}.get("b")
    assert kept is not None, "the first 1,000 rows could be read"
    assert (kept["samples"], kept["quarantined"]) == (40, 1)
    assert empty.verify()["problems"] == []


@pytest.fixture(scope="module")
def lm() -> CausalLM:
    return CausalLM.load(demo.MODEL, device="cpu")


def test_a_representation_does_not_depend_on_its_batch(lm: CausalLM, built: Path):
    projection = Projection.load(next(built.glob("spaces/*/projection.safetensors")))
    encoder = Encoder(load_tokenizer(demo.MODEL), max_length=256, vocab_size=lm.vocab_size)
    samples = [Sample(prompt=row["prompt"], response=row["response"]) for row in CORPUS[:20]]
    encoded = encoder.encode([*samples, Sample(text=" ".join(row["prompt"] for row in CORPUS[:8]))])

    def represent(order: list[int], batch_tokens: int) -> dict[int, Any]:
        batches = Forward(lm, batch_tokens).representations([encoded[i] for i in order], projection)
        return {order[at]: part for places, parts in batches for at, part in zip(places, parts, strict=True)}

    straight = list(range(len(encoded)))
    alone = represent(straight, 1)
    for order, batch_tokens in ((straight, 8192), (straight[::-1], 60), (straight[::2] + straight[1::2], 300)):
        for at, part in represent(order, batch_tokens).items():
            assert part.norm == pytest.approx(alone[at].norm, rel=1e-5)
            assert part.loss == pytest.approx(alone[at].loss, rel=1e-5, abs=1e-7)
            assert np.linalg.norm(part.sketch - alone[at].sketch) <= 1e-5 * alone[at].norm


def test_values_do_not_depend_on_how_the_data_was_ingested(empty: Curator, tmp_path: Path):
    rows = CORPUS[:24]
    add(empty, tmp_path / "a.jsonl", rows, **NAMED)
    ways: dict[str, tuple[list[Any], dict[str, int]]] = {
        "batches": (rows, {"batch_tokens": 40}),
        "segments": (rows, {"segment_samples": 5}),
        "tokens": (rows, {"segment_tokens": 77, "batch_tokens": 100}),
        "order": (rows[::-1], {"segment_samples": 7}),
    }
    expected = values_of(empty, **QUESTION)
    scale = max(map(abs, expected.values()))
    for name, (ordered, options) in ways.items():
        report = add(empty, tmp_path / f"{name}.jsonl", ordered, dataset=name, **NAMED, **options)
        assert (report.added, report.is_new_space) == (len(rows), False)
        found = values_of(empty, **QUESTION, where=f'dataset = "{name}"')
        assert list(found) == [row["id"] for row in ordered]
        # Sketches are stored in float16: a last bit of float32 may round to its neighbour.
        assert found == pytest.approx(expected, abs=1e-4 * scale)


def test_the_same_data_under_the_same_model_is_the_same_space(empty: Curator, tmp_path: Path):
    report = add(empty, tmp_path / "a.jsonl", FEW)
    with Curator.open(tmp_path / "other", device="cpu") as other:
        assert add(other, tmp_path / "a.jsonl").space == report.space
        assert contents(other) == contents(empty)
        assert add(other, tmp_path / "a.jsonl", positions="all").space != report.space


def test_interrupted_work_continues_with_the_same_command(empty: Curator, tmp_path: Path):
    rows = CORPUS[:20]
    with Curator.open(tmp_path / "straight", device="cpu") as straight:
        add(straight, tmp_path / "a.jsonl", rows, segment_samples=4)
        expected = contents(straight)

    def interrupt(progress: Any) -> None:
        if progress.samples > 4:  # in the second segment of every run
            raise KeyboardInterrupt

    for committed in (4, 8, 12):
        report = add(empty, tmp_path / "a.jsonl", segment_samples=4, on_progress=interrupt)
        assert (report.is_interrupted, report.added, report.num_samples) == (True, 4, committed)
    add(empty, tmp_path / "a.jsonl", segment_samples=4)
    assert contents(empty) == expected
    assert empty.verify()["problems"] == []


def limit_memory(monkeypatch: pytest.MonkeyPatch, most: int, error: Exception) -> list[int]:
    """The model refuses batches of more than `most` tokens; returns the sizes that it was asked for."""
    hidden, sizes = CausalLM.hidden, []

    def limited(self: CausalLM, batch: Any) -> Any:
        sizes.append(len(batch) * max(sample.num_tokens for sample in batch))
        if sizes[-1] > most:
            raise error
        return hidden(self, batch)

    monkeypatch.setattr(CausalLM, "hidden", limited)
    return sizes


@pytest.mark.parametrize(
    "error",
    [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("DefaultCPUAllocator: can't allocate memory")],
    ids=["cuda", "cpu"],
)
def test_out_of_memory_halves_the_batch(copied: Curator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error):
    expected = contents(copied)
    sizes = limit_memory(monkeypatch, 120, error)
    report = add(copied, tmp_path / "b.jsonl", CORPUS[:24], dataset="again")
    assert (report.added, report.quarantined) == (24, 0)
    assert max(sizes) > 120
    assert sizes[-1] <= 120
    monkeypatch.undo()
    found = [row["value"] for row in copied.values(**QUESTION, where='dataset = "again"')]
    assert found == pytest.approx([value for _, _, value in expected[:24]], rel=1e-3, abs=1e-3)


def test_a_sample_that_does_not_fit_alone_is_quarantined(
    copied: Curator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    limit_memory(monkeypatch, 40, torch.OutOfMemoryError("CUDA out of memory"))
    rows = [CORPUS[0], {"prompt": "Say it.", "response": " one two three" * 20}, CORPUS[1]]
    report = add(copied, tmp_path / "b.jsonl", rows, dataset="again")
    assert (report.added, report.quarantined) == (2, 1)
    assert [(row["row"], row["reason"][:13]) for row in copied.quarantined()] == [(1, "out of memory")]


def test_other_failures_of_the_model_are_not_taken_for_a_lack_of_memory(
    copied: Curator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    limit_memory(monkeypatch, 0, RuntimeError("an illegal memory access was encountered"))
    with pytest.raises(RuntimeError, match="illegal"):
        add(copied, tmp_path / "b.jsonl", FEW, dataset="again")


def test_a_sample_with_nan_is_quarantined_and_its_batch_is_not(
    empty: Curator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    add(empty, tmp_path / "a.jsonl", CORPUS[:8])
    expected = [value for _, _, value in contents(empty)]
    hidden = CausalLM.hidden
    poisoned = CORPUS[3]["prompt"]
    ids = Encoder(load_tokenizer(demo.MODEL), max_length=256, vocab_size=10_000).encode([Sample(text=poisoned)])[0]

    def poison(self: CausalLM, batch: Any) -> Any:
        found = hidden(self, batch)
        start = ids.input_ids[:-1]
        parts = list(found.hidden.split(found.counts))
        for at, sample in enumerate(batch):
            if np.array_equal(sample.input_ids[: len(start)], start):
                parts[at] = torch.full_like(parts[at], float("nan"))
        return type(found)(torch.cat(parts), found.labels, found.counts)

    monkeypatch.setattr(CausalLM, "hidden", poison)
    report = add(empty, tmp_path / "a.jsonl", dataset="again")
    assert (report.added, report.quarantined, report.reasons) == (7, 1, {"not finite": 1})
    assert [row["row"] for row in empty.quarantined()] == [3]
    monkeypatch.undo()
    found = [row["value"] for row in empty.values(**QUESTION, where='dataset = "again"')]
    assert found == pytest.approx(expected[:3] + expected[4:], rel=1e-3, abs=1e-3)
    assert add(empty, tmp_path / "a.jsonl", dataset="again").added == 1  # a better model, or a better day
    assert empty.quarantined() == []
