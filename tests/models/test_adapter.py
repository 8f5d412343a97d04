"""An adapter merged into its base computes what peft computes unmerged, and broken ones are one clear line."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import IA3Config, LoHaConfig, LoraConfig, PeftModel, PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file

from curator.errors import ModelError, NotFoundError, UsageError
from curator.models import CausalLM, Checkpoint, find_checkpoint, hashes_of
from curator.types import EncodedSample
from tests.models.tiny import VOCAB_SIZE, save_tiny, tiny_model, tiny_tokenizer

pytestmark = [  # of peft, on what these tests do on purpose
    pytest.mark.filterwarnings("ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

ADDED = 6
HEADS = ["lm_head", "embed_tokens"]


def lora(*more: str, **options: Any) -> LoraConfig:
    return LoraConfig(r=4, target_modules=["q_proj", "v_proj", *more], task_type="CAUSAL_LM", **options)


CONFIGS = {
    "lora": lora(),
    "dora": lora(use_dora=True),
    "bias": lora(bias="all"),
    "lora on the head": lora("lm_head"),
    "lora on the embeddings": lora("embed_tokens"),
    "lora on tied ends": lora("embed_tokens", ensure_weight_tying=True),
    "ends saved whole": lora(modules_to_save=HEADS),
    "embeddings saved whole": lora(modules_to_save=["embed_tokens"]),
    "single tokens": lora(trainable_token_indices=[3, 5]),
    "tokens added": lora(modules_to_save=HEADS),
    "ia3": IA3Config(target_modules=["v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"),
    "loha": LoHaConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"),
}


def save_adapter(
    directory: Path, config: Any, family: str = "llama", base: str | None = None, *, added: int = 0
) -> Any:
    """A random adapter over a tiny model, written by peft, and the model that peft itself makes of both, unmerged."""
    model = tiny_model(family)
    if added:
        model.resize_token_embeddings(VOCAB_SIZE + added, mean_resizing=False)
    wrapped = get_peft_model(model, config)
    with torch.random.fork_rng():
        torch.manual_seed(1)
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.data += 0.1 * torch.randn_like(parameter)
    wrapped.peft_config["default"].base_model_name_or_path = base
    wrapped.save_pretrained(directory)
    return wrapped.eval().requires_grad_(False)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("base"))


@pytest.fixture
def adapter(tmp_path: Path, base: Path) -> Path:
    save_adapter(tmp_path / "adapter", lora(), base=str(base))
    return tmp_path / "adapter"


@pytest.mark.parametrize("family", ["llama", "llama_tied"])
@pytest.mark.parametrize("name", CONFIGS)
def test_gradients_at_the_merged_head_are_those_of_the_unmerged_model(tmp_path: Path, name: str, family: str):
    """sum_k e_k h_k^T is minus autograd's gradient at the raw head outputs of peft's model, times the states."""
    added = ADDED if name == "tokens added" else 0
    unmerged = save_adapter(tmp_path / "adapter", CONFIGS[name], family, added=added)
    lm = CausalLM.load(save_tiny(tmp_path / "base", family), device="cpu", adapter=tmp_path / "adapter")
    ids = np.random.default_rng(0).integers(0, VOCAB_SIZE + added, 20)
    counted = lm.hidden([EncodedSample(ids, np.arange(20) >= 8)])
    errors, losses = lm.head.errors(counted.hidden, counted.labels)
    ours = errors.T @ counted.hidden

    tokens = torch.from_numpy(ids)[None]
    output = unmerged(input_ids=tokens, output_hidden_states=True)
    logits = output.logits[0, 7:-1].float().requires_grad_()
    loss = torch.nn.functional.cross_entropy(logits, tokens[0, 8:], reduction="sum")
    (slope,) = torch.autograd.grad(loss, logits)
    theirs = -slope.T @ output.hidden_states[-1][0, 7:-1]
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(losses.sum(), loss.detach(), rtol=1e-4, atol=1e-4)
    assert lm.head.vocab_size == VOCAB_SIZE + added


def test_tied_ends_are_parted_when_only_one_is_changed(tmp_path: Path):
    save_adapter(tmp_path / "adapter", lora("lm_head"), "llama_tied")
    base = save_tiny(tmp_path / "base", "llama_tied")
    changed = CausalLM.load(base, device="cpu", adapter=tmp_path / "adapter")
    plain = CausalLM.load(base, device="cpu")
    torch.testing.assert_close(changed._model.get_input_embeddings().weight, plain.head.weight)
    assert not torch.allclose(changed.head.weight, plain.head.weight)


def test_a_model_that_is_an_adapter_means_its_base(adapter: Path, base: Path):
    for found in (find_checkpoint(str(adapter), None), find_checkpoint(None, None, str(adapter))):
        assert found.directory == base.resolve()
        assert found.adapter is not None
        assert found.adapter.directory == adapter.resolve()
    with pytest.raises(UsageError, match="is itself an adapter"):
        find_checkpoint(str(adapter), None, str(adapter))


def test_the_tokenizer_of_the_adapter_wins_when_it_has_one(adapter: Path, base: Path):
    assert find_checkpoint(str(base), None, str(adapter)).tokenizer == base.resolve()
    tiny_tokenizer().save_pretrained(adapter)
    assert find_checkpoint(str(base), None, str(adapter)).tokenizer == adapter.resolve()


def test_hashes_name_the_adapter_only_where_there_is_one(adapter: Path, base: Path):
    plain = find_checkpoint(str(base), None)
    assert hashes_of(plain.stamps()).keys() == {"model"}
    over = Checkpoint(str(base), None, base, find_checkpoint(str(adapter), None).adapter)
    stamps = over.stamps()
    assert "adapter_model.safetensors" in hashes_of(stamps)["adapter"]
    assert hashes_of(stamps)["model"] == hashes_of(plain.stamps())["model"]
    assert (
        over.stamps(stamps)["adapter"]["files"]["adapter_model.safetensors"]
        is (stamps["adapter"]["files"]["adapter_model.safetensors"])
    ), "an unchanged file is not read again"


def test_a_base_that_is_not_there_says_how_to_give_it(tmp_path: Path):
    save_adapter(tmp_path / "adapter", lora(), base=str(tmp_path / "gone"))
    with pytest.raises(ModelError, match="--model BASE --adapter"):
        find_checkpoint(str(tmp_path / "adapter"), None)
    with pytest.raises(NotFoundError, match="--adapter"):
        find_checkpoint(None, None, str(tmp_path / "none"))


def _weights(change: Any) -> Any:
    def apply(adapter: Path) -> None:
        path = adapter / "adapter_model.safetensors"
        tensors = load_file(path)
        change(tensors)
        save_file(tensors, path)

    return apply


def _config(**changes: Any) -> Any:
    def apply(adapter: Path) -> None:
        path = adapter / "adapter_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return apply


BROKEN = {
    "no weights": (lambda adapter: (adapter / "adapter_model.safetensors").unlink(), "is missing"),
    "half the weights": (_weights(lambda tensors: tensors.pop(sorted(tensors)[0])), "1 tensors are missing"),
    "a strange key": (_weights(lambda tensors: tensors.update(strange=torch.ones(2))), "of another base"),
    "not finite": (_weights(lambda tensors: tensors[sorted(tensors)[0]].fill_(float("nan"))), "not finite"),
    "other shapes": (_config(r=8), "does not fit"),
    "no such module": (_config(target_modules=["c_attn"]), "does not fit"),
    "another task": (_config(task_type="SEQ_CLS"), "not for a causal"),
    "no JSON": (lambda adapter: (adapter / "adapter_config.json").write_text("{"), "not valid JSON"),
    "cut off": (lambda adapter: (adapter / "adapter_model.safetensors").write_bytes(b"\0" * 20), "does not fit"),
}  # fmt: skip


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_adapter_is_one_clear_line(adapter: Path, base: Path, name: str):
    breaks, reason = BROKEN[name]
    breaks(adapter)
    with pytest.raises(ModelError, match=reason) as caught:
        CausalLM.load(base, device="cpu", adapter=adapter)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [PromptTuningConfig, PrefixTuningConfig])
def test_what_puts_positions_before_a_sample_is_refused(tmp_path: Path, base: Path, kind: Any):
    save_adapter(tmp_path / "adapter", kind(task_type="CAUSAL_LM", num_virtual_tokens=4))
    with pytest.raises(ModelError, match="is not supported"):
        CausalLM.load(base, device="cpu", adapter=tmp_path / "adapter")


def test_an_adapter_of_new_tokens_without_their_embeddings_is_refused(tmp_path: Path, base: Path):
    save_adapter(tmp_path / "adapter", lora("embed_tokens"), added=ADDED)
    with pytest.raises(ModelError, match="save_embedding_layers"):
        CausalLM.load(base, device="cpu", adapter=tmp_path / "adapter")


def test_merged_gives_what_peft_loads_unmerged(adapter: Path, base: Path):
    lm = CausalLM.load(base, device="cpu", adapter=adapter)
    unmerged = PeftModel.from_pretrained(tiny_model(), adapter).eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        torch.testing.assert_close(lm._model(ids).logits, unmerged(input_ids=ids).logits, rtol=1e-4, atol=1e-4)
