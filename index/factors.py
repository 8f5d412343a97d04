"""Factors: what is kept of every counted token, so that candidates are rescored without running the model.

    G_i = sum_k e_k h_k^T,   h_k kept in F dimensions of the space's hidden basis as int8 with one scale per token,
                             e_k kept in its label and the s - 1 likeliest other tokens, likewise

Truncated errors alone would lose the long tail of e. The sketch has that tail: so the sketch answers inside its
subspace, and the factors only outside of it, where the query's own share is small (`outside`):

    value(i|q) = <sketch_i, sketch_q> + <factors_i, G_q U_F - lift(sketch_q)>

Shapes: K counted tokens, V vocabulary, H hidden size, F factor rank, S error tokens kept, N samples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from index.projection import Projection

__all__ = ["QuantizedFactors", "outside", "quantize", "token_values", "top_errors"]

_BLOCK_TOKENS = 16_384  # keeps the gathered rows inside the cache


@dataclass(frozen=True)
class QuantizedFactors:
    """Factors of K tokens; error_tokens[:, 0] is the label."""

    hidden: np.ndarray  # int8 [K, F]
    hidden_scales: np.ndarray  # float32 [K]
    error_tokens: np.ndarray  # uint16 or uint32 [K, S]
    error_values: np.ndarray  # int8 [K, S]
    error_scales: np.ndarray  # float32 [K]

    def __len__(self) -> int:
        return len(self.hidden_scales)

    def __getitem__(self, tokens: slice) -> "QuantizedFactors":
        """The factors of some of the tokens."""
        return QuantizedFactors(
            self.hidden[tokens],
            self.hidden_scales[tokens],
            self.error_tokens[tokens],
            self.error_values[tokens],
            self.error_scales[tokens],
        )

    @classmethod
    def concatenate(cls, parts: Sequence["QuantizedFactors"]) -> "QuantizedFactors":
        """The factors of the tokens of all parts, in order."""
        return cls(
            np.concatenate([part.hidden for part in parts]),
            np.concatenate([part.hidden_scales for part in parts]),
            np.concatenate([part.error_tokens for part in parts]),
            np.concatenate([part.error_values for part in parts]),
            np.concatenate([part.error_scales for part in parts]),
        )


def top_errors(errors: torch.Tensor, labels: torch.Tensor, num_kept: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and values [..., S] of the largest errors: the label first, then the others from the likeliest down.

    An error is positive at its label and negative elsewhere, so the likeliest others are the smallest entries.
    """
    at_label = labels.unsqueeze(-1)
    others = errors.topk(min(num_kept, errors.shape[-1]) - 1, dim=-1, largest=False)
    tokens = torch.cat([at_label, others.indices], dim=-1)
    return tokens, torch.cat([errors.gather(-1, at_label), others.values], dim=-1)


def quantize(
    hidden: torch.Tensor, error_tokens: torch.Tensor, error_values: torch.Tensor, vocab_size: int
) -> QuantizedFactors:
    """Quantizes rotated hidden states [K, F] and kept errors [K, S], each row with its own scale."""
    codes, scales = _to_int8(hidden)
    error_codes, error_scales = _to_int8(error_values)
    id_type = np.uint16 if vocab_size <= 1 << 16 else np.uint32
    return QuantizedFactors(codes, scales, error_tokens.cpu().numpy().astype(id_type), error_codes, error_scales)


def _to_int8(rows: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    scales = rows.abs().amax(dim=-1, keepdim=True) / 127.0
    codes = (rows / torch.where(scales == 0, 1.0, scales)).round().to(torch.int8)
    return codes.cpu().numpy(), scales.squeeze(-1).float().cpu().numpy()


def outside(gradient: torch.Tensor, sketch: torch.Tensor, projection: Projection) -> torch.Tensor:
    """What of a query's gradient [V, H] lies outside the sketch's subspace, on the hidden basis: float32 [V, F]."""
    rotated = gradient @ projection.hidden_basis
    rotated[:, : projection.hidden_rank] -= projection.lift(sketch)
    return rotated


def token_values(factors: QuantizedFactors, matrix: torch.Tensor) -> np.ndarray:
    """<e_k h_k^T, M> for every token: float32 [K], with M [V, F] a gradient on the hidden basis.

    Summed over a sample's tokens it is the inner product of the sample's factors with M.
    """
    found = np.empty(len(factors), dtype=np.float32)
    for start in range(0, len(factors), _BLOCK_TOKENS):
        block = slice(start, start + _BLOCK_TOKENS)
        tokens = torch.from_numpy(factors.error_tokens[block].astype(np.int64))
        weights = torch.from_numpy(factors.error_values[block].astype(np.float32))
        gathered = torch.nn.functional.embedding_bag(tokens, matrix, per_sample_weights=weights, mode="sum")
        hidden = torch.from_numpy(factors.hidden[block].astype(np.float32))
        products = torch.einsum("kf,kf->k", gathered, hidden).numpy()
        found[block] = products * factors.hidden_scales[block] * factors.error_scales[block]
    return found
