"""The unembedding: logits, prediction errors and losses of a Head are those of the model itself."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import BertConfig, BertLMHeadModel, LlamaForCausalLM

from curator.errors import ModelError
from curator.models import CausalLM, CountedHidden, Head
from curator.models.head import find_head
from curator.types import EncodedSample
from tests.models.tiny import FAMILIES, VOCAB_SIZE, tiny_config, tiny_model

CPU = torch.device("cpu")


@cache
def ragged_batch() -> list[EncodedSample]:
    """Random tokens of several lengths, the longest not first, with several counted masks."""
    random = np.random.default_rng(0)
    batch = []
    for length, start in [(9, 1), (14, 6), (2, 1), (12, 11)]:
        counted = np.arange(length) >= start
        batch.append(EncodedSample(random.integers(3, VOCAB_SIZE, length), counted))
    return batch


@cache
def causal_lm(family: str) -> CausalLM:
    return CausalLM(tiny_model(family), CPU)


def counted_logits(lm: CausalLM) -> torch.Tensor:
    """The model's own logits at the positions that predict a counted token."""
    logits = lm.forward(ragged_batch())
    rows = [logits[i, : sample.num_tokens - 1][sample.counted[1:]] for i, sample in enumerate(ragged_batch())]
    return torch.cat(rows)


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_of_counted_positions_are_those_of_the_whole_model(family: str) -> None:
    lm = causal_lm(family)
    counted = lm.hidden(ragged_batch())
    assert counted.counts == [sample.num_counted for sample in ragged_batch()]
    expected_labels = np.concatenate([sample.input_ids[sample.counted] for sample in ragged_batch()])
    assert counted.labels.tolist() == expected_labels.tolist()
    torch.testing.assert_close(lm.head.logits(counted.hidden), counted_logits(lm), rtol=1e-5, atol=1e-5)


def autograd(family: str, counted: CountedHidden) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Losses, and gradients of their sum wrt the raw head output [K, V] and an untied unembedding [V, D]."""
    model = tiny_model(family)
    embeddings = model.get_output_embeddings()
    embeddings.weight = torch.nn.Parameter(embeddings.weight.detach().clone())
    raws: list[torch.Tensor] = []
    embeddings.register_forward_hook(lambda _module, _inputs, output: raws.append(output))
    losses, of_raw = [], []
    for sample in ragged_batch():
        ids = torch.from_numpy(sample.input_ids)
        logits = model(ids[None], use_cache=False).logits[0, :-1][sample.counted[1:]]
        losses.append(cross_entropy(logits.float(), ids[1:][sample.counted[1:]], reduction="none"))
        raws[-1].retain_grad()
    torch.cat(losses).sum().backward()
    for sample, raw in zip(ragged_batch(), raws, strict=True):
        assert raw.grad is not None
        of_raw.append(raw.grad[0, :-1][sample.counted[1:]])
    return torch.cat(losses).detach(), torch.cat(of_raw), embeddings.weight.grad


@pytest.mark.parametrize("family", FAMILIES)
def test_errors_are_minus_the_gradients_and_losses_the_cross_entropy(family: str) -> None:
    """e = -dL/du of the raw head output u, and sum_k e_k h_k^T = -dL/dW (arXiv 2508.10180), with any f."""
    lm = causal_lm(family)
    counted = lm.hidden(ragged_batch())
    errors, losses = lm.head.errors(counted.hidden, counted.labels)
    expected_losses, of_raw, of_weight = autograd(family, counted)
    torch.testing.assert_close(losses, expected_losses, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(errors, -of_raw, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(errors.T @ counted.hidden, -of_weight, rtol=1e-4, atol=1e-5)


SCALED = [
    ("granite", {"logits_scaling": 1.05}, 1 / 1.05, None),
    ("granite", {"logits_scaling": 8.0}, 0.125, None),
    ("cohere", {"logit_scale": 0.0625}, 0.0625, None),
    ("falcon_h1", {"lm_head_multiplier": 1.01}, 1.01, None),
    ("gemma2", {"final_logit_softcapping": 30.0}, 1.0, 30.0),
    ("gemma2", {"final_logit_softcapping": 30.0, "initializer_range": 0.001}, 1.0, 30.0),
    ("gemma3", {"final_logit_softcapping": None}, 1.0, None),
    ("recurrent_gemma", {"logits_soft_cap": 5.0}, 1.0, 5.0),
    ("llama", {}, 1.0, None),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("family", "changes", "scale", "softcap"), SCALED)
def test_scale_and_softcap_are_found_in_every_dtype(
    family: str, changes: dict[str, Any], scale: float, softcap: float | None, dtype: torch.dtype
) -> None:
    """Also where the rounding of the dtype, or small logits, would hide them."""
    head = find_head(tiny_model(family, dtype=dtype, **changes), CPU)
    assert head.scale == pytest.approx(scale, rel=1e-6)
    assert head.softcap == (None if softcap is None else pytest.approx(softcap))


@pytest.mark.parametrize("family", FAMILIES)
def test_no_family_is_refused_in_bfloat16(family: str) -> None:
    assert find_head(tiny_model(family, dtype=torch.bfloat16), CPU).weight.dtype == torch.bfloat16


def test_losses_stay_exact_where_the_probability_underflows() -> None:
    logits = torch.tensor([[0.0, 200.0, 3.0], [0.0, -500.0, 0.0], [1.0, 2.0, 3.0]])
    labels = torch.tensor([0, 1, 2])
    errors, losses = Head(torch.eye(3), None).errors(logits, labels)
    torch.testing.assert_close(losses, cross_entropy(logits, labels, reduction="none"))
    torch.testing.assert_close(errors, torch.eye(3)[labels] - logits.softmax(-1))


def test_errors_take_any_leading_shape() -> None:
    head = causal_lm("gemma2").head
    hidden, labels = torch.randn(2, 3, head.hidden_size), torch.randint(head.vocab_size, (2, 3))
    errors, losses = head.errors(hidden, labels)
    flat_errors, flat_losses = head.errors(hidden.flatten(0, 1), labels.flatten())
    torch.testing.assert_close(errors.flatten(0, 1), flat_errors)
    torch.testing.assert_close(losses.flatten(), flat_losses)


class Altered(LlamaForCausalLM):
    """A llama whose logits are something else."""

    def alter(self, logits: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        output = super().forward(*args, **kwargs)
        output.logits = self.alter(output.logits)
        return output


class Squashed(Altered):
    """Scale and softcap together, under names that no configuration has."""

    def alter(self, logits: torch.Tensor) -> torch.Tensor:
        return 4.0 * torch.tanh(0.3 * logits / 4.0)


def test_scale_and_softcap_together_are_found_and_differentiated() -> None:
    head = find_head(Squashed(tiny_config("llama")).eval(), CPU)
    assert (head.scale, head.softcap) == (pytest.approx(0.3), pytest.approx(4.0))
    hidden, labels = 5 * torch.randn(6, head.hidden_size), torch.arange(6)
    raw = head.raw(hidden).requires_grad_()
    cross_entropy(4.0 * torch.tanh(0.3 * raw / 4.0), labels, reduction="sum").backward()
    assert raw.grad is not None
    torch.testing.assert_close(head.errors(hidden, labels)[0], -raw.grad, rtol=1e-4, atol=1e-6)


def test_hidden_states_of_another_dtype_are_cast_to_that_of_the_head() -> None:
    """Some models keep their last norm in float32."""
    head, hidden = Head(torch.randn(5, 4).bfloat16(), None), torch.randn(3, 4)
    assert torch.equal(head.logits(hidden), head.logits(hidden.bfloat16()))


class Shifted(Altered):
    def alter(self, logits: torch.Tensor) -> torch.Tensor:
        return logits + 0.01 * torch.arange(logits.shape[-1])


class Clamped(Altered):
    def alter(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.clamp(-5.0, 5.0)


class Positioned(Altered):
    """The scale depends on the position: 2 % at the second token."""

    def alter(self, logits: torch.Tensor) -> torch.Tensor:
        return logits * (1.0 + 0.02 * torch.arange(logits.shape[1])[:, None])


class Masked(Altered):
    def alter(self, logits: torch.Tensor) -> torch.Tensor:
        logits[..., 5] = -torch.inf
        return logits


class Cut(Altered):
    def alter(self, logits: torch.Tensor) -> torch.Tensor:
        return logits[..., :-1]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("altered", [Shifted, Clamped, Positioned, Masked, Cut])
def test_logits_that_are_an_unknown_function_are_refused(altered: type[Altered], dtype: torch.dtype) -> None:
    with pytest.raises(ModelError, match=f"{altered.__name__} are not a known function"):
        find_head(altered(tiny_config("llama")).to(dtype).eval(), CPU)


class Transformed(LlamaForCausalLM):
    """The head reads something else than the last hidden states."""

    def __init__(self, config: Any):
        super().__init__(config)
        self.model.register_forward_hook(self._transform)
        self.is_inside = False

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.is_inside = True
        output = super().forward(*args, **kwargs)
        self.is_inside = False
        return output

    def _transform(self, _module: Any, _inputs: Any, output: Any) -> Any:
        if self.is_inside:
            output.last_hidden_state = 1.1 * output.last_hidden_state
        return output


def test_a_head_that_reads_something_else_than_the_hidden_states_is_refused() -> None:
    with pytest.raises(ModelError, match="not a linear function"):
        find_head(Transformed(tiny_config("llama")).eval(), CPU)


@pytest.mark.parametrize(
    ("is_decoder", "message"), [(False, "reads tokens to the right"), (True, "not a linear function")]
)
def test_bert_is_refused_as_encoder_and_as_decoder(is_decoder: bool, message: str) -> None:
    """As a decoder it is causal, but its head has a layer of its own before the unembedding."""
    config = BertConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        is_decoder=is_decoder,
    )
    with pytest.raises(ModelError, match=message):
        find_head(BertLMHeadModel(config).eval(), CPU)


def test_a_model_without_a_head_is_refused() -> None:
    with pytest.raises(ModelError, match="no output embeddings"):
        find_head(tiny_model("llama").model, CPU)


def test_hidden_states_that_are_not_finite_are_named_as_such() -> None:
    model = tiny_model("llama")
    model.model.norm.weight.data.fill_(torch.inf)
    with pytest.raises(ModelError, match="not finite in"):
        find_head(model, CPU)


def test_finding_the_head_leaves_the_model_as_it_was() -> None:
    model = tiny_model("gemma2")
    ids = torch.arange(3, 12)[None]
    before = model(ids).logits
    find_head(model, CPU)
    assert torch.equal(model(ids).logits, before)
