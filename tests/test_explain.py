"""The parts of an explanation sum to the value, and each is the inner product that it says."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from curator import Curator, demo
from curator.errors import NotFoundError, UsageError
from curator.models import CausalLM, Encoder, load_tokenizer
from curator.query import Explanation
from curator.types import EncodedSample, Sample
from curator.value import METHODS, Method
from tests.stores import CORPUS, NAMED, QUESTION, SIZE, VALIDATION, add

KEY = str(CORPUS[3]["id"])


def parts(found: Explanation) -> tuple[float, float]:
    """The sums of the tokens' parts on both sides."""
    return sum(token.value for token in found.tokens), sum(part.value for part in found.query_samples)


@pytest.mark.parametrize("method", METHODS)
def test_exactly_run_the_parts_sum_to_the_exact_value(asked: Curator, method: Method) -> None:
    """On both sides, to rounding; and the value is that of `query --exact`."""
    found = asked.explain(KEY, **QUESTION, method=method, exact=True)
    answer = asked.query(**QUESTION, method=method, exact=True, rerank=SIZE, top=SIZE)
    (item,) = (item for item in answer.helpful if item.key == KEY)
    assert found.value == pytest.approx(item.value, rel=1e-5)
    assert abs(found.rest) < 2e-5 * abs(found.value)
    assert parts(found) == pytest.approx((found.value, found.value), rel=1e-4)
    for part in found.query_samples:
        assert sum(token.value for token in part.tokens) == pytest.approx(part.value, rel=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_from_factors_the_parts_and_the_rest_sum_to_the_value_of_the_answer(asked: Curator, method: Method) -> None:
    found = asked.explain(KEY, **QUESTION, method=method)
    answer = asked.query(**QUESTION, method=method, rerank=SIZE, top=SIZE)
    (item,) = (item for item in answer.helpful if item.key == KEY)
    assert found.value == pytest.approx(item.value, rel=1e-5)
    on_sample, on_query = parts(found)
    assert on_sample == pytest.approx(on_query, rel=1e-4)
    assert on_sample + found.rest == pytest.approx(found.value, rel=1e-6)


def test_a_pair_is_the_product_of_its_inner_products(asked: Curator) -> None:
    """<e_k, e_k'> <h_k, h_k'> from full forward passes, token by token."""
    lm = CausalLM.load(demo.MODEL, device="cpu", dtype="float32")
    encoder = Encoder(load_tokenizer(demo.MODEL), max_length=512, vocab_size=lm.vocab_size)

    def states(prompt: str, response: str) -> tuple[torch.Tensor, torch.Tensor]:
        (item,) = encoder.encode([Sample(prompt=prompt, response=response)])
        assert isinstance(item, EncodedSample)
        counted = torch.from_numpy(item.counted)[1:]
        labels = torch.from_numpy(item.input_ids)[1:][counted]
        logits = lm.forward([item])[0, :-1][counted].double()
        ids = torch.from_numpy(item.input_ids)[None]
        hidden = lm._model.base_model(ids).last_hidden_state[0, :-1][counted].double()
        return torch.nn.functional.one_hot(labels, logits.shape[1]).double() - logits.softmax(-1), hidden

    with torch.no_grad():
        errors, hidden = states(CORPUS[3]["prompt"], CORPUS[3]["response"])
        of_query, hidden_of_query = states(QUESTION["prompt"], QUESTION["response"])
    expected = ((errors @ of_query.T) * (hidden @ hidden_of_query.T)).numpy()
    found = asked.explain(KEY, **QUESTION, exact=True, pairs=10_000)
    assert len(found.pairs) == expected.size
    matrix = np.zeros_like(expected)
    for pair in found.pairs:
        matrix[pair.sample_token, pair.query_token] = pair.value
    np.testing.assert_allclose(matrix, expected, atol=1e-5 * np.abs(expected).max())
    sizes = [abs(pair.value) for pair in found.pairs]
    assert sizes == sorted(sizes, reverse=True)
    likeliest = (-of_query).topk(3).values.numpy()
    shown = [[error for _, error in token.expected] for token in found.query_samples[0].tokens]
    for row, values in zip(likeliest, shown, strict=True):
        assert values == pytest.approx([value for value in row if value > 0], rel=1e-4, abs=1e-7)


def test_a_mean_is_split_over_its_samples(asked: Curator) -> None:
    """Of a query with more samples than are shown, those with the largest parts, largest first."""
    found = asked.explain(KEY, **VALIDATION, exact=True)
    each = [asked.explain(KEY, **VALIDATION | row, exact=True).value for row in one_by_one()]
    assert found.how["num_query_samples"] == len(each) > len(found.query_samples)
    expected = sorted((value / len(each) for value in each), key=abs, reverse=True)
    assert [part.value for part in found.query_samples] == pytest.approx(expected[: len(found.query_samples)], rel=1e-3)
    assert sum(token.value for token in found.tokens) == pytest.approx(found.value, rel=1e-4)
    assert found.not_shown == pytest.approx(sum(expected[len(found.query_samples) :]), rel=1e-3)
    assert parts(found)[1] + found.not_shown + found.rest == pytest.approx(found.value, rel=1e-6)


def one_by_one() -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in demo.VALIDATION["addition"].read_text().splitlines()]
    nothing = {"data": (), "prompt_field": None, "response_field": None}
    return [nothing | {name: row[name] for name in ("prompt", "response")} for row in rows]


@pytest.mark.parametrize("exact", [False, True])
def test_saved_queries_and_expressions_are_explained_as_the_queries_they_are(copied: Curator, exact: bool) -> None:
    copied.save_query("good", **VALIDATION)
    copied.save_query("one", **QUESTION)
    saved, direct = (copied.explain(KEY, exact=exact, **asked) for asked in ({"saved": "good"}, VALIDATION))
    assert [t.value for t in saved.tokens] == pytest.approx([t.value for t in direct.tokens], rel=1e-4, abs=1e-8)
    both = copied.explain(KEY, exact=exact, expr="good - 0.5 * one")
    one = copied.explain(KEY, exact=exact, **QUESTION)
    expected = [a.value - 0.5 * b.value for a, b in zip(direct.tokens, one.tokens, strict=True)]
    assert [t.value for t in both.tokens] == pytest.approx(expected, rel=1e-3, abs=1e-7)


def test_a_sample_is_named_by_key_or_id(asked: Curator) -> None:
    by_key = asked.explain(KEY, **QUESTION)
    assert by_key.sample["text"] == CORPUS[3]["prompt"] + CORPUS[3]["response"]
    by_id = asked.explain(by_key.sample["id"], **QUESTION)
    by_digits = asked.explain(str(by_key.sample["id"]), **QUESTION)
    assert by_id.to_dict() == by_digits.to_dict() == by_key.to_dict()


def test_what_cannot_be_explained_is_said(copied: Curator, tmp_path: Path) -> None:
    for name in ("nothing", 10**12, "9" * 30):
        with pytest.raises(NotFoundError, match="no sample with key or id"):
            copied.explain(name, **QUESTION)
    with pytest.raises(UsageError, match="leave --each and --by out"):
        copied.explain(KEY, **VALIDATION, each=True)
    add(copied, tmp_path / "again.jsonl", CORPUS[:5], **NAMED, dataset="again")
    with pytest.raises(UsageError, match=r"several samples have the key.*\(again\)"):
        copied.explain(KEY, **QUESTION)
    copied.delete('dataset = "demo"')
    assert copied.explain(KEY, **QUESTION).sample["dataset"] == "again"


def test_the_command_line_says_the_same_and_writes_a_page(run: Any, asked: Curator, tmp_path: Path) -> None:
    store = ["--store", str(asked.path)]
    question = ["--prompt", QUESTION["prompt"], "--response", QUESTION["response"]]
    code, out, _ = run("explain", KEY, *store, *question, "--json", "--pairs", "3")
    assert code == 0
    assert json.loads(out) == json.loads(json.dumps(asked.explain(KEY, **QUESTION, pairs=3).to_dict()))
    code, out, _ = run("explain", KEY, *store, *question)
    assert code == 0
    assert "instead of" in out
    page = tmp_path / "why.html"
    assert run("explain", KEY, *store, *question, "--html", str(page))[0] == 0
    assert "<html" in page.read_text()
    assert "http" not in page.read_text()  # it stands alone
    code, out, _ = run("explain", KEY, *store, *question, "--html", str(page), "--json")
    assert (code, json.loads(out)["sample"]["key"]) == (0, KEY)
    code, _, err = run("explain", "nothing", *store, *question)
    assert (code, "no sample with key or id 'nothing'" in err) == (4, True)


def test_a_page_is_whole_or_what_was_there(
    run: Any, asked: Curator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = tmp_path / "why.html"
    page.write_text("before")
    arguments = ["explain", KEY, "--store", str(asked.path), "--prompt", "a", "--response", " b", "--html"]
    write = Path.write_text

    def full(path: Path, text: str, **options: Any) -> None:
        write(path, text[: len(text) // 2], **options)
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr(Path, "write_text", full)
        code, _, err = run(*arguments, str(page))
    assert (code, "cannot be written: No space left" in err) == (1, True)
    assert page.read_text() == "before"
    assert [path.name for path in tmp_path.iterdir()] == ["why.html"]
    code, _, err = run(*arguments, str(tmp_path / "no" / "why.html"))
    assert (code, "there is no directory" in err, "make it first" in err) == (1, True, True)


def test_a_hostile_text_is_shown_as_text(run: Any, empty: Curator, tmp_path: Path) -> None:
    add(empty, tmp_path / "bad.jsonl", [{"prompt": "<script>alert(1)</script>", "response": " \x1b[31mred[bold]"}] * 1
        + CORPUS[:5])  # fmt: skip
    page = tmp_path / "why.html"
    options = ["--prompt", "<b>x</b>", "--response", " <i>y</i>", "--html", str(page)]
    assert run("explain", "demo:0", "--store", str(empty.path), *options)[0] == 0
    assert "<script>" not in page.read_text()
    assert "<b>" not in page.read_text()
    assert "\x1b" not in page.read_text()
