"""Each method at each tier against a dense float64 computation over whole gradients."""

from functools import cache

import numpy as np
import pytest
import torch

from curator.errors import UsageError
from curator.value import (
    METHODS,
    Method,
    PreparedQuery,
    QueryGradient,
    QueryRepresentation,
    Ranks,
    Representation,
    calibrate,
    prepare,
    reference,
    represent,
)
from index.factors import token_values
from index.projection import Projection
from tests.value.test_reference import dense_gradients, random_counted, random_head

V, H = 80, 10
COUNTS = [5, 14, 1, 9, 30, 3]


@cache
def world() -> tuple[np.ndarray, np.ndarray, Projection, list[Representation], torch.Tensor]:
    """G_i [N, V H] and G_q [V H] in float64; projection; representations that keep every error token; G_q."""
    head = random_head(V, H, softcap=8.0)
    samples, query = random_counted(COUNTS, head), random_counted([6, 11], head, seed=4)
    calibration = random_counted([7] * 20, head, seed=8)
    projection = calibrate([calibration], head, ranks=Ranks(error=20, hidden=5, factor=H, width=40), seed=0)
    gradient = QueryGradient(head)
    gradient.add(query)
    dense = dense_gradients(samples, head).reshape(len(COUNTS), -1)
    of_query = dense_gradients(query, head).mean(0).flatten()
    return dense, of_query, projection, represent(samples, head, projection, error_step=1 / 63), gradient.mean()


def prepared_of(gradient: torch.Tensor, projection: Projection, method: Method, damping: float) -> PreparedQuery:
    return prepare(QueryRepresentation.of(gradient, projection), projection, method, damping)


def products() -> np.ndarray:
    """B [V H, M R]: the products of the two bases in gradient space, kron(U_e, U_h)."""
    projection = world()[2]
    hidden_basis = projection.hidden_basis[:, : projection.hidden_rank].double().numpy()
    return np.kron(projection.error_basis.double().numpy(), hidden_basis)


def directions() -> np.ndarray:
    """[V H, D]: the sketch's directions in gradient space, kron(U_e, U_h) P."""
    return products() @ world()[2].rotation.double().numpy()


def dense_values(method: Method, damping: float, gradients: np.ndarray, query: np.ndarray) -> np.ndarray:
    """The method's definition; `gradients` are whole, or their parts inside the sketch's subspace."""
    norms, of_query = np.linalg.norm(world()[0], axis=1), np.linalg.norm(world()[1])
    rotation, second_moment = world()[2].rotation.double().numpy(), world()[2].second_moment.double().numpy()
    moment = np.diag(rotation @ np.diag(second_moment) @ rotation.T)
    if method == "raw":
        return gradients @ query
    if method == "cosine":
        return gradients @ query / (norms * of_query)
    return gradients @ reference.precondition(products(), moment, damping * moment.mean()) @ query


def scales(prepared: PreparedQuery) -> np.ndarray:
    return np.array([1 / one.norm if prepared.is_cosine else 1.0 for one in world()[3]])


def relative(values: np.ndarray, method: Method) -> np.ndarray:
    """In units of ||G_i|| ||G_q||."""
    norms = np.linalg.norm(world()[0], axis=1) * np.linalg.norm(world()[1])
    return values if method == "cosine" else values / norms


CASES: list[tuple[Method, float]] = [("raw", 1.0), ("cosine", 1.0)]
CASES += [("preconditioned", damping) for damping in (1e-3, 0.3, 10.0, 1e6)]


@pytest.mark.parametrize(("method", "damping"), CASES)
def test_the_exact_tier_is_the_definition(method: Method, damping: float) -> None:
    """<G_i, gradient> * scale_i"""
    gradients, query, projection, _, gradient = world()
    prepared = prepared_of(gradient, projection, method, damping)
    assert prepared.gradient is not None
    found = gradients @ prepared.gradient.double().numpy().flatten() * scales(prepared)
    expected = dense_values(method, damping, gradients, query)
    np.testing.assert_allclose(relative(found, method), relative(expected, method), atol=1e-5)


@pytest.mark.parametrize(("method", "damping"), CASES)
def test_the_sketch_tier_is_the_definition_inside_the_subspace(method: Method, damping: float) -> None:
    """(search . sketch_i) * scale_i is the value of the part of G_i that the sketch sees."""
    gradients, query, projection, representations, gradient = world()
    prepared = prepared_of(gradient, projection, method, damping)
    found = np.stack([one.sketch for one in representations]) @ prepared.search * scales(prepared)
    inside = directions() @ directions().T
    expected = dense_values(method, damping, gradients @ inside, query)
    np.testing.assert_allclose(relative(found, method), relative(expected, method), atol=1e-5)


@pytest.mark.parametrize(("method", "damping"), CASES)
def test_the_factor_tier_is_the_definition_up_to_the_quantization(method: Method, damping: float) -> None:
    """(search . sketch_i + <factors_i, outside>) * scale_i, with every error token and hidden dimension kept.

    The whole query on the factors, split over the tokens, says the same a little less exactly.
    """
    gradients, query, projection, representations, gradient = world()
    prepared = prepared_of(gradient, projection, method, damping)
    expected = dense_values(method, damping, gradients, query)
    inside = np.array([one.sketch @ prepared.search for one in representations])
    outside = np.array([token_values(one.factors, prepared.outside).sum() for one in representations])
    found = (inside + outside) * scales(prepared)
    np.testing.assert_allclose(relative(found, method), relative(expected, method), atol=3e-3)
    by_token = np.array([token_values(one.factors, prepared.tokens).sum() for one in representations])
    found = by_token * scales(prepared)
    np.testing.assert_allclose(relative(found, method), relative(expected, method), atol=1e-2)


@pytest.mark.parametrize("damping", [1e12, float("inf")])
def test_infinite_damping_is_raw(damping: float) -> None:
    _, _, projection, _, gradient = world()
    raw, damped = (prepared_of(gradient, projection, m, damping) for m in ("raw", "preconditioned"))
    np.testing.assert_allclose(damped.search, raw.search, rtol=1e-6)
    torch.testing.assert_close(damped.outside, raw.outside)
    torch.testing.assert_close(damped.gradient, raw.gradient)
    torch.testing.assert_close(damped.tokens, raw.tokens)


def test_no_damping_leaves_only_what_lies_outside_of_the_bases() -> None:
    """Every product of the two bases has been seen in some sample; what is left is orthogonal to them all."""
    _, query, projection, _, gradient = world()
    damped = prepared_of(gradient, projection, "preconditioned", 1e-12)
    assert damped.gradient is not None
    left = damped.gradient.double().numpy().flatten()
    np.testing.assert_allclose(products().T @ left, 0, atol=1e-5 * np.linalg.norm(query))
    np.testing.assert_allclose(left, query - products() @ (products().T @ query), atol=1e-5 * np.linalg.norm(query))


@pytest.mark.parametrize(("method", "damping"), CASES)
def test_what_the_sketch_misses_of_a_prepared_query_is_the_rest_of_its_gradient(method: Method, damping: float) -> None:
    _, _, projection, _, gradient = world()
    prepared = prepared_of(gradient, projection, method, damping)
    assert prepared.gradient is not None
    whole = prepared.gradient.double().numpy().flatten()
    rest = whole - directions() @ (directions().T @ whole)
    assert prepared.missed == pytest.approx(np.linalg.norm(rest), rel=1e-3)
    np.testing.assert_allclose(prepared.search, directions().T @ whole, atol=1e-5 * np.linalg.norm(whole))


def test_the_cosine_of_a_sample_with_itself_is_one() -> None:
    """And at the sketch tier it is the share of its energy that the sketch captures."""
    gradients, _, projection, representations, _ = world()
    for gradient, one in zip(gradients, representations, strict=True):
        prepared = prepared_of(torch.from_numpy(gradient.reshape(V, H)).float(), projection, "cosine", 10.0)
        assert gradient @ prepared.gradient.double().numpy().flatten() / one.norm == pytest.approx(1, abs=1e-5)
        assert prepared.search @ one.sketch / one.norm == pytest.approx(prepared.captured, abs=1e-5)


@pytest.mark.parametrize("method", METHODS)
def test_norm_and_captured_energy_are_those_of_the_query_under_every_method(method: Method) -> None:
    _, query, projection, _, gradient = world()
    prepared = prepared_of(gradient, projection, method, 10.0)
    assert prepared.norm == pytest.approx(np.linalg.norm(query), rel=1e-5)
    captured = np.sum((directions().T @ query) ** 2) / np.sum(query**2)
    assert prepared.captured == pytest.approx(captured, rel=1e-4)
    assert prepared.is_cosine == (method == "cosine")


def test_preparing_leaves_the_gradient_as_it_was() -> None:
    _, _, projection, _, gradient = world()
    before = gradient.clone()
    for method in METHODS:
        prepared_of(gradient, projection, method, 10.0)
    assert torch.equal(gradient, before)


@pytest.mark.parametrize("scale", [1e-18, 1e12])
@pytest.mark.parametrize("method", METHODS)
def test_values_scale_with_the_query_and_the_cosine_does_not(method: Method, scale: float) -> None:
    """Also where the square of the gradient leaves float32."""
    _, _, projection, _, gradient = world()
    once, scaled = (prepared_of(gradient * factor, projection, method, 10.0) for factor in (1.0, scale))
    expected = once.search * (1.0 if method == "cosine" else scale)
    np.testing.assert_allclose(scaled.search, expected, rtol=1e-3, atol=1e-5 * np.abs(expected).max())
    assert scaled.captured == pytest.approx(once.captured, rel=1e-4)


@pytest.mark.parametrize("fill", [0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("method", METHODS)
def test_a_query_without_a_usable_gradient_is_refused(method: Method, fill: float) -> None:
    with pytest.raises(UsageError, match="no usable gradient"):
        prepared_of(torch.full((V, H), fill), world()[2], method, 10.0)


@pytest.mark.parametrize("damping", [0.0, -1.0, float("nan"), -float("inf")])
def test_damping_must_be_above_zero(damping: float) -> None:
    with pytest.raises(UsageError, match="damping must be above 0"):
        prepared_of(world()[4], world()[2], "preconditioned", damping)


def test_an_unknown_method_is_refused_with_those_there_are() -> None:
    with pytest.raises(UsageError, match="'fisher' is not known; use one of raw, cosine, preconditioned"):
        prepared_of(world()[4], world()[2], "fisher", 10.0)  # type: ignore[arg-type]
