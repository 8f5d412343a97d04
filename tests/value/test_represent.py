"""Sketch, norm, loss and factors of a sample, by every path of the code, against dense float64 gradients."""

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from curator.models import CausalLM, CountedHidden, Head
from curator.value import Ranks, Representation, calibrate, represent
from curator.value.represent import groups_of, norms_of
from index.factors import ERROR_STEP, QuantizedFactors, band_edges
from index.projection import Projection
from tests.models.tiny import FAMILIES as MODELS
from tests.models.tiny import tiny_model
from tests.value.test_reference import (
    CPU,
    KINDS,
    dense_errors,
    dense_gradients,
    each,
    ragged_samples,
    random_counted,
    random_head,
)

V, H = 50, 8
# counts, max_elements: where T <= H and the errors fit at once, Gram matrices; else the gradient, in blocks of tokens
PATHS = {
    "gram": ([3, 8, 1, 5], 1 << 25),
    "gram, a few samples at a time": ([3, 8, 1, 5], 9 * V),
    "gradient": ([20, 3, 12], 1 << 25),
    "gradient, one sample at a time": ([20, 3, 12], 20 * V),
    "gradient in blocks of tokens": ([20, 3, 12], 7 * V),
    "short but in blocks of tokens": ([8, 3, 5], 3 * V),
    "token by token": ([20, 3, 12], 1),
}


@cache
def fitted(head: Head) -> Projection:
    """A projection that truncates on each side: M < V, R < F < H, D < M R."""
    batch = random_counted([6] * 12, head, seed=9)
    return calibrate([batch], head, ranks=Ranks(error=12, hidden=4, factor=6, width=30), seed=0)


@cache
def head_of(kind: str, bias: bool = False) -> Head:
    return random_head(V, H, bias=bias, **KINDS[kind])


def represented(batch: CountedHidden, head: Head, **options: Any) -> list[Representation]:
    return represent(batch, head, fitted(head), **options)


def test_norms_of_large_gradients_are_right_to_float32() -> None:
    """A float32 sum of 20 million squares, one after another, is off in the third digit."""
    gradients = torch.randn(2, 300_000, 32, generator=torch.Generator().manual_seed(0))
    exact = gradients.double().square().sum(dim=(1, 2)).sqrt()
    torch.testing.assert_close(norms_of(gradients), exact, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", PATHS)
def test_norm_sketch_and_loss_are_those_of_the_dense_gradient(path: str, kind: str, bias: bool) -> None:
    """||G||, P^T vec(U_e^T G U_h), and the mean cross-entropy of the counted tokens."""
    counts, max_elements = PATHS[path]
    head = head_of(kind, bias)
    batch, projection = random_counted(counts, head), fitted(head)
    assert (projection.error_rank, projection.hidden_rank, projection.factor_rank, projection.width) == (12, 4, 6, 30)
    cores = projection.error_basis.double().numpy().T @ dense_gradients(batch, head)
    cores = cores @ projection.hidden_basis[:, :4].double().numpy()
    sketches = cores.reshape(len(counts), -1) @ projection.rotation.double().numpy()
    found = represented(batch, head, max_elements=max_elements)
    norms = np.linalg.norm(dense_gradients(batch, head), axis=(1, 2))
    np.testing.assert_allclose([one.norm for one in found], norms, rtol=1e-5)
    np.testing.assert_allclose(np.stack([one.sketch for one in found]) / norms[:, None], sketches / norms[:, None],
                               atol=1e-6)  # fmt: skip
    losses = [dense_errors(one, head)[1].mean() for one in each(batch)]
    np.testing.assert_allclose([one.loss for one in found], losses, rtol=1e-5)
    assert all(one.is_finite for one in found)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("path", PATHS)
def test_factors_are_the_rotated_hidden_and_the_errors_within_half_a_step(path: str, kind: str) -> None:
    """The label of every token, and every other token whose error is half a step or more; by all paths."""
    counts, max_elements = PATHS[path]
    head = head_of(kind)
    batch = random_counted(counts, head)
    for one, found in zip(each(batch), represented(batch, head, max_elements=max_elements), strict=True):
        factors = found.factors
        assert factors.labels.tolist() == one.labels.tolist()
        rotated = (one.hidden @ fitted(head).hidden_basis).numpy()
        steps = np.repeat(factors.steps[:, 1:], np.diff(band_edges(6)), axis=1)
        assert (np.abs(factors.hidden_states() - rotated) <= 0.5001 * steps).all()
        errors, step = dense_errors(one, head)[0], ERROR_STEP * head.scale
        np.testing.assert_allclose(factors.steps[:, 0], step, rtol=1e-6)
        rows = np.arange(len(factors))
        assert (np.abs(factors.label_errors() - errors[rows, factors.labels]) <= 0.126 * step).all()
        owners = np.repeat(rows, factors.counts)
        assert (np.abs(factors.other_errors() - errors[owners, factors.others]) <= 0.5001 * step).all()
        errors[rows, factors.labels] = errors[owners, factors.others] = 0.0
        assert errors.min() >= -0.5001 * step


def kept_errors(factors: QuantizedFactors) -> np.ndarray:
    errors = np.zeros((len(factors), 512))
    errors[np.repeat(np.arange(len(factors)), factors.counts), factors.others] = factors.other_errors()
    return errors


def assert_same(found: list[Representation], expected: list[Representation]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.norm == pytest.approx(other.norm, rel=2e-5)
        assert one.loss == pytest.approx(other.loss, rel=2e-5)
        np.testing.assert_allclose(one.sketch, other.sketch, atol=2e-6 * other.norm)
        np.testing.assert_allclose(one.factors.steps, other.factors.steps, rtol=2e-5)
        assert one.factors.labels.tolist() == other.factors.labels.tolist()
        # A number between two codes may fall to either side.
        assert np.abs(one.factors.hidden.astype(int) - other.factors.hidden).max() <= 1
        assert np.abs(one.factors.label_codes.astype(int) - other.factors.label_codes).max() <= 1
        step = one.factors.steps[0, 0]
        assert np.abs(kept_errors(one.factors) - kept_errors(other.factors)).max() <= 1.0001 * step


@pytest.mark.parametrize("max_elements", [1, 3 * V, 25 * V, 1 << 25])
@pytest.mark.parametrize("order", [[4, 2, 0, 1, 3], [0, 0, 3, 3, 1], [2]])
def test_a_sample_does_not_depend_on_its_batch(order: list[int], max_elements: int) -> None:
    """Not on its mates, their order or number, nor on how much memory there is."""
    head = head_of("softcapped")
    singles = each(random_counted([20, 3, 8, 12, 1], head))
    chosen = [singles[i] for i in order]
    batch = CountedHidden(
        torch.cat([one.hidden for one in chosen]),
        torch.cat([one.labels for one in chosen]),
        [one.counts[0] for one in chosen],
    )
    alone = [represented(one, head)[0] for one in chosen]
    assert_same(represented(batch, head, max_elements=max_elements), alone)


@pytest.mark.parametrize("family", MODELS)
def test_a_sample_does_not_depend_on_its_batch_in_the_model(family: str) -> None:
    """Padding, mates and their order, through the whole model of every family."""
    lm = CausalLM(tiny_model(family), CPU)
    samples = ragged_samples()
    projection = calibrate([lm.hidden(samples)], lm.head, ranks=Ranks(8, 4, 6, 16), seed=0)

    def of(order: list[int]) -> list[Representation]:
        return represent(lm.hidden([samples[i] for i in order]), lm.head, projection)

    alone = [of([i])[0] for i in range(4)]
    assert_same(of([0, 1, 2, 3]), alone)
    assert_same(of([2, 0, 3]), [alone[2], alone[0], alone[3]])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("path", PATHS)
def test_a_sample_that_is_not_finite_says_so_and_leaves_its_mates_alone(path: str, bad: float) -> None:
    counts, max_elements = PATHS[path]
    head = head_of("plain")
    batch = random_counted(counts, head)
    expected = represented(batch, head, max_elements=max_elements)
    batch.hidden[counts[0] + 1, 2] = bad  # in the second sample
    found = represented(batch, head, max_elements=max_elements)
    assert [one.is_finite for one in found] == [i != 1 for i in range(len(counts))]
    del found[1], expected[1]
    assert_same(found, expected)


@pytest.mark.parametrize("change", [{"norm": np.inf}, {"loss": np.nan}, {"sketch": np.array([1, np.nan], np.float32)}])
def test_one_number_that_is_not_finite_is_enough(change: dict[str, Any]) -> None:
    [good] = represented(random_counted([3], head_of("plain")), head_of("plain"))
    assert good.is_finite
    assert not replace(good, **change).is_finite


def test_a_perfectly_predicted_sample_has_norm_zero() -> None:
    head = Head(200 * torch.eye(V, H), None)
    batch = CountedHidden(torch.eye(H)[:3].repeat(2, 1), torch.arange(3).repeat(2), [3, 3])
    found = represent(batch, head, fitted(head_of("plain")))
    assert [one.norm for one in found] == [0.0, 0.0]
    assert all(one.is_finite and not one.sketch.any() and not one.factors.label_codes.any() for one in found)


def test_a_bfloat16_model_is_represented_in_float32() -> None:
    """Logits as the model rounds them; sums, Gram matrices and sketches in float32."""
    head = Head(head_of("plain").weight.bfloat16(), None)
    batch = random_counted([5, 40], head)
    projection = fitted(head_of("plain"))
    found = represent(batch, head, projection)
    for one, representation in zip(each(batch), found, strict=True):
        gradient = head.errors(one.hidden, one.labels)[0].double().T @ one.hidden.double()
        assert representation.norm == pytest.approx(gradient.norm().item(), rel=1e-5)
        sketch = projection.sketch_gradient(gradient.float())
        np.testing.assert_allclose(representation.sketch, sketch, atol=2e-6 * representation.norm)


@pytest.mark.parametrize("max_elements", [1, 60, 200, 10_000])
def test_groups_hold_every_sample_once_and_fit_or_are_one_sample(max_elements: int) -> None:
    counts = [3, 9, 1, 4, 9, 2]
    groups = list(groups_of(counts, 10, max_elements))
    assert sorted(i for group in groups for i in group) == list(range(6))
    assert all(len(group) == 1 or len(group) * max(counts[i] for i in group) * 10 <= max_elements for group in groups)
