"""A causal language model: its hidden states, and what it says about a checkpoint it cannot take."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tokenizers.processors import TemplateProcessing
from transformers import BertConfig, BertForMaskedLM

from curator.errors import ModelError, NotFoundError
from curator.models import CausalLM, check_tokenizer, load_tokenizer, locate, pick_device
from curator.types import EncodedSample
from tests.models.tiny import CONTEXT, FAMILIES, VOCAB_SIZE, save_tiny, tiny_model, tiny_tokenizer

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("saved"))


@pytest.fixture
def model(saved: Path, tmp_path: Path) -> Path:
    """A good checkpoint, to be broken."""
    return shutil.copytree(saved, tmp_path / "model")


def random_samples(lengths: list[int]) -> list[EncodedSample]:
    random = np.random.default_rng(1)
    return [EncodedSample(random.integers(0, VOCAB_SIZE, n), np.arange(n) >= (n + 1) // 2) for n in lengths]


def states(lm: CausalLM, batch: list[EncodedSample]) -> list[torch.Tensor]:
    counted = lm.hidden(batch)
    assert len(counted.hidden) == len(counted.labels) == sum(counted.counts)
    return list(counted.hidden.split(counted.counts))


@pytest.mark.parametrize("family", FAMILIES)
def test_hidden_states_do_not_depend_on_batch_mates_order_or_padding(family: str) -> None:
    lm = CausalLM(tiny_model(family), CPU)
    samples = random_samples([7, 23, 2, 16])
    alone = [states(lm, [sample])[0] for sample in samples]
    for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 0]):
        for i, together in zip(order, states(lm, [samples[i] for i in order]), strict=True):
            torch.testing.assert_close(together, alone[i], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("pad", ["bos_token_id", "eos_token_id", "pad_token_id"])
def test_padding_may_be_any_token_even_one_that_occurs(pad: str) -> None:
    """The batch is padded with id 0, whatever id 0 means to the model."""
    roles = {"bos_token_id": 10, "eos_token_id": 11, "pad_token_id": 12, pad: 0}
    lm = CausalLM(tiny_model("llama", **roles), CPU)
    zeros = EncodedSample(np.zeros(5, dtype=np.int64), np.arange(5) > 0)
    alone, together = states(lm, [zeros])[0], states(lm, [*random_samples([20]), zeros])[1]
    torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("stored", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dtype", ["auto", "float32", "bfloat16", "float16"])
def test_a_checkpoint_loads_in_its_own_dtype_or_the_one_asked_for(
    tmp_path: Path, stored: torch.dtype, dtype: str
) -> None:
    lm = CausalLM.load(save_tiny(tmp_path, dtype=stored), device="cpu", dtype=dtype)
    expected = str(stored).removeprefix("torch.") if dtype == "auto" else dtype
    assert lm.dtype == expected
    batch = random_samples([8, 3])
    counted = lm.hidden(batch)
    assert counted.hidden.dtype == getattr(torch, expected)
    assert lm.head.logits(counted.hidden).dtype == torch.float32


@pytest.mark.parametrize("family", ["llama", "llama_tied", "gemma2", "gpt2"])
def test_a_loaded_model_computes_what_was_saved(tmp_path: Path, family: str) -> None:
    lm, batch = CausalLM.load(save_tiny(tmp_path, family), device="cpu"), random_samples([9, 4])
    expected = CausalLM(tiny_model(family), CPU)
    assert torch.equal(lm.hidden(batch).hidden, expected.hidden(batch).hidden)
    assert torch.equal(lm.forward(batch), expected.forward(batch))
    assert (lm.vocab_size, lm.context) == (VOCAB_SIZE, CONTEXT)


def test_padding_rows_of_the_vocabulary_take_part_as_in_the_model() -> None:
    model = tiny_model("llama")
    model.resize_token_embeddings(VOCAB_SIZE + 5, pad_to_multiple_of=64, mean_resizing=False)
    lm, batch = CausalLM(model, CPU), random_samples([6])
    assert lm.vocab_size == lm.head.vocab_size == 384
    expected = lm.forward(batch)[0, 2:-1]
    torch.testing.assert_close(lm.head.logits(lm.hidden(batch).hidden), expected)


def edit_config(directory: Path, **changes: Any) -> None:
    path = directory / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop_head(directory: Path) -> None:
    tiny_model("llama").model.save_pretrained(directory)


def save_bert(directory: Path) -> None:
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertForMaskedLM(BertConfig(vocab_size=VOCAB_SIZE, **small)).save_pretrained(directory)


def save_bert_base(directory: Path) -> None:
    small = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertForMaskedLM(BertConfig(vocab_size=VOCAB_SIZE, **small)).bert.save_pretrained(directory)


BREAKS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no config": (lambda d: (d / "config.json").unlink(), "config.json"),
    "broken config": (lambda d: (d / "config.json").write_text('{"model_ty'), "not a valid JSON file"),
    "wrong type": (lambda d: edit_config(d, hidden_size="big"), "hidden_size"),
    "impossible value": (lambda d: edit_config(d, num_attention_heads=0), "no usable causal language model"),
    "unknown architecture": (lambda d: edit_config(d, model_type="nonesuch"), "nonesuch"),
    "no weights": (lambda d: (d / "model.safetensors").unlink(), "model.safetensors"),
    "cut weights": (lambda d: (d / "model.safetensors").write_bytes(b"\0" * 64), "header"),
    "missing layer": (lambda d: edit_config(d, num_hidden_layers=3), "model.layers.2"),
    "another vocabulary": (lambda d: edit_config(d, vocab_size=VOCAB_SIZE - 1), "lm_head.weight"),
    "base model without head": (drop_head, "lm_head.weight"),
    "encoder": (save_bert, "tokens to the right"),
    "encoder without head": (save_bert_base, "cls.predictions"),
}


@pytest.mark.parametrize("name", BREAKS)
def test_a_directory_without_a_usable_model_is_one_clear_line(model: Path, name: str) -> None:
    """Weights that are not in the checkpoint must never be replaced by random ones."""
    damage, message = BREAKS[name]
    damage(model)
    with pytest.raises(ModelError, match=message) as caught:
        CausalLM.load(model, device="cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "warp"}, "device 'warp'"),
        ({"device": "meta"}, "device 'meta'"),
        ({"device": ""}, "device ''"),
        ({"dtype": "int8"}, "dtype 'int8' is not known; use auto, float32"),
    ],
)
def test_unknown_devices_and_dtypes_are_named(saved: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(ModelError, match=message) as caught:
        CausalLM.load(saved, **options)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")
def test_cuda_where_there_is_none_is_named() -> None:
    with pytest.raises(ModelError, match="device 'cuda' cannot be used here"):
        pick_device("cuda")


def test_a_missing_directory_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no model directory at"):
        CausalLM.load(tmp_path / "missing", device="cpu")


@pytest.mark.parametrize("name", ["./missing", "/missing/model", "~/missing", "a/b/c", "a model", "nobody/nothing"])
def test_a_name_that_leads_nowhere_is_not_found(name: str) -> None:
    with pytest.raises(NotFoundError) as caught:
        locate(name)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_locate_resolves_directories(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.parent)
    assert locate("model") == locate("./model") == locate(str(model)) == model.resolve()


@pytest.mark.parametrize("model_type", ["nonesuch", "llama"])
def test_code_in_a_repository_never_runs(model: Path, model_type: str) -> None:
    marker = model.parent / "ran"
    (model / "own.py").write_text(f"open({str(marker)!r}, 'w').close()")
    auto_map = {"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model", "AutoTokenizer": ["own.A", "own.B"]}
    edit_config(model, auto_map=auto_map, model_type=model_type)
    tokenizer_config = json.loads((model / "tokenizer_config.json").read_text()) | {"tokenizer_class": "Own"}
    (model / "tokenizer_config.json").write_text(json.dumps(tokenizer_config | {"auto_map": auto_map}))
    with pytest.raises(ModelError, match="which is never run here"):
        load_tokenizer(model)
    if model_type == "llama":
        CausalLM.load(model, device="cpu")  # by the library's own code
    else:
        with pytest.raises(ModelError, match="which is never run here"):
            CausalLM.load(model, device="cpu")
    assert not marker.exists()


def test_a_tokenizer_comes_back_as_it_was_saved(saved: Path) -> None:
    tokenizer, text = load_tokenizer(saved), "the capital of Ürümqi\n</s>"
    assert tokenizer(text)["input_ids"] == tiny_tokenizer()(text)["input_ids"]
    assert tokenizer.eos_token_id == 1


@pytest.mark.parametrize("content", [None, '{"version"'])
def test_a_missing_or_broken_tokenizer_is_one_clear_line(model: Path, content: str | None) -> None:
    (model / "tokenizer.json").unlink()
    if content is not None:
        (model / "tokenizer.json").write_text(content)
    with pytest.raises(ModelError, match="no usable tokenizer in") as caught:
        load_tokenizer(model)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_larger_than_the_model_is_refused_and_an_added_pad_is_not() -> None:
    tokenizer = tiny_tokenizer()
    fitting = CausalLM(tiny_model("llama", vocab_size=len(tokenizer)), CPU)
    smaller = CausalLM(tiny_model("llama", vocab_size=len(tokenizer) - 1), CPU)
    check_tokenizer(tokenizer, fitting)
    with pytest.raises(ModelError, match=f"ids up to {len(tokenizer) - 1}, .* knows {len(tokenizer) - 1} tokens"):
        check_tokenizer(tokenizer, smaller)
    tokenizer.add_special_tokens({"pad_token": "<late pad>"})
    check_tokenizer(tokenizer, fitting)
    tokenizer.add_special_tokens({"eos_token": "<late end>"})
    with pytest.raises(ModelError, match="use the tokenizer that the model was trained with"):
        check_tokenizer(tokenizer, fitting)


def test_what_a_tokenizer_puts_around_a_text_must_be_known_too() -> None:
    """A late token that begins every text would make every sample a bad row."""
    tokenizer = tiny_tokenizer()
    model = CausalLM(tiny_model("llama", vocab_size=len(tokenizer)), CPU)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<late>"]})
    check_tokenizer(tokenizer, model)
    late = tokenizer.convert_tokens_to_ids("<late>")
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single="<late> $A", special_tokens=[("<late>", late)]
    )
    with pytest.raises(ModelError, match=f"ids up to {late}"):
        check_tokenizer(tokenizer, model)
