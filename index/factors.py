"""Factors: what is kept of every counted token, so that candidates are rescored without running the model.

    G_i = sum_k e_k h_k^T,   h_k kept in F dimensions of the space's hidden basis,
                             e_k kept at its label and wherever it is at least half a step

Errors that are cut off would be missed: the tail of e is long. The sketch has that tail: so the sketch answers inside
its subspace, and the factors only outside of it, where the query's own share is small (`outside`):

    value(i|q) = <sketch_i, sketch_q> + <factors_i, G_q U_F - lift(sketch_q)>

Both sides are rounded to whole steps, since what a value errs by is the sum of its tokens' rounding:

- Errors have one step for all tokens. An entry that rounds to zero is not kept, so that a confident token keeps its
  label alone and an uncertain one many others, each at most once; the label is kept in steps four times as fine.
- Hidden dimensions come in bands, [0], [1], [2, 3], [4..7] and so on, which have one step each within a sample: it
  grows with the root of the band's size (leading dimensions are larger, but the sketch explains most of them) and with
  the number of tokens (their rounding averages out).

Shapes: K counted tokens, V vocabulary, H hidden size, F factor rank, B bands of F, n kept errors beside the labels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from index.projection import Projection

__all__ = [
    "ERROR_STEP",
    "FINEST_STEP",
    "KeptErrors",
    "QuantizedFactors",
    "band_edges",
    "keep_errors",
    "outside",
    "quantize",
    "token_values",
]

ERROR_STEP = 1 / 24  # of errors as softmax gives them; a head that scales its logits scales the step likewise
LABEL_STEPS = 4  # label codes count quarters of a step
# Of a band whose size is the geometric mean over the dimensions, for samples of 1, 2..., 256 and more tokens.
FINEST_STEP, LONG_SAMPLE = 0.022, 256
_BLOCK_TOKENS = 4_096  # keeps the gathered rows inside the cache


@dataclass(frozen=True)
class QuantizedFactors:
    """Factors of K tokens of one or of several samples."""

    hidden: np.ndarray  # int8 [K, F]
    steps: np.ndarray  # float32 [K, 1 + B]: of the error, then of each band; equal within a sample
    labels: np.ndarray  # uint32 [K]: the tokens to predict
    label_codes: np.ndarray  # uint8 [K]: e at the label in quarters of a step, >= 0
    counts: np.ndarray  # uint8 [K]: how many other tokens are kept
    others: np.ndarray  # uint32 [n]: their ids, ascending within each token
    other_codes: np.ndarray  # uint8 [n]: -e there in steps, >= 1

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, tokens: slice) -> "QuantizedFactors":
        """The factors of some of the tokens, which must be neighbours."""
        start, stop, _ = tokens.indices(len(self))
        stop = max(start, stop)
        first = int(self.counts[:start].sum(dtype=np.int64))
        others = slice(first, first + int(self.counts[start:stop].sum(dtype=np.int64)))
        return self._cut(slice(start, stop), others)

    def _cut(self, tokens: slice, others: slice) -> "QuantizedFactors":
        return QuantizedFactors(
            self.hidden[tokens],
            self.steps[tokens],
            self.labels[tokens],
            self.label_codes[tokens],
            self.counts[tokens],
            self.others[others],
            self.other_codes[others],
        )

    def split(self, num_tokens: Sequence[int]) -> list["QuantizedFactors"]:
        """The factors of samples with so many tokens each, which are all tokens there are."""
        edges = np.concatenate([[0], np.cumsum(num_tokens, dtype=np.int64)])
        ends = np.concatenate([[0], np.cumsum(self.counts, dtype=np.int64)])[edges].tolist()
        return [
            self._cut(slice(*tokens), slice(*others))
            for tokens, others in zip(pairwise(edges.tolist()), pairwise(ends), strict=True)
        ]

    @classmethod
    def empty(cls, factor_rank: int = 1) -> "QuantizedFactors":
        """The factors of no token."""
        return cls(
            np.empty((0, factor_rank), np.int8),
            np.empty((0, len(band_edges(factor_rank))), np.float32),
            np.empty(0, np.uint32),
            np.empty(0, np.uint8),
            np.empty(0, np.uint8),
            np.empty(0, np.uint32),
            np.empty(0, np.uint8),
        )

    @classmethod
    def concatenate(cls, parts: Sequence["QuantizedFactors"]) -> "QuantizedFactors":
        """The factors of the tokens of all parts, at least one, in order."""
        return cls(*(np.concatenate([getattr(part, name) for part in parts]) for name in cls.__dataclass_fields__))

    def hidden_states(self, rank: int | None = None) -> np.ndarray:
        """h in its first dimensions on the hidden basis, all F or `rank` of them: float32 [K, rank]."""
        rank = self.hidden.shape[1] if rank is None else rank
        edges = band_edges(self.hidden.shape[1])
        widths = np.diff(np.minimum(edges, rank))
        return self.hidden[:, :rank] * np.repeat(self.steps[:, 1:], widths, axis=1)

    def label_errors(self) -> np.ndarray:
        """e at the label: float32 [K]."""
        return self.label_codes * (self.steps[:, 0] / LABEL_STEPS)

    def other_errors(self) -> np.ndarray:
        """e at the other tokens that are kept, below 0: float32 [n]."""
        return self.other_codes * np.repeat(-self.steps[:, 0], self.counts)


def band_edges(factor_rank: int) -> np.ndarray:
    """Where bands of hidden dimensions start, and F at the end: int64 [B + 1], 0, 1, 2, 4, ..., F."""
    edges = [0]
    while edges[-1] < factor_rank:
        edges.append(min(factor_rank, max(1, 2 * edges[-1])))
    return np.array(edges, dtype=np.int64)


@dataclass(frozen=True)
class KeptErrors:
    """What is kept of the errors of K tokens, on the device they were computed on; as in QuantizedFactors."""

    step: float
    labels: torch.Tensor  # int64 [K]
    label_codes: torch.Tensor  # uint8 [K]
    counts: torch.Tensor  # int64 [K]
    others: torch.Tensor  # int64 [n]
    other_codes: torch.Tensor  # uint8 [n]

    @classmethod
    def concatenate(cls, parts: Sequence["KeptErrors"]) -> "KeptErrors":
        """What is kept of the tokens of all parts, in order."""
        if len(parts) == 1:
            return parts[0]
        names = list(cls.__dataclass_fields__)[1:]
        return cls(parts[0].step, *(torch.cat([getattr(part, name) for part in parts]) for name in names))


def keep_errors(errors: torch.Tensor, labels: torch.Tensor, counted: torch.Tensor, step: float) -> KeptErrors:
    """The errors [..., V] of the counted tokens, rounded to steps, without those that round to zero.

    An error is positive at its label and negative elsewhere: one comparison finds what is kept, many times cheaper
    than the largest of each token. Codes are bytes: a step must be at least 4 / 255 of the largest error possible.
    """
    vocab_size = errors.shape[-1]
    at_label = labels.unsqueeze(-1)
    label_errors = errors.gather(-1, at_label).squeeze(-1)[counted]
    # Beyond half a step by more than rounding to even needs: a code is never zero.
    found = _flat_nonzero((errors < -0.5000001 * step).flatten())
    rows, others = found // vocab_size, found % vocab_size
    counted = counted.flatten()
    inside = counted[rows]
    found, rows, others = found[inside], rows[inside], others[inside]
    codes = (errors.flatten()[found] / -step).round_().clamp_(1, 255)
    return KeptErrors(
        step,
        labels.flatten()[counted],
        (label_errors / (step / LABEL_STEPS)).round_().nan_to_num_(0.0).clamp_(0, 255).to(torch.uint8),
        torch.bincount(rows, minlength=len(counted))[counted],
        others,
        codes.to(torch.uint8),
    )


def _flat_nonzero(mask: torch.Tensor) -> torch.Tensor:
    # numpy's search of mostly empty bools is 3 to 5 times faster than torch's on a CPU.
    return mask.nonzero().squeeze(-1) if mask.is_cuda else torch.from_numpy(np.flatnonzero(mask.numpy()))


def quantize(hidden: torch.Tensor, errors: KeptErrors, num_tokens: Sequence[int]) -> list[QuantizedFactors]:
    """Factors of samples with `num_tokens` tokens each, from all their rotated hidden states [K, F] in order.

    A sample's codes depend on its own tokens only.
    """
    codes, steps = _quantize_hidden(hidden, torch.tensor(num_tokens, device=hidden.device))
    whole = QuantizedFactors(
        codes,
        np.repeat(np.insert(steps, 0, errors.step, axis=1), num_tokens, axis=0),
        errors.labels.cpu().numpy().astype(np.uint32),
        errors.label_codes.cpu().numpy(),
        errors.counts.cpu().numpy().astype(np.uint8),
        errors.others.cpu().numpy().astype(np.uint32),
        errors.other_codes.cpu().numpy(),
    )
    return whole.split(num_tokens)


def _quantize_hidden(hidden: torch.Tensor, num_tokens: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Codes int8 [K, F] and steps float32 [N, B] of N samples."""
    hidden = hidden.float()
    edges = band_edges(hidden.shape[1]).tolist()
    bands = list(pairwise(edges))
    sample = torch.repeat_interleave(torch.arange(len(num_tokens), device=hidden.device), num_tokens)
    sums = torch.zeros(len(num_tokens), len(bands), dtype=torch.float64, device=hidden.device)
    squares = [hidden[:, start:stop].double().square().mean(1) for start, stop in bands]
    sums.index_add_(0, sample, torch.stack(squares, dim=1))
    sizes = (sums / num_tokens.clamp_min(1)[:, None]).sqrt()
    widths = torch.tensor(edges, device=hidden.device).diff().double()
    middle = ((sizes.clamp_min(1e-30).log() * widths).sum(1) / widths.sum()).exp()
    lengths = num_tokens.clamp(1, LONG_SAMPLE).double().sqrt()
    steps = FINEST_STEP * lengths[:, None] * (sizes * middle[:, None]).sqrt()
    largest = torch.stack([hidden[:, start:stop].abs().amax(1) for start, stop in bands], dim=1).double()
    highest = torch.zeros_like(sums).scatter_reduce_(0, sample[:, None].expand_as(largest), largest, "amax")
    steps = torch.maximum(steps, highest / 127.0).float()
    divisors = torch.where(steps > 0, steps, 1.0).repeat_interleave(widths.long(), dim=1)[sample]
    codes = (hidden / divisors).round_().nan_to_num_(0.0).clamp_(-127, 127).to(torch.int8)
    return codes.cpu().numpy(), steps.nan_to_num(0.0).cpu().numpy()


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
        block = factors[start : start + _BLOCK_TOKENS]
        tokens, errors, starts = (torch.from_numpy(array) for array in _sparse_errors(block))
        gathered = torch.nn.functional.embedding_bag(tokens, matrix, starts, per_sample_weights=errors, mode="sum")
        hidden = torch.from_numpy(block.hidden_states())
        found[start : start + len(block)] = torch.linalg.vecdot(gathered, hidden).numpy()
    return found


def _sparse_errors(factors: QuantizedFactors) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The kept errors one token after the other, the label's first: token ids and e [K + n], and where each starts [K].

    One gather with the labels among the others takes half the time of two and their sum.
    """
    num_tokens = len(factors)
    starts = np.cumsum(factors.counts, dtype=np.int32) - factors.counts + np.arange(num_tokens, dtype=np.int32)
    is_other = np.ones(num_tokens + len(factors.others), bool)
    is_other[starts] = False
    tokens, errors = np.empty(len(is_other), np.int32), np.empty(len(is_other), np.float32)
    tokens[starts], tokens[is_other] = factors.labels, factors.others
    errors[starts], errors[is_other] = factors.label_errors(), factors.other_errors()
    return tokens, errors, starts
