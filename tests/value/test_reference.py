"""The reference against torch autograd; and the oracles of the other tests in this folder, all in float64."""

from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy, linear

from curator.models import CausalLM, CountedHidden, Head
from curator.types import EncodedSample
from curator.value import reference
from tests.models.tiny import VOCAB_SIZE, tiny_model

CPU = torch.device("cpu")
FAMILIES = ("llama", "gemma2", "granite", "cohere", "phi")  # plain, softcap, two kinds of scale, bias
KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"scale": 0.4},
    "softcapped": {"scale": 1.5, "softcap": 3.0},
}


def random_head(vocab_size: int, hidden_size: int, seed: int = 0, *, bias: bool = False, **kind: Any) -> Head:
    """A head with logits of deviation 2 or so."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(vocab_size, hidden_size, generator=generator) * 2 / hidden_size**0.5
    return Head(weight, torch.randn(vocab_size, generator=generator) if bias else None, **kind)


def random_counted(counts: list[int], head: Head, seed: int = 0) -> CountedHidden:
    """Hidden states whose dimensions differ in size and have a mean, as real ones; random labels."""
    generator = torch.Generator().manual_seed(seed + 1)
    num_tokens, size = sum(counts), head.hidden_size
    deviations = 2.0 / torch.arange(1, size + 1).sqrt()
    hidden = (torch.randn(num_tokens, size, generator=generator) + 0.5) * deviations
    labels = torch.randint(head.vocab_size, (num_tokens,), generator=generator)
    return CountedHidden(hidden.to(head.weight.dtype), labels, counts)


def each(batch: CountedHidden) -> list[CountedHidden]:
    """The samples of a batch, one by one."""
    parts = zip(batch.hidden.split(batch.counts), batch.labels.split(batch.counts), strict=True)
    return [CountedHidden(hidden, labels, [len(labels)]) for hidden, labels in parts]


def dense_errors(batch: CountedHidden, head: Head) -> tuple[np.ndarray, np.ndarray]:
    """e [K, V] and losses [K] of all tokens by float64 autograd: minus the gradient with respect to u = W h + b."""
    bias = None if head.bias is None else head.bias.double()
    raw = linear(batch.hidden.double(), head.weight.double(), bias).requires_grad_()
    logits = raw * head.scale
    if head.softcap is not None:
        logits = head.softcap * torch.tanh(logits / head.softcap)
    losses = cross_entropy(logits, batch.labels, reduction="none")
    return -torch.autograd.grad(losses.sum(), raw)[0].numpy(), losses.detach().numpy()


def dense_gradients(batch: CountedHidden, head: Head) -> np.ndarray:
    """G of every sample, float64 [N, V, H]."""
    return np.stack([dense_errors(one, head)[0].T @ one.hidden.double().numpy() for one in each(batch)])


@cache
def ragged_samples() -> list[EncodedSample]:
    """Random tokens of several lengths, the longest not first, with several counted masks."""
    random = np.random.default_rng(3)
    shapes = [(9, 1), (14, 6), (2, 1), (12, 11)]
    return [EncodedSample(random.integers(3, VOCAB_SIZE, n), np.arange(n) >= start) for n, start in shapes]


def autograd_of_the_model(family: str, samples: list[EncodedSample]) -> np.ndarray:
    """Minus the gradient of model(**batch)'s own loss, times its tokens, wrt an unembedding of its own [V, H]."""
    model = tiny_model(family)
    unembedding = model.get_output_embeddings()
    unembedding.weight = torch.nn.Parameter(unembedding.weight.detach().clone())
    longest = max(sample.num_tokens for sample in samples)
    batch = {name: torch.full((len(samples), longest), -100) for name in ("input_ids", "attention_mask", "labels")}
    batch["input_ids"][:], batch["attention_mask"][:] = 2, 0
    for i, sample in enumerate(samples):
        ids = torch.from_numpy(sample.input_ids)
        batch["input_ids"][i, : len(ids)], batch["attention_mask"][i, : len(ids)] = ids, 1
        batch["labels"][i, : len(ids)] = torch.where(torch.from_numpy(sample.counted), ids, -100)
    loss = model(**batch, use_cache=False).loss
    (loss * sum(sample.num_counted for sample in samples)).backward()
    grad: np.ndarray = -unembedding.weight.grad.double().numpy()
    return grad


def reference_gradient(lm: CausalLM, sample: EncodedSample) -> np.ndarray:
    counted = lm.hidden([sample])
    errors, _ = lm.head.errors(counted.hidden, counted.labels)
    return reference.gradient(errors.numpy(), counted.hidden.numpy())


@pytest.mark.parametrize("family", FAMILIES)
def test_the_gradient_is_minus_that_of_the_summed_cross_entropy_through_the_whole_model(family: str) -> None:
    """G = -dL/dW, of every sample alone and, summed over the samples, of a padded batch."""
    lm = CausalLM(tiny_model(family), CPU)
    ours = [reference_gradient(lm, sample) for sample in ragged_samples()]
    for gradient, sample in zip(ours, ragged_samples(), strict=True):
        np.testing.assert_allclose(gradient, autograd_of_the_model(family, [sample]), rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(sum(ours), autograd_of_the_model(family, ragged_samples()), rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_the_value_is_the_inner_product_of_the_gradients(kind: str) -> None:
    """sum_{k, k'} <e_k, e_k'> <h_k, h_k'> = <G_i, G_q>, and value(i | i) = ||G_i||^2."""
    head = random_head(30, 7, **KINDS[kind])
    batch = random_counted([1, 4, 9], head)
    gradients = dense_gradients(batch, head)
    sides = [(dense_errors(one, head)[0], one.hidden.double().numpy()) for one in each(batch)]
    found = np.array([[reference.value(*one, *other) for other in sides] for one in sides])
    np.testing.assert_allclose(found, np.einsum("ivh,qvh->iq", gradients, gradients), rtol=1e-12)
    np.testing.assert_allclose(np.diag(found), (gradients**2).sum((1, 2)), rtol=1e-12)
    for side, gradient in zip(sides, gradients, strict=True):
        np.testing.assert_allclose(reference.gradient(*side), gradient, rtol=1e-12, atol=1e-14)


def orthonormal(num_rows: int, num_columns: int) -> np.ndarray:
    return np.linalg.qr(np.random.default_rng(0).standard_normal((num_rows, num_columns)))[0]


def test_preconditioning_shrinks_each_direction_by_its_own_moment_and_leaves_the_rest() -> None:
    """delta (F + delta I)^-1 b_j = delta / (lambda_j + delta) b_j, and x = x for x orthogonal to all b_j."""
    basis, moments, delta = orthonormal(20, 6), np.array([9.0, 4, 2, 1, 0.5, 0]), 2.0
    found = reference.precondition(basis[:, :5], moments[:5], delta) @ basis
    np.testing.assert_allclose(found, basis * (delta / (moments + delta)), atol=1e-13)


@pytest.mark.parametrize(("delta", "remains"), [(1e-9, 0.0), (1e9, 1.0)])
def test_preconditioning_has_limits(delta: float, remains: float) -> None:
    """delta -> 0 takes the subspace out, delta -> infinity changes nothing.

    To what float64 leaves of an inverse whose condition number is 5 / delta.
    """
    basis = orthonormal(20, 5)
    found = reference.precondition(basis, np.arange(1.0, 6.0), delta)
    np.testing.assert_allclose(found, np.eye(20) - (1 - remains) * basis @ basis.T, atol=5e-6)
