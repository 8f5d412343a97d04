"""The projection of a space: what turns a sample's gradient G [V, H] into a sketch of D numbers.

    S = U_e^T G U_h          [M, R]   the error side and the hidden side, each in a few orthonormal directions
    sketch = P^T vec(S)      [D]      a rotation into few coordinates

Every factor has orthonormal columns, so a sketch is an orthogonal projection of G: <sketch_i, sketch_q> is the inner
product of the two gradients inside one D-dimensional subspace, ||sketch|| <= ||G||, and what the sketch misses is the
inner product of the two parts outside it.

Shapes: V vocabulary, H hidden size, M error rank, R hidden rank, F factor rank (F >= R), D sketch width.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from index.errors import StoredFileError

__all__ = ["Projection"]

_FORMAT = {"format": "forvalue-projection", "version": "1"}
_TENSORS = ("error_basis", "hidden_basis", "rotation", "second_moment")


@dataclass(frozen=True)
class Projection:
    """Orthonormal factors of the sketch and the second moment of the calibration samples along its coordinates."""

    error_basis: torch.Tensor  # U_e float32 [V, M]
    hidden_basis: torch.Tensor  # float32 [H, F]; its first R columns are U_h
    rotation: torch.Tensor  # P float32 [M * R, D], vec in row-major order
    second_moment: torch.Tensor  # lambda float32 [D]: mean of sketch_j^2 over the calibration samples
    info: Mapping[str, str] = field(default_factory=dict)  # how it was fitted, for people

    @property
    def vocab_size(self) -> int:
        """V."""
        return self.error_basis.shape[0]

    @property
    def hidden_size(self) -> int:
        """H."""
        return self.hidden_basis.shape[0]

    @property
    def error_rank(self) -> int:
        """M."""
        return self.error_basis.shape[1]

    @property
    def hidden_rank(self) -> int:
        """R."""
        return self.rotation.shape[0] // self.error_rank

    @property
    def factor_rank(self) -> int:
        """F: hidden dimensions that factors keep."""
        return self.hidden_basis.shape[1]

    @property
    def width(self) -> int:
        """D."""
        return self.rotation.shape[1]

    def to(self, device: torch.device) -> "Projection":
        """The same projection on another device."""
        return Projection(
            self.error_basis.to(device),
            self.hidden_basis.to(device),
            self.rotation.to(device),
            self.second_moment.to(device),
            self.info,
        )

    def sketch(self, reduced: torch.Tensor) -> torch.Tensor:
        """Sketches [N, D] of gradients already on the hidden basis: reduced = G U_h, float32 [N, V, R]."""
        num, vocab_size, rank = reduced.shape
        side_by_side = reduced.permute(1, 0, 2).reshape(vocab_size, num * rank)  # one product for all samples
        core = (self.error_basis.T @ side_by_side).reshape(self.error_rank, num, rank)
        return core.permute(1, 0, 2).reshape(num, -1) @ self.rotation

    def sketch_gradient(self, gradient: torch.Tensor) -> torch.Tensor:
        """The sketch [D] of one gradient [V, H]."""
        return self.sketch((gradient @ self.hidden_basis[:, : self.hidden_rank]).unsqueeze(0))[0]

    def lift(self, sketch: torch.Tensor) -> torch.Tensor:
        """A sketch [D] back in gradient space on the hidden basis: B [V, R], with G ~ B U_h^T inside the subspace."""
        return self.error_basis @ (self.rotation @ sketch).reshape(self.error_rank, self.hidden_rank)

    def save(self, path: Path) -> None:
        """Writes a safetensors file; the caller makes it durable."""
        tensors = {name: getattr(self, name).cpu().float().contiguous() for name in _TENSORS}
        save_file(tensors, path, {**_FORMAT, **self.info})

    @classmethod
    def load(cls, path: Path) -> "Projection":
        """Reads a file written by `save`. Raises StoredFileError when it is missing or something else."""
        try:
            with safe_open(path, framework="pt") as file:
                metadata = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
        except (OSError, SafetensorError) as error:
            raise StoredFileError(f"projection {path} cannot be read: {error}") from error
        if any(metadata.get(key) != value for key, value in _FORMAT.items()):
            raise StoredFileError(f"{path} is no {_FORMAT['format']} of version {_FORMAT['version']}: got {metadata}")
        if set(tensors) != set(_TENSORS) or any(tensor.dtype != torch.float32 for tensor in tensors.values()):
            found = ", ".join(f"{name} {str(tensor.dtype).removeprefix('torch.')}" for name, tensor in tensors.items())
            raise StoredFileError(f"projection {path} needs {', '.join(_TENSORS)} in float32: got {found or 'nothing'}")
        info = {key: value for key, value in metadata.items() if key not in _FORMAT}
        projection = cls(**tensors, info=info)
        if not projection._fits():
            shapes = ", ".join(f"{name} {list(tensor.shape)}" for name, tensor in tensors.items())
            raise StoredFileError(f"projection {path} has tensors whose shapes do not fit each other: {shapes}")
        return projection

    def _fits(self) -> bool:
        tensors = (self.error_basis, self.hidden_basis, self.rotation, self.second_moment)
        if [tensor.ndim for tensor in tensors] != [2, 2, 2, 1] or min(tensor.numel() for tensor in tensors) == 0:
            return False
        return (
            self.rotation.shape[0] == self.error_rank * self.hidden_rank
            and self.hidden_rank <= self.factor_rank
            and self.width <= self.rotation.shape[0]
            and self.second_moment.shape[0] == self.width
        )

    @cached_property
    def core_moment(self) -> torch.Tensor:
        """Lambda: second moment of S along each pair of basis directions, as the sketch sees it, float32 [M, R].

        Coordinates of sketches are uncorrelated over the calibration samples, so diag(P diag(lambda) P^T) is the mean
        of the squares of P P^T vec(S).
        """
        moment = self.rotation.double().square() @ self.second_moment.double()
        return moment.float().reshape(self.error_rank, self.hidden_rank)

    def damped_weights(self, damping: float) -> torch.Tensor:
        """w = Lambda / (Lambda + delta), delta = damping * mean(Lambda), Lambda = core_moment: float32 [M, R].

        How much of each entry of S preconditioning takes away. With F = B diag(Lambda) B^T the Fisher matrix that is
        diagonal in the products of the two bases (EK-FAC: George et al. 2018, arXiv 1806.03884), B their orthonormal
        columns in gradient space, delta (F + delta I)^-1 = I - B diag(w) B^T: what all samples do counts less.
        """
        moment = self.core_moment.double()
        delta = max(damping * (moment.mean().item() or 1.0), torch.finfo(torch.float64).tiny)
        return (moment / (moment + delta)).float()
