"""A sketch is an orthogonal projection of the gradient, and a projection comes back from its file bit for bit."""

from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from index.errors import StoredFileError
from index.fit import HiddenMoment, RangeFinder, fit_rotation
from index.projection import Projection

V, H, M, R, F, D = 40, 12, 9, 4, 6, 20
CPU = torch.device("cpu")
TENSORS = ("error_basis", "hidden_basis", "rotation", "second_moment")


@cache
def gradients() -> torch.Tensor:
    """G [N, V, H] of low effective rank, so that a sketch sees a good part of them."""
    generator = torch.Generator().manual_seed(0)
    left = torch.randn(30, V, generator=generator) / torch.arange(1, V + 1)
    return left[:, :, None] * torch.randn(30, 1, H, generator=generator) / torch.arange(1, H + 1)


@cache
def fitted() -> Projection:
    hidden, errors = gradients().reshape(-1, H), gradients().transpose(1, 2).reshape(-1, V)
    moment = HiddenMoment(H, CPU)
    moment.add(hidden)
    hidden_basis, hidden_values = moment.basis(F)
    error_basis, error_values = RangeFinder(V, M, seed=0, device=CPU).fit(lambda: [errors])
    cores = (error_basis.T @ gradients()[:10] @ hidden_basis[:, :R]).flatten(1)
    rotation = fit_rotation(cores, error_values, hidden_values[:R], D)
    moments = (cores @ rotation).square().mean(0)
    return Projection(error_basis, hidden_basis, rotation, moments, {"seed": "0", "note": "naïve 東京"})


def sketches() -> torch.Tensor:
    return fitted().sketch(gradients() @ fitted().hidden_basis[:, :R])


def directions() -> torch.Tensor:
    """kron(U_e, U_h) P [V H, D] in float64."""
    one = fitted()
    return torch.kron(one.error_basis.double(), one.hidden_basis[:, :R].double().contiguous()) @ one.rotation.double()


def test_the_sizes_are_those_of_the_tensors() -> None:
    one = fitted()
    sizes = (one.vocab_size, one.hidden_size, one.error_rank, one.hidden_rank, one.factor_rank, one.width)
    assert sizes == (V, H, M, R, F, D)


@pytest.mark.parametrize("name", ["error_basis", "hidden_basis", "rotation"])
def test_the_columns_are_orthonormal(name: str) -> None:
    columns = getattr(fitted(), name).double()
    torch.testing.assert_close(columns.T @ columns, torch.eye(columns.shape[1]).double(), rtol=0, atol=1e-6)


def test_a_sketch_is_the_dense_projection_of_the_gradient() -> None:
    """P^T vec(U_e^T G U_h), of many gradients at once and of one."""
    expected = gradients().double().flatten(1) @ directions()
    torch.testing.assert_close(sketches().double(), expected, rtol=1e-4, atol=1e-6)
    for gradient, sketch in zip(gradients(), sketches(), strict=True):
        torch.testing.assert_close(fitted().sketch_gradient(gradient), sketch, rtol=1e-4, atol=1e-6)


def test_a_sketch_is_never_longer_than_the_gradient() -> None:
    """||sketch|| <= ||G||, equal inside the subspace."""
    assert (sketches().norm(dim=1) <= gradients().norm(dim=(1, 2)) * (1 + 1e-6)).all()
    assert (sketches().norm(dim=1) < 0.999 * gradients().norm(dim=(1, 2))).any()
    inside = (directions() @ torch.ones(D).double()).reshape(V, H).float()
    assert fitted().sketch_gradient(inside).norm().item() == pytest.approx(inside.norm().item(), rel=1e-5)


def test_lifting_undoes_sketching_and_keeps_inner_products() -> None:
    """lift then sketch is the identity; <lift(s) U_h^T, lift(t) U_h^T> = <s, t>."""
    lifted = torch.stack([fitted().lift(sketch) @ fitted().hidden_basis[:, :R].T for sketch in sketches()])
    again = torch.stack([fitted().sketch_gradient(one) for one in lifted])
    torch.testing.assert_close(again, sketches(), rtol=1e-4, atol=1e-6)
    products = torch.einsum("ivh,qvh->iq", lifted, lifted)
    torch.testing.assert_close(products, sketches() @ sketches().T, rtol=1e-4, atol=1e-5)


def test_what_the_sketch_misses_is_orthogonal_to_what_it_sees() -> None:
    """<G_i, G_q> = <sketch_i, sketch_q> + <rest_i, rest_q>."""
    lifted = torch.stack([fitted().lift(sketch) @ fitted().hidden_basis[:, :R].T for sketch in sketches()])
    rests = gradients() - lifted
    split = sketches() @ sketches().T + torch.einsum("ivh,qvh->iq", rests, rests)
    torch.testing.assert_close(split, torch.einsum("ivh,qvh->iq", gradients(), gradients()), rtol=1e-4, atol=1e-5)


def test_the_core_moment_is_the_mean_square_of_what_the_sketch_sees_of_a_core() -> None:
    """Over the samples whose sketches are uncorrelated: those of the calibration, by the choice of the axes."""
    cores = (fitted().error_basis.T @ gradients() @ fitted().hidden_basis[:, :R]).flatten(1).double()
    seen = cores @ fitted().rotation.double()
    values, vectors = torch.linalg.eigh(seen.T @ seen / len(seen))
    turned = Projection(
        fitted().error_basis, fitted().hidden_basis, fitted().rotation @ vectors.float(), values.float().clamp_min(0)
    )
    expected = (seen @ fitted().rotation.double().T).square().mean(0).reshape(M, R).float()
    torch.testing.assert_close(turned.core_moment, expected, rtol=1e-3, atol=1e-6 * float(expected.max()))


@pytest.mark.parametrize("damping", [1e-3, 1.0, 30.0])
def test_preconditioning_weights_follow_the_second_moment(damping: float) -> None:
    """w = Lambda / (Lambda + damping mean(Lambda)): in [0, 1], larger where the samples agree."""
    moment = fitted().core_moment.double().numpy().ravel()
    weights = fitted().damped_weights(damping).numpy().ravel()
    np.testing.assert_allclose(weights, moment / (moment + damping * moment.mean()), rtol=1e-5)
    assert (weights[np.argsort(moment)] == np.sort(weights)).all()


@pytest.mark.parametrize(("damping", "weight"), [(1e-30, 1.0), (1e30, 0.0), (float("inf"), 0.0)])
def test_preconditioning_weights_have_limits(damping: float, weight: float) -> None:
    """No damping takes the whole coordinate away, endless damping nothing; a coordinate never seen always stays."""
    one = fitted()
    moments = torch.cat([one.second_moment[:10] + 1e-3, torch.zeros(D - 10)])
    axes = torch.eye(M * R)[:, :D].contiguous()
    weights = Projection(one.error_basis, one.hidden_basis, axes, moments).damped_weights(damping).flatten()
    np.testing.assert_allclose(weights, [weight] * 10 + [0.0] * (M * R - 10), atol=1e-20)


@pytest.mark.parametrize("damping", [1e-300, 1e-6, 10.0, float("inf")])
def test_preconditioning_with_no_moment_at_all_takes_nothing_away(damping: float) -> None:
    one = fitted()
    empty = Projection(one.error_basis, one.hidden_basis, one.rotation, torch.zeros(D))
    assert not empty.damped_weights(damping).any()


def test_a_projection_comes_back_from_its_file_bit_for_bit(tmp_path: Path) -> None:
    fitted().save(tmp_path / "p")
    loaded = Projection.load(tmp_path / "p")
    for name in TENSORS:
        assert torch.equal(getattr(loaded, name), getattr(fitted(), name))
        assert getattr(loaded, name).dtype == torch.float32
    assert loaded.info == fitted().info
    loaded.save(tmp_path / "again")
    assert load_file(tmp_path / "again").keys() == load_file(tmp_path / "p").keys() == set(TENSORS)
    assert torch.equal(loaded.to(CPU).sketch_gradient(gradients()[0]), fitted().sketch_gradient(gradients()[0]))


def test_a_projection_on_another_device_is_the_same() -> None:
    moved = fitted().to(torch.device("meta"))
    assert (moved.width, moved.info) == (D, fitted().info)
    assert {getattr(moved, name).device.type for name in TENSORS} == {"meta"}


def test_a_missing_file_or_a_folder_is_no_projection(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(StoredFileError, match="cannot be read"):
            Projection.load(path)


def test_a_truncated_file_is_no_projection(tmp_path: Path) -> None:
    fitted().save(tmp_path / "p")
    data = (tmp_path / "p").read_bytes()
    for size in [*range(0, len(data), 97), len(data) - 1]:
        (tmp_path / "cut").write_bytes(data[:size])
        with pytest.raises(StoredFileError):
            Projection.load(tmp_path / "cut")


def test_a_file_with_a_damaged_header_is_no_projection_or_the_same(tmp_path: Path) -> None:
    """Never another error, never tensors of another shape or type. (Damaged numbers: the caller knows the sha256.)"""
    fitted().save(tmp_path / "p")
    data = (tmp_path / "p").read_bytes()
    size = 8 + int.from_bytes(data[:8], "little")
    for position in range(size):
        flipped = data[:position] + bytes([data[position] ^ (1 << position % 7)]) + data[position + 1 :]
        (tmp_path / "flipped").write_bytes(flipped)
        try:
            found = Projection.load(tmp_path / "flipped")
        except StoredFileError:
            continue
        assert [getattr(found, name).shape for name in TENSORS] == [getattr(fitted(), name).shape for name in TENSORS]
        assert {getattr(found, name).dtype for name in TENSORS} == {torch.float32}


GOOD = {"format": "forvalue-projection", "version": "1"}


@pytest.mark.parametrize(
    ("metadata", "changes", "message"),
    [
        ({}, {}, "is no forvalue-projection of version 1"),
        ({"format": "forvalue-projection", "version": "2"}, {}, "is no forvalue-projection of version 1"),
        ({"format": "forvalue-segment", "version": "1"}, {}, "is no forvalue-projection of version 1"),
        (GOOD, {"rotation": None}, "rotation"),
        (GOOD, {"spin": (3,)}, "spin"),
        (GOOD, {"rotation": (M * R + 1, D)}, "shapes"),
        (GOOD, {"rotation": (M * R,)}, "shapes"),
        (GOOD, {"second_moment": (D - 1,)}, "shapes"),
        (GOOD, {"second_moment": (D, 1)}, "shapes"),
        (GOOD, {"hidden_basis": (H, R - 1)}, "shapes"),
        (GOOD, {"error_basis": (V, 0)}, "shapes"),
        (GOOD, {"error_basis": (V, M * R + 1)}, "shapes"),
    ],
)
def test_another_file_is_no_projection(
    tmp_path: Path, metadata: dict[str, str], changes: dict[str, tuple[int, ...] | None], message: str
) -> None:
    tensors = {name: getattr(fitted(), name).clone() for name in TENSORS}
    for name, shape in changes.items():
        tensors.pop(name, None)
        if shape is not None:
            tensors[name] = torch.zeros(shape)
    save_file(tensors, tmp_path / "other", metadata)
    with pytest.raises(StoredFileError, match=message):
        Projection.load(tmp_path / "other")
