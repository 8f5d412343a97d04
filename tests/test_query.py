"""Queries: the right samples at both ends, the right values at every tier, and an honest account of how."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import spearmanr
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from curator import Curator, demo
from curator.errors import FilterError, ModelError, NotFoundError, SpaceError, UsageError
from curator.models import CausalLM
from curator.query import QueryResult
from curator.value import DEFAULT_DAMPING, METHODS, reference
from index.projection import Projection
from tests.models.tiny import save_tiny
from tests.stores import CORPUS, FIELDS, NAMED, QUESTION, SIZE, VALIDATION, add, values_of, write_jsonl

ALL = {"top": SIZE, "harmful": SIZE}


def ranked(result: QueryResult) -> list[tuple[int, float]]:
    return [(item.id, item.value) for item in result.helpful]


def valued(result: QueryResult) -> dict[int, float]:
    return {item.id: item.value for item in (*result.helpful, *result.harmful)}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("how", [{"rerank": 0}, {}, {"exact": True}], ids=["sketch", "factors", "exact"])
def test_both_ends_are_sorted(asked: Curator, method: Any, how: dict[str, Any]):
    result = asked.query(**VALIDATION, method=method, **how)
    assert ranked(result) == sorted(ranked(result), key=lambda item: (-item[1], item[0]))
    harmful = [(item.id, item.value) for item in result.harmful]
    assert harmful == sorted(harmful, key=lambda item: (item[1], item[0]))
    assert len(result.helpful) == len(result.harmful) == 10
    assert result.helpful[-1].value >= result.harmful[-1].value


def test_ties_are_broken_by_id(copied: Curator, tmp_path: Path):
    for dataset in ("second", "third"):
        add(copied, tmp_path / "a.jsonl", CORPUS[:4], dataset=dataset)
    result = copied.query(**QUESTION, where=f'dataset in ["second", "third"] or id <= {4}', rerank=0, top=12)
    by_text: dict[str, list[int]] = {}
    for item in result.helpful:
        by_text.setdefault(item.text, []).append(item.id)
    assert all(len(ids) == 3 for ids in by_text.values())
    values = [item.value for item in result.helpful]
    tied = [ids for ids in by_text.values() if len({values[[i.id for i in result.helpful].index(x)] for x in ids}) == 1]
    assert tied
    assert all(ids == sorted(ids) for ids in tied)


def test_the_sketch_tier_is_the_value_of_everything(asked: Curator):
    everything = values_of(asked, **VALIDATION)
    found = asked.query(**VALIDATION, rerank=0, **ALL)
    assert {item.key: item.value for item in found.helpful} == pytest.approx(everything, rel=1e-5)
    assert (found.how.tier, found.how.candidates, found.how.num_samples) == ("sketch", 0, SIZE)
    assert [item.id for item in found.helpful] == [item.id for item in found.harmful][::-1]


def test_k_beyond_the_corpus_gives_all_of_it(asked: Curator):
    result = asked.query(**QUESTION, top=10_000, harmful=10_000)
    assert sorted(item.id for item in result.helpful) == list(range(1, SIZE + 1))
    assert len(result.harmful) == SIZE
    assert asked.query(**QUESTION, top=0, harmful=0).helpful == []
    with pytest.raises(UsageError, match="--top must be 0 to 10,000"):
        asked.query(**QUESTION, top=10_001)


def test_a_filter_admits_only_what_matches(asked: Curator):
    where = 'label = "group" and text contains "kind"'
    expected = {r["id"] for r in CORPUS[:SIZE] if r["task"] == "group" and "kind" in r["prompt"] + r["response"]}
    assert expected
    for how in ({"rerank": 0}, {}, {"exact": True}, {"method": "cosine"}):
        result = asked.query(**QUESTION, where=where, top=SIZE, **how)
        assert {item.key for item in result.helpful} == expected
        assert (result.how.num_eligible, result.how.num_samples) == (len(expected), SIZE)
    nothing = asked.query(**QUESTION, where="id < 0")
    assert (nothing.helpful, nothing.harmful, nothing.how.num_eligible) == ([], [], 0)
    with pytest.raises(FilterError):
        asked.query(**QUESTION, where="lable = 1")


def test_one_answer_for_every_row(asked: Curator, tmp_path: Path):
    rows = [*CORPUS[70:72], {"prompt": 1}, CORPUS[72], {"prompt": "x", "response": " "}]
    data = write_jsonl(tmp_path / "q.jsonl", rows)
    results = list(asked.queries(data=data, **FIELDS, id_field="id", each=True))
    assert [result.query["row"] for result in results] == [0, 1, 3]
    assert [result.query["key"] for result in results] == [row["id"] for row in (*CORPUS[70:72], CORPUS[72])]
    for result, row in zip(results, (*CORPUS[70:72], CORPUS[72]), strict=True):
        alone = asked.query(prompt=row["prompt"], response=row["response"])
        assert ranked(result) == ranked(alone)
    # A row that was skipped is told with the row before it: no answer is silent about one.
    assert [result.query["num_skipped"] for result in results] == [0, 1, 1]
    assert any("rows of the query were skipped" in note for note in results[1].notes)


def test_an_answer_by_group_is_the_answer_to_the_groups_rows(asked: Curator, tmp_path: Path):
    rows = CORPUS[70:90]
    data = write_jsonl(tmp_path / "q.jsonl", rows)
    results = list(asked.queries(data=data, **FIELDS, by="task"))
    groups = list(dict.fromkeys(row["task"] for row in rows))
    assert [result.query["group"] for result in results] == groups
    for result, group in zip(results, groups, strict=True):
        of_group = write_jsonl(tmp_path / f"{group}.jsonl", [row for row in rows if row["task"] == group])
        assert valued(result) == pytest.approx(valued(asked.query(data=of_group, **FIELDS)), rel=1e-5, abs=1e-5)
    with pytest.raises(UsageError, match="exclude each other"):
        next(asked.queries(data=data, **FIELDS, by="task", each=True))
    with pytest.raises(UsageError, match=r"use Curator\.queries"):
        asked.query(data=data, **FIELDS, by="task")


@pytest.fixture(scope="module")
def exact_values(asked: Curator) -> Callable[[str, float], np.ndarray]:
    """The values of the shared store's samples for VALIDATION, in float64 from a plain forward pass."""
    logging.disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(demo.MODEL, local_files_only=True).eval().double()
    tokenizer = AutoTokenizer.from_pretrained(demo.MODEL, local_files_only=True)

    @torch.inference_mode()
    def tokens_of(row: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
        prompt = tokenizer(row["prompt"])["input_ids"]
        answer = tokenizer(row["response"], add_special_tokens=False)["input_ids"]
        if prompt[-1] == tokenizer.eos_token_id:
            prompt = prompt[:-1]
        ids = torch.tensor([[*prompt, *answer, tokenizer.eos_token_id]])
        output = model(ids, output_hidden_states=True)
        predicts = slice(len(prompt) - 1, ids.shape[1] - 1)
        errors = torch.nn.functional.one_hot(ids[0, len(prompt) :], output.logits.shape[-1]).double()
        errors -= output.logits[0, predicts].softmax(-1)
        return errors.numpy(), output.hidden_states[-1][0, predicts].numpy()

    samples = [tokens_of(row) for row in CORPUS[:SIZE]]
    queries = [tokens_of(json.loads(line)) for line in demo.VALIDATION["addition"].read_text().splitlines()]
    plain = np.array([[reference.value(*sample, *query) for query in queries] for sample in samples]).mean(1)
    norms = np.array([np.sqrt(reference.value(*sample, *sample)) for sample in samples])
    gradient = np.mean([reference.gradient(*query) for query in queries], axis=0)
    projection = Projection.load(next(asked.path.glob("spaces/*/projection.safetensors")))
    basis, hidden_basis, rotation = (
        part.double().numpy() for part in (projection.error_basis, projection.hidden_basis, projection.rotation)
    )

    def core(of: np.ndarray) -> np.ndarray:
        return (basis.T @ of @ hidden_basis[:, : projection.hidden_rank]).ravel()

    cores = np.array([core(reference.gradient(*sample)) for sample in samples])
    moment = np.square(rotation) @ projection.second_moment.double().numpy()

    def values(method: str, damping: float) -> np.ndarray:
        if method == "raw":
            return plain
        if method == "cosine":
            return plain / norms / np.linalg.norm(gradient)
        weights = moment / (moment + damping * moment.mean())
        return plain - cores @ (weights * core(gradient))

    return values


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("damping", [3.0, 10.0])
def test_the_exact_tier_is_the_definition(
    asked: Curator, exact_values: Callable[[str, float], np.ndarray], method: Any, damping: float
):
    expected = exact_values(method, damping)
    found = asked.query(**VALIDATION, method=method, damping=damping, exact=True, **ALL)
    assert found.how.tier == "exact"
    assert found.how.candidates == SIZE
    by_id = valued(found)
    assert np.abs([by_id[i + 1] - expected[i] for i in range(SIZE)]).max() <= 1e-4 * np.abs(expected).max()


@pytest.mark.parametrize("method", METHODS)
def test_the_cheaper_tiers_are_close_to_the_exact_one(
    asked: Curator, exact_values: Callable[[str, float], np.ndarray], method: Any
):
    expected = exact_values(method, DEFAULT_DAMPING)
    best, worst = set(np.argsort(-expected)[:10] + 1), set(np.argsort(expected)[:10] + 1)
    for rerank, least, overlap in ((SIZE, 0.998, 9), (0, 0.97, 7)):
        found = asked.query(**VALIDATION, method=method, rerank=rerank, **ALL)
        by_id = valued(found)
        assert spearmanr(expected, [by_id[i + 1] for i in range(SIZE)]).statistic >= least
        assert len(best & {item.id for item in found.helpful[:10]}) >= overlap
        assert len(worst & {item.id for item in found.harmful[:10]}) >= overlap


def test_only_the_exact_tier_runs_samples_through_the_model(asked: Curator, monkeypatch: pytest.MonkeyPatch):
    hidden, passed = CausalLM.hidden, []

    def counting(self: CausalLM, batch: Any) -> Any:
        passed.append(len(batch))
        return hidden(self, batch)

    monkeypatch.setattr(CausalLM, "hidden", counting)
    for how in ({"rerank": 0}, {"rerank": SIZE}, {"method": "cosine"}, {"tokens": True}, {"where": "id > 5"}):
        passed.clear()
        asked.query(**VALIDATION, **how)
        assert sum(passed) == 12, how
    passed.clear()
    result = asked.query(**VALIDATION, exact=True, rerank=20)
    assert sum(passed) == 12 + result.how.candidates
    assert 20 <= result.how.candidates <= 40 + result.how.rare_candidates <= 50


@pytest.mark.parametrize("method", METHODS)
def test_percentiles_are_shares_of_the_corpus(asked: Curator, method: Any):
    everything = np.array(list(values_of(asked, **VALIDATION, method=method).values()))
    result = asked.query(**VALIDATION, method=method, rerank=0, **ALL)
    assert result.how.percentiles == "all sketch values"
    percentiles = [item.percentile for item in result.helpful]
    assert all(0 <= value <= 100 for value in percentiles)
    assert percentiles == sorted(percentiles, reverse=True)
    for item in result.helpful:
        share = 100 * ((everything < item.value).mean() + (everything <= item.value).mean()) / 2
        assert item.percentile == pytest.approx(share, abs=1e-4)


def test_percentiles_of_a_large_corpus_are_exact_at_the_ends_and_sampled_between(
    copied: Curator, monkeypatch: pytest.MonkeyPatch
):
    whole = copied.query(**QUESTION, rerank=0, **ALL)
    monkeypatch.setattr("curator.query.percentiles.ALL_VALUES_UP_TO", 10)
    monkeypatch.setattr("curator.query.percentiles.SAMPLED_ROWS", 40)
    few = copied.query(**QUESTION, rerank=0, top=8, harmful=8)
    assert few.how.percentiles == "the 8 highest and lowest sketch values; between, sketch values of 40 random samples"
    assert [item.percentile for item in few.helpful] == pytest.approx(
        [100 * (59.5 - at) / SIZE for at in range(8)], abs=1e-4
    )
    assert [item.percentile for item in few.harmful] == pytest.approx(
        [100 * (at + 0.5) / SIZE for at in range(8)], abs=1e-4
    )
    sampled = copied.query(**QUESTION, rerank=0, where="id > 0", **ALL)
    assert sampled.how.percentiles == "the sketch values of 40 random samples"
    assert ranked(sampled) == ranked(whole)
    differences = [a.percentile - b.percentile for a, b in zip(whole.helpful, sampled.helpful, strict=True)]
    assert np.abs(differences).max() < 15


def test_tokens_add_up_to_the_value(asked: Curator):
    """Up to the errors that factors do not keep: they are most of what is left where the common part is taken away."""
    for method in METHODS:
        share = 0.15 if method == "preconditioned" else 0.05
        for item in asked.query(**VALIDATION, method=method, tokens=True, rerank=SIZE).helpful:
            assert item.tokens
            assert sum(token.value for token in item.tokens) == pytest.approx(item.value, rel=share, abs=0.02)
            assert item.text.endswith("".join(token.text for token in item.tokens).removesuffix("</s>"))


def test_a_query_that_is_unlike_the_corpus_says_so(asked: Curator):
    result = asked.query(text="zq xj vw kk zq")
    assert result.how.captured < 0.5
    assert any("the sketch sees only" in note for note in result.notes)


@pytest.fixture
def mixed(copied: Curator, tmp_path: Path) -> Curator:
    """Two spaces: the demo model's, and a tiny random one's over five samples."""
    save_tiny(tmp_path / "tiny")
    add(copied, tmp_path / "b.jsonl", CORPUS[:5], model=str(tmp_path / "tiny"), dataset="small")
    return copied


def test_each_space_answers_for_itself(mixed: Curator, asked: Curator):
    first, second = (space["fingerprint"] for space in mixed.status()["spaces"])
    assert mixed.query(**QUESTION).how.space == second  # the newest
    assert mixed.query(**QUESTION).how.num_samples == 5
    of_first = mixed.query(**QUESTION, space=first[:8])
    assert ranked(of_first) == ranked(asked.query(**QUESTION))
    assert of_first.how.num_samples == SIZE
    with pytest.raises(NotFoundError, match="no space with fingerprint"):
        mixed.query(**QUESTION, space="zz")
    with pytest.raises(NotFoundError, match="2 spaces with fingerprint"):
        mixed.query(**QUESTION, space="")


def test_the_same_data_makes_samples_of_its_own_in_another_space(mixed: Curator, tmp_path: Path):
    report = add(mixed, tmp_path / "c.jsonl", CORPUS[:5], **NAMED, model=str(tmp_path / "tiny"))
    assert (report.added, report.is_new_space) == (5, False)
    again = add(mixed, tmp_path / "c.jsonl", model=str(tmp_path / "tiny"), max_length=48, dataset="short")
    assert (again.added + again.quarantined, again.is_new_space) == (5, True)


def test_a_changed_model_is_refused_by_name(mixed: Curator, tmp_path: Path):
    config = tmp_path / "tiny" / "generation_config.json"
    tokenizer = tmp_path / "tiny" / "tokenizer_config.json"
    tokenizer.write_text(tokenizer.read_text() + " ")
    config.unlink(missing_ok=True)  # decides nothing that is stored
    with pytest.raises(SpaceError, match=r"different: tokenizer_config\.json") as caught:
        mixed.query(**QUESTION)
    assert caught.value.exit_code == 6


def test_a_moved_model_is_found_where_the_caller_says(mixed: Curator, tmp_path: Path):
    (tmp_path / "tiny").rename(tmp_path / "elsewhere")
    with pytest.raises(ModelError, match="no longer at"):
        mixed.query(**QUESTION)
    assert mixed.query(**QUESTION, model=str(tmp_path / "elsewhere")).helpful
    with pytest.raises(SpaceError, match="is not the one of space"), Curator.open(mixed.path, device="cpu") as again:
        again.query(**QUESTION, model=str(demo.MODEL))
