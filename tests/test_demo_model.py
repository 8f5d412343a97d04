"""The bundled demo: small, trained, and made by the scripts that say so."""

import importlib
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

from curator import demo

SCRIPTS = Path(__file__).resolve().parent.parent / "scripts"
MAX_BYTES = 3_000_000


@pytest.fixture(scope="module")
def scripts() -> Iterator[tuple[ModuleType, ModuleType]]:
    """The two scripts as modules; scripts/ is no package."""
    names = ("make_demo_corpus", "train_demo_model")
    sys.path.insert(0, str(SCRIPTS))
    yield tuple(importlib.import_module(name) for name in names)
    sys.path.remove(str(SCRIPTS))
    for name in names:
        del sys.modules[name]


@pytest.fixture(scope="module")
def texts(scripts) -> ModuleType:
    return scripts[0]


@pytest.fixture(scope="module")
def training(scripts) -> ModuleType:
    return scripts[1]


@pytest.fixture(scope="module")
def model():
    logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(demo.MODEL, local_files_only=True).eval()


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(demo.MODEL, local_files_only=True)


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_the_demo_is_small_enough_to_ship():
    files = [path for path in demo.CORPUS.parent.rglob("*") if path.suffix in {".json", ".jsonl", ".safetensors"}]
    assert sum(path.stat().st_size for path in files) <= MAX_BYTES


def test_the_script_makes_the_committed_texts_byte_for_byte(texts):
    assert texts.to_jsonl(texts.corpus_rows()).encode() == demo.CORPUS.read_bytes()
    assert set(demo.VALIDATION) == set(texts.VALIDATION_TASKS)
    for task in texts.TASKS:
        if task.name in demo.VALIDATION:
            assert texts.to_jsonl(texts.validation_rows(task)).encode() == demo.VALIDATION[task.name].read_bytes()


def test_another_seed_makes_another_corpus(texts):
    assert texts.corpus_rows(seed=1) != texts.corpus_rows()


def test_ids_and_prompts_of_the_corpus_are_unique_and_15_percent_is_wrong():
    rows = read(demo.CORPUS)
    assert len(rows) == len({row["id"] for row in rows}) == len({row["prompt"] for row in rows}) == 600
    assert sum(row["is_wrong"] for row in rows) == 90


def test_a_wrong_answer_is_never_the_right_one(texts):
    for task in texts.TASKS:
        assert all(draw.wrong != draw.right for draw in texts.distinct_draws(task, texts.SEED))


@pytest.mark.parametrize("task", demo.VALIDATION)
def test_validation_rows_are_correct_rows_of_one_task_outside_the_corpus(task):
    rows = read(demo.VALIDATION[task])
    assert {(row["task"], row["is_wrong"]) for row in rows} == {(task, False)}
    assert not {row["prompt"] for row in rows} & {row["prompt"] for row in read(demo.CORPUS)}


def test_no_held_out_prompt_is_trained_on(texts):
    stream = texts.training_rows()
    trained = {next(stream)["prompt"] for _ in range(20_000)}
    assert not any(row["prompt"] in trained for task in texts.TASKS for row in texts.held_out_rows(task))


def test_the_model_is_a_float32_llama_with_tied_embeddings(model, tokenizer):
    assert model.config.model_type == "llama"
    assert model.dtype == torch.float32
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight
    assert len(tokenizer) == model.config.vocab_size


def test_the_tokenizer_puts_bos_in_front_and_reads_any_text_back(tokenizer):
    for text in ("What is 4 plus 7? 11", "naïve 東京 \n"):
        ids = tokenizer(text)["input_ids"]
        assert ids[0] == tokenizer.bos_token_id
        assert tokenizer.decode(ids[1:]) == text


def test_right_answers_are_far_likelier_than_wrong_ones_and_than_chance(texts, training, model, tokenizer):
    chance = math.log(model.config.vocab_size)
    rows = read(demo.CORPUS)
    for task in texts.TASKS:
        of_task = [row for row in rows if row["task"] == task.name]
        right = training.response_loss(model, tokenizer, [row for row in of_task if not row["is_wrong"]])
        wrong = training.response_loss(model, tokenizer, [row for row in of_task if row["is_wrong"]])
        assert right < 0.1 * chance
        assert right < 0.2 * wrong


@pytest.mark.parametrize("task", demo.VALIDATION)
def test_the_model_answers_held_out_prompts(task, training, model, tokenizer):
    assert training.accuracy(model, tokenizer, read(demo.VALIDATION[task])) > 0.9


def test_generate_gives_the_answer_and_stops(model, tokenizer):
    prompt = tokenizer("What is 4 plus 7?", return_tensors="pt")
    ids = model.generate(prompt["input_ids"], attention_mask=prompt["attention_mask"], max_new_tokens=8)
    assert tokenizer.decode(ids[0, prompt["input_ids"].shape[1] :], skip_special_tokens=True) == " 11"
    assert ids[0, -1] == tokenizer.eos_token_id


def test_encoding_marks_where_the_response_begins(training, tokenizer):
    row = {"prompt": "What is 4 plus 7?", "response": " 11"}
    [(ids, start)] = training.encode(tokenizer, [row])
    assert tokenizer.decode(ids[start:-1]) == " 11"
    assert ids == [*tokenizer(row["prompt"] + row["response"])["input_ids"], tokenizer.eos_token_id]
