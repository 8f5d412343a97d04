"""Fits a projection on calibration samples, in streams: nothing here is V x V or grows with the calibration set
except one sketch-sized row per sample.

    1. HiddenMoment: second moment of hidden states -> U_h, its top eigenvectors
    2. RangeFinder:  second moment of errors -> U_e, by a randomised range finder (Halko, Martinsson, Tropp 2011,
                     algorithm 4.4, then Rayleigh-Ritz), which sees errors only through thin products
    3. fit_rotation: principal components of vec(S) over the samples, completed by the leading products of U_e and
                     U_h. Few samples span few directions: without the completion, a projection calibrated on 3 samples
                     would see 3 directions of every later one.

Shapes: K tokens, V vocabulary, H hidden size, M error rank, R hidden rank, N samples, D sketch width.
"""

from collections.abc import Callable, Iterable

import torch

__all__ = ["HiddenMoment", "RangeFinder", "fit_rotation", "principal_axes", "top_eigenvectors"]

_OVERSAMPLING = 16
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
        vectors, values = top_eigenvectors(self._moment.double(), rank, _NEGLIGIBLE_FLOAT32)
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
                gathered += errors.T @ (errors @ self._probe)
            self._probe = torch.linalg.qr(gathered)[0]
        small = torch.zeros(self._probe.shape[1], self._probe.shape[1], dtype=torch.float64, device=self._probe.device)
        for errors in blocks():
            seen = errors @ self._probe
            small += (seen.T @ seen).double()
        vectors, values = top_eigenvectors(small, self.rank)
        return self._probe @ vectors.float(), values


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


def principal_axes(cores: torch.Tensor, rotation: torch.Tensor) -> torch.Tensor:
    """P [M * R, D] turned inside its own subspace, so that the second moment of cores @ P is diagonal and falls."""
    sketches = (cores @ rotation).double()
    vectors = torch.linalg.eigh(sketches.T @ sketches)[1]
    return (rotation.double() @ vectors.flip(1)).float().contiguous()


def _principal_components(rows: torch.Tensor, most: int) -> torch.Tensor:
    gram = rows @ rows.T
    vectors, values = top_eigenvectors(gram, most)
    return rows.T @ vectors / values.sqrt()


def top_eigenvectors(
    matrix: torch.Tensor, most: int, negligible: float = _NEGLIGIBLE
) -> tuple[torch.Tensor, torch.Tensor]:
    """Eigenvectors [n, k], k <= most, and eigenvalues of a symmetric float64 matrix, largest first, without noise."""
    values, vectors = torch.linalg.eigh(matrix)
    values, vectors = values.flip(0)[:most], vectors.flip(1)[:, :most]
    real = values > max(values[0].item() * negligible, 0.0)
    return vectors[:, real], values[real]
