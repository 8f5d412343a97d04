"""A value split over pairs of tokens: For-Value's own sum, before it is summed up.

    v(i|q) = sum_k sum_k' <e_k, e_k'> <h_k, h_k'>                             (arXiv 2508.10180, section 3)

k runs over the counted tokens of the sample, k' over those of the query. Preconditioning takes away, inside the
sketch's subspace, w_j of what both have there: sum_j w_j s_kj s_k'j with s_k the sketch of the one token's e_k h_k^T,
which is bilinear too. So every method's value splits exactly, up to a factor that cosine has for all pairs.

Shapes: K and Q tokens, V vocabulary, H hidden size (or F, on the hidden basis), D sketch width.
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
    sketches: torch.Tensor | None  # float32 [K, D], where a method needs them

    @classmethod
    def of(cls, errors: torch.Tensor, hidden: torch.Tensor, projection: Projection, *, sketched: bool) -> "TokenStates":
        """Of whole hidden states [K, H]."""
        rotated = hidden.float() @ projection.hidden_basis[:, : projection.hidden_rank]
        return cls(errors, hidden.float(), _sketches(errors, rotated, projection) if sketched else None)

    @classmethod
    def stored(
        cls, factors: QuantizedFactors, projection: Projection, *, sketched: bool, device: torch.device
    ) -> "TokenStates":
        """Of a sample's factors: hidden states on the hidden basis, errors where they are kept."""
        errors = torch.zeros(len(factors), projection.vocab_size)
        tokens = torch.arange(len(factors))
        errors[tokens, torch.from_numpy(factors.labels.astype(np.int64))] = torch.from_numpy(factors.label_errors())
        of_token = torch.from_numpy(np.repeat(np.arange(len(factors)), factors.counts))
        errors[of_token, torch.from_numpy(factors.others.astype(np.int64))] = torch.from_numpy(factors.other_errors())
        errors, rotated = errors.to(device), torch.from_numpy(factors.hidden_states()).to(device)
        narrow = rotated[:, : projection.hidden_rank]
        return cls(errors, rotated, _sketches(errors, narrow, projection) if sketched else None)

    def on_basis(self, projection: Projection) -> "TokenStates":
        """With hidden states [K, F] on the hidden basis, to meet those of factors."""
        return TokenStates(self.errors, self.hidden @ projection.hidden_basis, self.sketches)


def pair_values(sample: TokenStates, query: TokenStates, weights: torch.Tensor | None) -> torch.Tensor:
    """<e_k, e_k'> <h_k, h_k'> of all pairs: float32 [K, Q], less what preconditioning with weights [D] takes away."""
    values = (sample.errors @ query.errors.T) * (sample.hidden @ query.hidden.T)
    if weights is not None:
        assert sample.sketches is not None
        assert query.sketches is not None
        values -= (sample.sketches * weights) @ query.sketches.T
    return values


def _sketches(errors: torch.Tensor, rotated: torch.Tensor, projection: Projection) -> torch.Tensor:
    """The sketch of each token's e h^T: P^T vec((e U_e) (h U_h)^T), float32 [K, D]."""
    reduced = errors @ projection.error_basis
    return torch.einsum("km,kr->kmr", reduced, rotated).flatten(1) @ projection.rotation
