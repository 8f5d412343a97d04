"""Fits a projection on calibration samples, in streams: nothing here is V x V or grows with the calibration set
except one sketch-sized row per sample.

    1. HiddenMoment: second moment of hidden states -> U_h, its top eigenvectors
    2. RangeFinder:  second moment of errors -> U_e, by a randomised range finder (Halko, Martinsson, Tropp 2011,
                     algorithm 4.4, then Rayleigh-Ritz), which sees errors only through thin products
    3. fit_cores:    U_e again, by the gradients of whole samples, inside the wider basis that the range finder found
    4. fit_rotation: principal components of vec(S) over the samples, completed by the leading products of U_e and
                     U_h. Few samples span few directions: without the completion, a projection calibrated on 3 samples
                     would see 3 directions of every later one.

Steps 3 and 4 weigh a sample by 1 / ||G||^2: what they maximize is the mean captured share of energy, not the energy
captured of the loudest samples. lambda stays the plain second moment, as the preconditioned method defines it.

Shapes: K tokens, V vocabulary, H hidden size, M error rank, E a wider one, R hidden rank, N samples, D sketch width.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch

__all__ = ["FittedCores", "HiddenMoment", "RangeFinder", "fit_cores", "fit_rotation"]

_OVERSAMPLING = 16
# Share of the basis's own second moment in that of the gradients: it decides only where these say nothing.
_PRIOR = 1e-3
# Eigenvalues below this share of the largest are rounding, not directions: of sums in float64, and in float32.
_NEGLIGIBLE, _NEGLIGIBLE_FLOAT32 = 1e-9, 1e-6


class HiddenMoment:
    """Streams hidden states; yields the top eigenvectors of their second moment."""

    def __init__(self, hidden_size: int, device: torch.device):
        self._moment = torch.zeros(hidden_size, hidden_size, dtype=torch.float32, device=device)

    def add(self, hidden: torch.Tensor) -> None:
        """Adds rows [K, H]."""
        hidden = hidden.float()
        self._moment += hidden.T @ hidden

    def basis(self, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The top `rank` eigenvectors [H, rank] and eigenvalues, largest first; fewer where the data has fewer."""
        vectors, values = _top_eigenvectors(self._moment.double(), rank, _NEGLIGIBLE_FLOAT32)
        return vectors.float(), values


class RangeFinder:
    """Top eigenvectors of the second moment of errors E [K, V], which are seen only as streams of row blocks."""

    def __init__(self, vocab_size: int, rank: int, *, seed: int, device: torch.device, num_passes: int = 3):
        if num_passes < 2:
            raise ValueError(f"a range finder reads the errors at least twice, got num_passes={num_passes}")
        self.rank = rank
        self.num_passes = num_passes
        width = min(vocab_size, rank + _OVERSAMPLING)
        generator = torch.Generator().manual_seed(seed)
        self._probe = torch.randn(vocab_size, width, generator=generator).to(device)

    def fit(self, blocks: Callable[[], Iterable[torch.Tensor]]) -> tuple[torch.Tensor, torch.Tensor]:
        """U_e float32 [V, M] and eigenvalues [M]. `blocks()` starts a new pass over the same rows [K, V]."""
        for _ in range(self.num_passes - 1):
            gathered = torch.zeros_like(self._probe)
            for errors in blocks():
                gathered.addmm_(errors.T, errors @ self._probe)
            self._probe = torch.linalg.qr(gathered)[0]
        small = torch.zeros(self._probe.shape[1], self._probe.shape[1], dtype=torch.float64, device=self._probe.device)
        for errors in blocks():
            seen = errors @ self._probe
            small += (seen.T @ seen).double()
        vectors, values = _top_eigenvectors(small, self.rank)
        return self._probe @ vectors.float(), values


@dataclass(frozen=True)
class FittedCores:
    """What the cores of some samples give: the error basis inside the wider one, the rotation, and lambda."""

    errors: torch.Tensor  # float32 [E, M], orthonormal: U_e = (wider basis) @ errors
    rotation: torch.Tensor  # P float32 [M * R, D]
    second_moment: torch.Tensor  # lambda float32 [D]


def fit_cores(
    cores: torch.Tensor, norms: torch.Tensor, prior: torch.Tensor, *, error_rank: int, width: int
) -> FittedCores:
    """Fits on cores [N, E, R] = W^T G U_h of samples with norms ||G|| [N], in an orthonormal basis W [V, E].

    `prior` [E] are second moments along W's directions known from elsewhere. M = min(error_rank, E).
    """
    weights = torch.where(norms > 0, 1.0 / norms, 0.0)[:, None, None]
    side_by_side = (cores * weights).permute(1, 0, 2).flatten(1)
    moment = (side_by_side @ side_by_side.T).double()
    moment += _PRIOR * moment.trace() * torch.diag(prior.double() / prior.double().sum())
    values, vectors = torch.linalg.eigh(moment)
    error_values, errors = values.flip(0)[:error_rank], vectors.flip(1)[:, :error_rank].float().contiguous()
    rotated = torch.einsum("em,ner->nmr", errors, cores)
    weighted = rotated * weights
    flat = rotated.flatten(1)
    rotation = fit_rotation(weighted.flatten(1), error_values, weighted.square().sum((0, 1)), width)
    rotation = _principal_axes(flat, rotation)
    return FittedCores(errors, rotation, (flat @ rotation).square().mean(0))


def fit_rotation(
    cores: torch.Tensor, error_values: torch.Tensor, hidden_values: torch.Tensor, width: int
) -> torch.Tensor:
    """P float32 [M * R, D], orthonormal columns: principal components of cores [N, M * R], then leading products.

    The products are those pairs (m, r) of basis directions whose second moments error_values[m] * hidden_values[r]
    are largest, made orthogonal to the components. D = min(width, M * R). Row-major as a loaded file is: the same
    projection fresh or loaded gives the same bits.
    """
    size = cores.shape[1]
    if width >= size:
        return torch.eye(size, device=cores.device)
    components = _principal_components(cores.double(), width)
    missing = width - components.shape[1]
    if missing == 0:
        return components.float().contiguous()
    order = torch.outer(error_values.double(), hidden_values.double()).flatten().argsort(descending=True)
    products = torch.zeros(size, missing, device=cores.device)
    products[order[:missing], torch.arange(missing, device=cores.device)] = 1.0
    # A product that the components already hold leaves nothing behind; Householder's QR then puts some direction
    # orthogonal to all before it in its place, of which later products may hold a part: every column stays.
    return torch.linalg.qr(torch.cat([components.float(), products], dim=1))[0].contiguous()


def _principal_axes(cores: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """P [M * R, D] turned inside its own subspace, so that the second moment of cores @ P is diagonal and falls."""
    sketches = (cores @ rotation).double()
    vectors = torch.linalg.eigh(sketches.T @ sketches)[1]
    return (rotation @ vectors.flip(1).float()).contiguous()


def _principal_components(rows: torch.Tensor, most: int) -> torch.Tensor:
    gram = rows @ rows.T
    vectors, values = _top_eigenvectors(gram, most)
    return rows.T @ vectors / values.sqrt()


def _top_eigenvectors(
    matrix: torch.Tensor, most: int, negligible: float = _NEGLIGIBLE
) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvectors [n, k], k <= most, and eigenvalues of a symmetric float64 matrix, largest first, without noise."""
    values, vectors = torch.linalg.eigh(matrix)
    values, vectors = values.flip(0)[:most], vectors.flip(1)[:, :most]
    real = values > max(values[0].item() * negligible, 0.0)
    return vectors[:, real], values[real]
