"""Fits a space's projection on the hidden states of a random part of the first data.

Calibration keeps the hidden states of its samples, at most `MAX_BYTES` of them, and goes over their errors a few times
through the unembedding; the model itself runs once per sample.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch

from curator.errors import ModelError
from curator.models import CountedHidden, Head
from curator.value.represent import MAX_ELEMENTS
from index.fit import HiddenMoment, RangeFinder, fit_cores
from index.projection import Projection

__all__ = ["MAX_BYTES", "Ranks", "affordable_tokens", "calibrate"]

MAX_BYTES = 1 << 30
# Tokens the range finder reads, three times: 4,096 of them capture within .003 of what 16,384 do (rank 32 to 128).
_ERROR_TOKENS = 4_096
# It looks for twice as many directions as are kept; the gradients of whole samples choose among them. That captured
# .02 to .06 more of the samples' energy than the leading directions of single errors.
_WIDER = 2
# Multiply-adds of the unembedding over all samples: 21,000 tokens at V = 150k, H = 1.5k, and every sample of a
# calibration for a small model.
_WORK, _WORK_ON_GPU = 5 * 10**12, 5 * 10**13
_MIN_TOKENS = 8_192


@dataclass(frozen=True)
class Ranks:
    """Upper limits; a space with less data or a smaller model has fewer."""

    error: int = 256  # M
    hidden: int = 32  # R
    factor: int = 64  # F
    width: int = 1024  # D


@torch.inference_mode()
def calibrate(batches: Iterable[CountedHidden], head: Head, *, ranks: Ranks, seed: int) -> Projection:
    """The projection of a space, fitted on the samples of `batches`; the same samples and seed give the same one.

    Raises ModelError when no sample has finite hidden states, or none a gradient.
    """
    samples = _collect(batches)
    if not samples:
        raise ModelError("the model gives NaN or infinity on every sample; check the checkpoint and --dtype")
    device = head.weight.device
    moment = HiddenMoment(head.hidden_size, device)
    for hidden, _ in samples:
        moment.add(hidden)
    hidden_basis, _ = moment.basis(min(max(ranks.factor, ranks.hidden), head.hidden_size))
    hidden_rank = min(ranks.hidden, hidden_basis.shape[1])
    finder = RangeFinder(head.vocab_size, _WIDER * ranks.error, seed=seed, device=device)
    some = _token_subset(samples, seed)
    wider_basis, error_values = finder.fit(lambda: _error_blocks(*some, head))
    if not wider_basis.shape[1] or not hidden_rank:
        raise ModelError("no sample has a gradient: every hidden state or every prediction error is zero")
    found = [_core(hidden, labels, head, wider_basis, hidden_basis, hidden_rank) for hidden, labels in samples]
    cores, norms = (torch.stack(parts) for parts in zip(*found, strict=True))
    fitted = fit_cores(cores, norms, error_values, error_rank=ranks.error, width=ranks.width)
    info = {
        "num_samples": str(len(samples)),
        "num_tokens": str(sum(len(labels) for _, labels in samples)),
        "seed": str(seed),
    }
    return Projection(wider_basis @ fitted.errors, hidden_basis, fitted.rotation, fitted.second_moment, info)


def affordable_tokens(head: Head) -> int:
    """Counted tokens that a calibration may read: what fits MAX_BYTES of hidden states and the work it may cost."""
    work = _WORK if head.weight.device.type == "cpu" else _WORK_ON_GPU
    in_memory = MAX_BYTES // (head.hidden_size * head.weight.element_size())
    return min(in_memory, max(_MIN_TOKENS, work // (head.vocab_size * head.hidden_size)))


def _collect(batches: Iterable[CountedHidden]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    samples: list[tuple[torch.Tensor, torch.Tensor]] = []
    num_bytes = 0
    for batch in batches:
        for part in zip(batch.hidden.split(batch.counts), batch.labels.split(batch.counts), strict=True):
            if not torch.isfinite(part[0]).all():
                continue  # quarantined with its reason when it is ingested
            samples.append(part)
            num_bytes += part[0].nbytes
            if num_bytes >= MAX_BYTES:
                return samples
    return samples


def _token_subset(samples: list[tuple[torch.Tensor, torch.Tensor]], seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    hidden, labels = (torch.cat(parts) for parts in zip(*samples, strict=True))
    if len(labels) <= _ERROR_TOKENS:
        return hidden, labels
    chosen = torch.randperm(len(labels), generator=torch.Generator().manual_seed(seed))[:_ERROR_TOKENS]
    chosen = chosen.sort().values.to(labels.device)
    return hidden[chosen], labels[chosen]


def _error_blocks(hidden: torch.Tensor, labels: torch.Tensor, head: Head) -> Iterator[torch.Tensor]:
    block = max(1, MAX_ELEMENTS // head.vocab_size)
    for start in range(0, len(labels), block):
        yield head.errors(hidden[start : start + block], labels[start : start + block])[0]


def _core(
    hidden: torch.Tensor,
    labels: torch.Tensor,
    head: Head,
    error_basis: torch.Tensor,
    hidden_basis: torch.Tensor,
    hidden_rank: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """W^T G U_h of one sample, float32 [E, R], and ||G||, but for what lies outside the hidden basis."""
    reduced = torch.zeros(head.vocab_size, hidden_basis.shape[1], device=hidden.device)
    block = max(1, MAX_ELEMENTS // head.vocab_size)
    for start in range(0, len(labels), block):
        part = slice(start, start + block)
        errors, _ = head.errors(hidden[part], labels[part])
        reduced.addmm_(errors.T, hidden[part].float() @ hidden_basis)
    return error_basis.T @ reduced[:, :hidden_rank], reduced.norm()
