"""From hidden states to what the store keeps: sketch, norm, loss and factors of every sample of a batch.

Only counted positions arrive here. They pass the unembedding in groups of samples with bounded memory, so the logits of
a whole batch never exist. Order of products, per sample: (H U_h) first, then E^T (H U_h), then U_e^T of that; the wide
error side is touched once by a thin product.

Shapes: B samples, T tokens, K counted tokens of the batch, V vocabulary, D hidden, R and F ranks of the projection.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from curator.models import CountedHidden, Head
from index.factors import ERROR_STEP, KeptErrors, QuantizedFactors, keep_errors, quantize
from index.projection import Projection

__all__ = ["MAX_ELEMENTS", "Representation", "groups_of", "norms_of", "represent"]

MAX_ELEMENTS = 1 << 25  # entries of one [tokens, V] buffer: 128 MiB in float32
_GRAM_TOKENS = 64  # rows of pairs at once


@dataclass(frozen=True)
class Representation:
    """What is kept of one sample."""

    sketch: np.ndarray  # float32 [width]
    norm: float  # ||G||_F
    loss: float  # mean over the counted tokens, nats
    factors: QuantizedFactors

    @property
    def is_finite(self) -> bool:
        """False where the model gave NaN or infinity: such a sample has no value."""
        return bool(np.isfinite(self.norm) and np.isfinite(self.loss) and np.isfinite(self.sketch).all())


def norms_of(gradients: torch.Tensor) -> torch.Tensor:
    """||G||_F of gradients float32 [..., V, D], in float64.

    Row by row first: torch adds up all V * D squares one after another, and for V = 150,000 a float32 sum is then 2 %
    off; one in float64 is right and 18 times slower than this.
    """
    return torch.linalg.vector_norm(torch.linalg.vector_norm(gradients, dim=-1).double(), dim=-1)


def groups_of(counts: list[int], vocab_size: int, max_elements: int = MAX_ELEMENTS) -> Iterator[list[int]]:
    """Samples whose padded [tokens, V] errors fit into max_elements together, or one sample; long ones first."""
    order = sorted(range(len(counts)), key=lambda i: (-counts[i], i))
    start = 0
    while start < len(order):
        size = max(1, max_elements // (counts[order[start]] * vocab_size))
        yield order[start : start + size]
        start += size


@torch.inference_mode()
def represent(
    batch: CountedHidden,
    head: Head,
    projection: Projection,
    *,
    error_step: float = ERROR_STEP,
    max_elements: int | None = None,
) -> list[Representation]:
    """Representations of the batch's samples, in batch order; no buffer has more than `max_elements` of [tokens, V].

    The default on a GPU is 1 GiB: every group of samples is a round trip to the host there.
    """
    if max_elements is None:
        max_elements = MAX_ELEMENTS * (8 if batch.hidden.is_cuda else 1)
    hidden, labels = batch.hidden.split(batch.counts), batch.labels.split(batch.counts)
    found: dict[int, Representation] = {}
    for group in groups_of(batch.counts, head.vocab_size, max_elements):
        parts = _represent_group([hidden[i] for i in group], [labels[i] for i in group], head, projection,
                                 error_step * head.scale, max_elements)  # fmt: skip
        found.update(zip(group, parts, strict=True))
    return [found[i] for i in range(len(batch.counts))]


@dataclass(frozen=True)
class _Group:
    """Samples padded to one length, and how their tokens are added up."""

    hidden: torch.Tensor  # [B, T, D]
    labels: torch.Tensor  # [B, T]
    counted: torch.Tensor  # bool [B, T]: False where padded
    head: Head
    basis: torch.Tensor  # U_h [D, R]
    step: float  # of kept errors
    block: int  # tokens of each sample at once


@dataclass(frozen=True)
class _Sums:
    """Sums over the tokens of each sample of a group, and the kept errors of each token."""

    reduced: torch.Tensor  # E^T (H U_h) [B, V, R]
    squared_norms: torch.Tensor  # ||G||_F^2 [B]
    losses: torch.Tensor  # [B]
    kept: KeptErrors  # of the counted tokens


def _represent_group(
    hidden: list[torch.Tensor],
    labels: list[torch.Tensor],
    head: Head,
    projection: Projection,
    step: float,
    max_elements: int,
) -> list[Representation]:
    hidden_BTD = torch.nn.utils.rnn.pad_sequence(hidden, batch_first=True)
    labels_BT = torch.nn.utils.rnn.pad_sequence(labels, batch_first=True)
    counts = torch.tensor([len(part) for part in labels], device=hidden_BTD.device)
    counted_BT = torch.arange(hidden_BTD.shape[1], device=counts.device) < counts[:, None]
    rotated_BTF = hidden_BTD.float() @ projection.hidden_basis
    basis = projection.hidden_basis[:, : projection.hidden_rank]
    block = max(1, max_elements // (len(hidden) * head.vocab_size))  # below T only for one long sample
    add_up = _sums_by_gram if hidden_BTD.shape[1] <= head.hidden_size else _sums_by_gradient
    sums = add_up(_Group(hidden_BTD, labels_BT, counted_BT, head, basis, step, block))
    sketches = projection.sketch(sums.reduced).cpu().numpy()
    norms, losses = sums.squared_norms.clamp_min(0.0).sqrt().tolist(), (sums.losses / counts).tolist()
    factors = quantize(rotated_BTF[counted_BT], sums.kept, [len(part) for part in labels])
    return [Representation(*parts) for parts in zip(sketches, norms, losses, factors, strict=True)]


def _sums_by_gram(group: _Group) -> _Sums:
    """For samples with fewer tokens than hidden dimensions: ||E^T H||^2 from two [T, T] Gram matrices.

    Padded positions have errors, but hidden states of zero, so they add nothing.
    """
    errors, losses = group.head.errors(group.hidden, group.labels)
    states = group.hidden.float()
    kept = keep_errors(errors, group.labels, group.counted, group.step)
    reduced = errors.transpose(1, 2) @ (states @ group.basis)
    return _Sums(reduced, _squared_norms(errors, states), (losses * group.counted).sum(1), kept)


def _squared_norms(errors: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    """sum_{k,k'} <e_k, e_k'> <h_k, h_k'> of each sample [B]; of the two equal halves of the pairs, one is computed."""
    total = torch.zeros(len(errors), dtype=torch.float64, device=errors.device)
    for start in range(0, errors.shape[1], _GRAM_TOKENS):
        rows, before = slice(start, start + _GRAM_TOKENS), slice(0, start + _GRAM_TOKENS)
        pairs = (errors[:, rows] @ errors[:, before].transpose(1, 2)) * (
            states[:, rows] @ states[:, before].transpose(1, 2)
        )
        total += 2.0 * pairs[..., :start].double().sum((1, 2)) + pairs[..., start:].double().sum((1, 2))
    return total


def _sums_by_gradient(group: _Group) -> _Sums:
    """For long samples: G [B, V, D] itself, summed over blocks of tokens, is smaller than their errors."""
    num_samples, num_tokens, hidden_size = group.hidden.shape
    gradient = torch.zeros(num_samples, group.head.vocab_size, hidden_size, device=group.hidden.device)
    total = torch.zeros(num_samples, device=group.hidden.device)
    kept = []
    for start in range(0, num_tokens, group.block):
        part = slice(start, start + group.block)
        hidden, labels, counted = group.hidden[:, part], group.labels[:, part], group.counted[:, part]
        errors, losses = group.head.errors(hidden, labels)
        gradient.baddbmm_(errors.transpose(1, 2), hidden.float())
        total += (losses * counted).sum(1)
        kept.append(keep_errors(errors, labels, counted, group.step))
    # Several blocks are of one sample: one after another they are in its order.
    return _Sums(gradient @ group.basis, norms_of(gradient).square(), total, KeptErrors.concatenate(kept))
