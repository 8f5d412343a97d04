"""Fitting in streams against dense linear algebra in float64."""

from collections.abc import Callable, Iterable

import numpy as np
import pytest
import torch

from index.fit import HiddenMoment, RangeFinder, fit_rotation

CPU = torch.device("cpu")


def decaying_rows(num_rows: int, size: int, power: float = 1.0, seed: int = 0) -> torch.Tensor:
    """Rows [K, size] whose standard deviations fall as 1 / j^power along random orthonormal directions."""
    generator = torch.Generator().manual_seed(seed)
    directions = torch.linalg.qr(torch.randn(size, size, generator=generator))[0]
    deviations = torch.arange(1, size + 1) ** -power
    return torch.randn(num_rows, size, generator=generator) * deviations @ directions.T


def dense_eigh(rows: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvectors and eigenvalues of the second moment, largest first, float64."""
    values, vectors = torch.linalg.eigh(rows.double().T @ rows.double())
    return vectors.flip(1), values.flip(0)


def captured(basis: torch.Tensor, rows: torch.Tensor) -> float:
    """Share of the rows' energy that orthonormal columns capture."""
    return float((rows.double() @ basis.double()).square().sum() / rows.double().square().sum())


def assert_orthonormal(columns: torch.Tensor) -> None:
    gram = columns.double().T @ columns.double()
    torch.testing.assert_close(gram, torch.eye(columns.shape[1]).double(), rtol=0, atol=1e-5)


def assert_same_subspace(basis: torch.Tensor, other: torch.Tensor, tolerance: float = 1e-4) -> None:
    """All cosines between the two subspaces are one."""
    assert basis.shape == other.shape
    assert torch.linalg.svdvals(basis.double().T @ other.double()).min() > 1 - tolerance


def moment_of(blocks: Iterable[torch.Tensor], size: int) -> HiddenMoment:
    moment = HiddenMoment(size, CPU)
    for block in blocks:
        moment.add(block)
    return moment


def in_blocks(rows: torch.Tensor, size: int) -> Callable[[], Iterable[torch.Tensor]]:
    return lambda: iter(rows.split(size))


@pytest.mark.parametrize("rank", [1, 5, 24])
def test_the_hidden_basis_is_the_eigenbasis_of_the_dense_second_moment(rank: int) -> None:
    """Second moment, not covariance: the mean is a direction like any other."""
    rows = decaying_rows(300, 24) + 0.3
    basis, values = moment_of(rows.split(70), 24).basis(rank)
    vectors, expected = dense_eigh(rows)
    torch.testing.assert_close(values, expected[:rank], rtol=1e-5, atol=0)
    cosines = (basis.double() * vectors[:, :rank]).sum(0).abs()
    torch.testing.assert_close(cosines, torch.ones(rank).double(), rtol=0, atol=1e-4)
    assert_orthonormal(basis)


@pytest.mark.parametrize("num_rows", [1, 3, 7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_few_tokens_give_as_many_hidden_directions(num_rows: int, dtype: torch.dtype) -> None:
    """Rounding is no direction: the rank does not depend on how the tokens arrive."""
    rows = (decaying_rows(num_rows, 64, 0.5) + 1).to(dtype)
    for block in (1, 2, 7):
        basis, values = moment_of(rows.split(block), 64).basis(64)
        assert basis.shape == (64, num_rows)
        assert len(values) == num_rows
        assert captured(basis, rows) == pytest.approx(1, abs=1e-5)
        assert_orthonormal(basis)


@pytest.mark.parametrize(("power", "share"), [(0.5, 0.95), (1.0, 0.99)])
@pytest.mark.parametrize("block", [33, 1000])
def test_the_range_finder_captures_what_the_best_subspace_does(block: int, power: float, share: float) -> None:
    rows = decaying_rows(600, 150, power)
    basis, values = RangeFinder(150, 20, seed=0, device=CPU).fit(in_blocks(rows, block))
    vectors, expected = dense_eigh(rows)
    assert basis.shape == (150, 20)
    assert_orthonormal(basis)
    assert captured(basis, rows) > share * captured(vectors[:, :20], rows)
    assert (values[:-1] >= values[1:]).all()
    torch.testing.assert_close(values, (rows.double() @ basis.double()).square().sum(0), rtol=1e-3, atol=0)
    torch.testing.assert_close(values[:5], expected[:5], rtol=0.05, atol=0)


def test_more_passes_come_closer() -> None:
    rows = decaying_rows(600, 150, 0.5)
    shares = [
        captured(RangeFinder(150, 20, seed=0, device=CPU, num_passes=n).fit(in_blocks(rows, 100))[0], rows)
        for n in (2, 3, 4)
    ]
    assert shares[0] < shares[1] < shares[2]
    with pytest.raises(ValueError, match="at least twice"):
        RangeFinder(150, 20, seed=0, device=CPU, num_passes=1)


@pytest.mark.parametrize("vocab_size", [20, 36])
def test_the_range_finder_is_exact_where_the_vocabulary_fits_into_its_width(vocab_size: int) -> None:
    rows = decaying_rows(200, vocab_size)
    basis, values = RangeFinder(vocab_size, 20, seed=0, device=CPU).fit(in_blocks(rows, 64))
    vectors, expected = dense_eigh(rows)
    assert_same_subspace(basis, vectors[:, :20])
    torch.testing.assert_close(values, expected[:20], rtol=1e-4, atol=0)


@pytest.mark.parametrize("num_rows", [1, 3, 15])
def test_few_tokens_give_as_many_error_directions(num_rows: int) -> None:
    rows = decaying_rows(num_rows, 150, 0.3)
    basis, values = RangeFinder(150, 20, seed=0, device=CPU).fit(in_blocks(rows, 4))
    assert basis.shape == (150, num_rows)
    assert len(values) == num_rows
    assert captured(basis, rows) == pytest.approx(1, abs=1e-5)
    assert_orthonormal(basis)


def test_the_range_finder_is_deterministic_in_its_seed() -> None:
    rows = decaying_rows(300, 150, 0.5)
    first, again, other = (RangeFinder(150, 20, seed=s, device=CPU).fit(in_blocks(rows, 50))[0] for s in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    state = torch.get_rng_state()
    RangeFinder(150, 20, seed=0, device=CPU)
    assert torch.equal(torch.get_rng_state(), state)


M, R = 10, 6
ERROR_VALUES, HIDDEN_VALUES = 2.0 ** -torch.arange(M), 3.0 ** -torch.arange(R)


def decaying_cores(num_samples: int, seed: int = 0) -> torch.Tensor:
    """Cores [N, M R] whose energies are error_values[m] * hidden_values[r] and a direction that all samples share."""
    generator = torch.Generator().manual_seed(seed)
    deviations = torch.outer(ERROR_VALUES, HIDDEN_VALUES).sqrt().flatten()
    shared = torch.randn(M * R, generator=torch.Generator().manual_seed(99)) * 0.2
    return torch.randn(num_samples, M * R, generator=generator) * deviations + shared


@pytest.mark.parametrize("width", [1, 7, 40, 59])
@pytest.mark.parametrize("num_samples", [1, 3, 30, 200])
def test_the_rotation_begins_with_the_principal_components_and_has_full_width(num_samples: int, width: int) -> None:
    cores = decaying_cores(num_samples)
    rotation = fit_rotation(cores, ERROR_VALUES, HIDDEN_VALUES, width)
    assert rotation.shape == (M * R, width)
    assert rotation.dtype == torch.float32
    assert_orthonormal(rotation)
    known = min(num_samples, width)
    principal = dense_eigh(cores)[0][:, :known]
    assert_same_subspace(rotation[:, :known], principal)
    cosines = (rotation[:, : known // 2].double() * principal[:, : known // 2]).sum(0).abs()
    assert (cosines > 0.999).all()  # in order, too


@pytest.mark.parametrize("width", [60, 61, 1000])
def test_a_sketch_as_wide_as_the_core_loses_nothing(width: int) -> None:
    rotation = fit_rotation(decaying_cores(3), ERROR_VALUES, HIDDEN_VALUES, width)
    assert rotation.shape == (60, 60)
    assert_orthonormal(rotation)


@pytest.mark.parametrize("num_samples", [1, 3, 10])
def test_the_completion_captures_energy_of_samples_never_seen(num_samples: int) -> None:
    """More than the principal components of few samples alone, and more than directions at random."""
    rotation = fit_rotation(decaying_cores(num_samples), ERROR_VALUES, HIDDEN_VALUES, 25)
    held_out = decaying_cores(300, seed=1)
    random = torch.randn(M * R, 25 - num_samples, generator=torch.Generator().manual_seed(0))
    at_random = torch.linalg.qr(torch.cat([rotation[:, :num_samples], random], dim=1))[0]
    assert captured(rotation, held_out) > captured(rotation[:, :num_samples], held_out) + 0.1
    assert captured(rotation, held_out) > captured(at_random, held_out) + 0.1
    assert captured(rotation, held_out) > 0.85


def test_the_completion_holds_the_leading_products() -> None:
    """Pairs (m, r) in row-major order, largest error_values[m] * hidden_values[r] first."""
    rotation = fit_rotation(decaying_cores(2), ERROR_VALUES, HIDDEN_VALUES, 12)
    products = sorted(((ERROR_VALUES[m] * HIDDEN_VALUES[r]).item(), m * R + r) for m in range(M) for r in range(R))
    leading = [position for _, position in products[::-1][:10]]
    np.testing.assert_allclose(rotation[leading].norm(dim=1), 1, atol=1e-5)


@pytest.mark.parametrize("width", [2, 5, 30, 57])
@pytest.mark.parametrize("cores", [[[0]], [[0, 1]], [[0], [0]], [[0, 1], [2, 3], [7]], [[59]], [[]]])
def test_cores_that_are_themselves_products_still_give_full_width(cores: list[list[int]], width: int) -> None:
    """What is left of a product may be nothing, or the same as of another one."""
    rows = torch.zeros(len(cores), M * R)
    for row, places in zip(rows, cores, strict=True):
        row[places] = 1.0
    rotation = fit_rotation(rows, ERROR_VALUES, HIDDEN_VALUES, width)
    assert rotation.shape == (M * R, width)
    assert_orthonormal(rotation)
    if width >= len(cores):
        torch.testing.assert_close((rows @ rotation).norm(dim=1), rows.norm(dim=1))
