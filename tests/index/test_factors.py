"""Factors against dense gradients in float64: exact up to the steps, and on top of the sketch far closer."""

from functools import cache

import numpy as np
import pytest
import torch

from index.factors import KeptErrors, QuantizedFactors, band_edges, keep_errors, outside, quantize, token_values
from index.fit import HiddenMoment, RangeFinder, fit_rotation
from index.projection import Projection
from tests.index.builders import random_factors
from tests.index.test_segment import assert_equal_factors

V, H = 60, 10
FINE = 1 / 63  # about the finest step of errors: label codes are bytes
CPU = torch.device("cpu")


@cache
def tokens(seed: int, num_tokens: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Hidden states [K, H], labels [K] and prediction errors [K, V] of a random unembedding."""
    generator = torch.Generator().manual_seed(seed)
    hidden = (torch.randn(num_tokens, H, generator=generator) + 0.5) / torch.arange(1, H + 1).sqrt()
    weight = torch.randn(V, H, generator=torch.Generator().manual_seed(1000)) * 2
    labels = torch.randint(V, (num_tokens,), generator=generator)
    return hidden, labels, torch.eye(V)[labels] - (hidden @ weight.T).softmax(-1)


def gradient(seed: int, num_tokens: int) -> torch.Tensor:
    hidden, _, errors = tokens(seed, num_tokens)
    return errors.T @ hidden


@cache
def projection(error_rank: int = 15, hidden_rank: int = 4, factor_rank: int = H, width: int = 30) -> Projection:
    hidden, _, errors = tokens(77, 200)
    moment = HiddenMoment(H, CPU)
    moment.add(hidden)
    hidden_basis, hidden_values = moment.basis(factor_rank)
    error_basis, error_values = RangeFinder(V, error_rank, seed=0, device=CPU).fit(lambda: [errors])
    groups = zip(errors.split(10), hidden.split(10), strict=True)
    cores = torch.stack([(error_basis.T @ e.T @ h @ hidden_basis[:, :hidden_rank]).flatten() for e, h in groups])
    rotation = fit_rotation(cores, error_values, hidden_values[:hidden_rank], width)
    return Projection(error_basis, hidden_basis, rotation, (cores @ rotation).square().mean(0))


def factors_of(seed: int, num_tokens: int, one: Projection, step: float = FINE) -> QuantizedFactors:
    hidden, labels, errors = tokens(seed, num_tokens)
    return quantize(hidden @ one.hidden_basis, keep_all(errors, labels, step), [num_tokens])[0]


def keep_all(errors: torch.Tensor, labels: torch.Tensor, step: float) -> KeptErrors:
    return keep_errors(errors, labels, torch.ones(labels.shape, dtype=torch.bool), step)


def dense_errors(factors: QuantizedFactors) -> np.ndarray:
    """The errors that the factors say, float64 [K, V]."""
    errors = np.zeros((len(factors), V))
    rows = np.repeat(np.arange(len(factors)), factors.counts)
    errors[rows, factors.others] = factors.other_errors()
    errors[np.arange(len(factors)), factors.labels] = factors.label_errors()
    return errors


def dense(factors: QuantizedFactors) -> np.ndarray:
    """The gradients e_k h_k^T of the tokens that the factors say, float64 [K, V, F]."""
    return dense_errors(factors)[:, :, None] * factors.hidden_states().astype(np.float64)[:, None, :]


@pytest.mark.parametrize("step", [FINE, 1 / 24, 1 / 3])
def test_errors_err_by_half_a_step_and_none_is_kept_that_rounds_to_zero(step: float) -> None:
    """The label always, within an eighth of a step; others in ascending order, each once."""
    _, labels, errors = tokens(0, 200)
    found = factors_of(0, 200, projection(), step)
    assert found.labels.tolist() == labels.tolist()
    wrong = np.abs(dense_errors(found) - errors.double().numpy())
    assert wrong.max() <= 0.50001 * step
    assert wrong[np.arange(200), labels].max() <= 0.12501 * step
    kept = (errors < -step / 2).sum(1)
    assert found.counts.tolist() == kept.tolist()
    assert found.other_codes.min() >= 1
    for token in range(200):
        others = found[token : token + 1].others.tolist()
        assert others == torch.nonzero(errors[token] < -step / 2).flatten().tolist()


def test_only_counted_tokens_are_kept_whatever_the_shape() -> None:
    """Padding is skipped, in rows or in a batch, and parts put together are the whole."""
    _, labels, errors = tokens(0, 12)
    counted = torch.tensor([1, 1, 0, 1, 0, 0, 1, 0, 0, 0, 1, 1], dtype=torch.bool)
    expected = keep_all(errors[counted], labels[counted], 1 / 24)
    in_batch = keep_errors(errors.reshape(3, 4, V), labels.reshape(3, 4), counted.reshape(3, 4), 1 / 24)
    parts = [
        keep_errors(*part, 1 / 24) for part in zip(errors.split(5), labels.split(5), counted.split(5), strict=True)
    ]
    for found in (in_batch, KeptErrors.concatenate(parts)):
        for name in ("labels", "label_codes", "counts", "others", "other_codes"):
            assert torch.equal(getattr(found, name), getattr(expected, name))


def test_a_confident_token_keeps_its_label_alone() -> None:
    errors = torch.full((1, V), -0.001 / (V - 1))
    errors[0, 5] = 0.001
    found = keep_all(errors, torch.tensor([5]), 1 / 24)
    assert (found.labels.tolist(), found.counts.tolist(), found.others.tolist()) == ([5], [0], [])


@pytest.mark.parametrize(
    ("factor_rank", "edges"), [(1, [0, 1]), (2, [0, 1, 2]), (6, [0, 1, 2, 4, 6]), (8, [0, 1, 2, 4, 8])]
)
def test_bands_double(factor_rank: int, edges: list[int]) -> None:
    assert band_edges(factor_rank).tolist() == edges


def test_hidden_states_err_by_half_a_step_of_their_band() -> None:
    """At any magnitude, and for a token far larger than its sample: codes never overflow."""
    hidden = torch.randn(60, 11, generator=torch.Generator().manual_seed(0)) / torch.arange(1, 12)
    hidden[7] *= 3000
    _, labels, errors = tokens(0, 60)
    for magnitude in (1e-15, 1.0, 1e15):
        [found] = quantize(hidden * magnitude, keep_all(errors, labels, FINE), [60])
        step = found.hidden_states() / np.where(found.hidden == 0, 1, found.hidden)
        assert found.hidden_states(4).shape == (60, 4)
        np.testing.assert_array_equal(found.hidden_states(4), found.hidden_states()[:, :4])
        widths = np.diff(band_edges(11))
        steps = np.repeat(found.steps[:, 1:], widths, axis=1).astype(np.float64)
        assert (np.abs(found.hidden * steps - hidden.double().numpy() * magnitude) <= 0.5001 * steps).all()
        assert np.allclose(step[found.hidden != 0], steps[found.hidden != 0], rtol=1e-6)


def test_codes_of_a_sample_are_the_same_alone_and_beside_others() -> None:
    counts = [3, 20, 1]
    hidden, labels, errors = tokens(0, 24)
    together = quantize(hidden, keep_all(errors, labels, 1 / 24), counts)
    start = 0
    for size, found in zip(counts, together, strict=True):
        part = slice(start, start + size)
        [alone] = quantize(hidden[part], keep_all(errors[part], labels[part], 1 / 24), [size])
        assert_equal_factors(found, alone)
        start += size


def test_steps_grow_with_the_root_of_the_length_up_to_a_limit() -> None:
    row, steps = torch.randn(1, 8, generator=torch.Generator().manual_seed(0)), []
    for size in (1, 4, 64, 256, 1024):
        errors, labels = torch.zeros(size, V), torch.zeros(size, dtype=torch.int64)
        [found] = quantize(row.expand(size, 8), keep_all(errors, labels, FINE), [size])
        steps.append(found.steps[0, 1:])
    for found, factor in zip(steps, (1, 2, 8, 16, 16), strict=True):
        np.testing.assert_allclose(found, steps[0] * factor, rtol=1e-5)


def test_zeros_stay_zero() -> None:
    [found] = quantize(torch.zeros(2, 3), keep_all(torch.zeros(2, V), torch.tensor([1, 2]), FINE), [2])
    assert not found.hidden.any()
    assert not found.label_codes.any()
    assert (token_values(found, torch.ones(V, 3)) == 0).all()


@pytest.mark.parametrize("num_tokens", [0, 1, 20_000])
def test_token_values_are_inner_products_with_each_token(num_tokens: int) -> None:
    """<e_k h_k^T, M>, beyond one block of tokens too."""
    factors = random_factors(np.random.default_rng(0), [num_tokens], 4, V)
    matrix = torch.randn(V, 4, generator=torch.Generator().manual_seed(0))
    found = token_values(factors, matrix)
    sums = factors.label_errors()[:, None] * matrix.double().numpy()[factors.labels]
    others = factors.other_errors()[:, None] * matrix.double().numpy()[factors.others]
    np.add.at(sums, np.repeat(np.arange(num_tokens), factors.counts), others)
    expected = (sums * factors.hidden_states().astype(np.float64)).sum(1)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-2)
    assert found.dtype == np.float32


def test_slices_put_together_again_are_the_whole() -> None:
    whole = factors_of(0, 9, projection(), 1 / 24)
    assert whole.counts.sum() > 20
    assert_equal_factors(QuantizedFactors.concatenate([whole[:2], whole[2:2], whole[2:]]), whole)
    assert_equal_factors(QuantizedFactors.concatenate([QuantizedFactors.empty(H), *whole.split([4, 0, 5])]), whole)
    assert len(whole[3:]) == 6


@pytest.mark.parametrize("factor_rank", [4, 7, H])
def test_outside_is_the_query_without_what_the_sketch_sees(factor_rank: int) -> None:
    """(G - lift(sketch) U_h^T) U_F: its own sketch is zero, and the gradient is left as it was."""
    one = projection(factor_rank=factor_rank)
    query = gradient(1, 8)
    before = query.clone()
    sketch = one.sketch_gradient(query)
    found = outside(query, sketch, one)
    assert torch.equal(query, before)
    inside = one.lift(sketch) @ one.hidden_basis[:, :4].T
    torch.testing.assert_close(found, (query - inside) @ one.hidden_basis, rtol=1e-4, atol=1e-5)
    assert one.sketch_gradient(found @ one.hidden_basis.T).abs().max() < 1e-5 * query.norm()


SAMPLES = [(seed, num_tokens) for seed, num_tokens in enumerate([1, 3, 8, 20, 40] * 4, start=1)]


def answers(one: Projection, step: float) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Over pairs of samples, in units of ||G_i|| ||G_q||: exact, sketch + factors outside, factors, sketch."""
    rows = []
    for query_seed in (501, 502, 503):
        query = gradient(query_seed, 12)
        sketch = one.sketch_gradient(query)
        rest, whole = outside(query, sketch, one), query @ one.hidden_basis
        for seed, num_tokens in SAMPLES:
            sample, factors = gradient(seed, num_tokens), factors_of(seed, num_tokens, one, step)
            inside = float(one.sketch_gradient(sample) @ sketch)
            both = inside + token_values(factors, rest).sum()
            exact = float((sample.double() * query.double()).sum())
            unit = float(sample.norm() * query.norm())
            rows.append(np.array([exact, both, token_values(factors, whole).sum(), inside]) / unit)
    exact, both, factors_alone, sketch_alone = np.array(rows).T
    return exact, both, factors_alone, sketch_alone


@pytest.mark.parametrize("width", [5, 30, 60])
def test_sketch_and_factors_give_the_exact_value_where_nothing_is_truncated(width: int) -> None:
    """F = H and every error token: only the steps are left, and the less, the more the sketch sees."""
    exact, both, factors_alone, _ = answers(projection(width=width), FINE)
    np.testing.assert_allclose(both, exact, atol=8e-3)
    np.testing.assert_allclose(factors_alone, exact, atol=2e-2)


def test_sketch_and_factors_are_exact_in_what_the_factors_say() -> None:
    """<sketch_i, sketch_q> + <factors_i, G_q U_F - lift(sketch_q)> without any approximation of its own."""
    one = projection()
    query, factors = gradient(501, 12), factors_of(4, 20, one)
    sketch = one.sketch_gradient(query)
    rest = (query.double() - (one.lift(sketch) @ one.hidden_basis[:, :4].T).double()) @ one.hidden_basis.double()
    expected = np.einsum("kvf,vf->k", dense(factors), rest.numpy())
    np.testing.assert_allclose(token_values(factors, outside(query, sketch, one)), expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("step", [1 / 24, 1 / 16])
def test_truncated_factors_are_closer_with_the_sketch_and_the_sketch_with_them(step: float) -> None:
    """The tail of the errors is in the sketch, the rest of the query in the factors (measured: 1.7 and 19 times)."""
    wide = projection(error_rank=30, hidden_rank=6, width=60)
    exact, both, factors_alone, sketch_alone = answers(wide, step)
    assert np.abs(factors_alone - exact).mean() > 1.4 * np.abs(both - exact).mean()
    assert np.abs(sketch_alone - exact).mean() > 5 * np.abs(both - exact).mean()
