"""A value split over pairs of tokens: For-Value's own sum, before it is summed up.

    v(i|q) = sum_k sum_k' <e_k, e_k'> <h_k, h_k'>                             (arXiv 2508.10180, section 3)

k runs over the counted tokens of the sample, k' over those of the query. Preconditioning takes away <S_k, w o S_k'>,
with S_k = (U_e^T e_k) (U_h^T h_k)^T the core of the one token's e_k h_k^T, which is bilinear too. So every method's
value splits exactly, up to a factor that cosine has for all pairs.

Shapes: K and Q tokens, V vocabulary, H hidden size (or F, on the hidden basis), M error rank, R hidden rank.
"""

from dataclasses import dataclass

import numpy as np
import torch

from index.factors import QuantizedFactors
from index.projection import Projection

__all__ = ["TokenStates", "pair_values"]


@dataclass(frozen=True)
class TokenStates:
    """Errors and hidden states of counted tokens."""

    errors: torch.Tensor  # float32 [K, V]
    hidden: torch.Tensor  # float32 [K, H], or [K, F] on the hidden basis
    cores: torch.Tensor | None  # float32 [K, M * R], where a method needs them

    @classmethod
    def of(
        cls, errors: torch.Tensor, hidden: torch.Tensor, projection: Projection, *, with_cores: bool
    ) -> "TokenStates":
        """Of whole hidden states [K, H]."""
        rotated = hidden.float() @ projection.hidden_basis[:, : projection.hidden_rank]
        return cls(errors, hidden.float(), _cores(errors, rotated, projection) if with_cores else None)

    @classmethod
    def stored(
        cls, factors: QuantizedFactors, projection: Projection, *, with_cores: bool, device: torch.device
    ) -> "TokenStates":
        """Of a sample's factors: hidden states on the hidden basis, errors where they are kept."""
        errors = torch.zeros(len(factors), projection.vocab_size)
        tokens = torch.arange(len(factors))
        errors[tokens, torch.from_numpy(factors.labels.astype(np.int64))] = torch.from_numpy(factors.label_errors())
        of_token = torch.from_numpy(np.repeat(np.arange(len(factors)), factors.counts))
        errors[of_token, torch.from_numpy(factors.others.astype(np.int64))] = torch.from_numpy(factors.other_errors())
        errors, rotated = errors.to(device), torch.from_numpy(factors.hidden_states()).to(device)
        narrow = rotated[:, : projection.hidden_rank]
        return cls(errors, rotated, _cores(errors, narrow, projection) if with_cores else None)

    def on_basis(self, projection: Projection) -> "TokenStates":
        """With hidden states [K, F] on the hidden basis, to meet those of factors."""
        return TokenStates(self.errors, self.hidden @ projection.hidden_basis, self.cores)


def pair_values(sample: TokenStates, query: TokenStates, weights: torch.Tensor | None) -> torch.Tensor:
    """<e_k, e_k'> <h_k, h_k'> of all pairs, float32 [K, Q], less what preconditioning by weights [M, R] takes away."""
    values = (sample.errors @ query.errors.T) * (sample.hidden @ query.hidden.T)
    if weights is not None:
        assert sample.cores is not None
        assert query.cores is not None
        values -= (sample.cores * weights.flatten()) @ query.cores.T
    return values


def _cores(errors: torch.Tensor, rotated: torch.Tensor, projection: Projection) -> torch.Tensor:
    """vec((e U_e) (h U_h)^T) of each token, float32 [K, M * R]."""
    return torch.einsum("km,kr->kmr", errors @ projection.error_basis, rotated).flatten(1)
