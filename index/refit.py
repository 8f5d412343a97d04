"""A new projection from what segments keep: no model, no forward pass, no gradient of full size.

A stored sample is known inside the old sketch's subspace by its sketch, tails of errors included, and outside of it by
its factors. On the hidden basis U_h, which stays because factors are coordinates on it:

    G_i U_h ~ U_e unvec(P (sketch_i - f_i)) + A_i,    A_i = factors_i U_h [V, R],    f_i = P^T vec(U_e^T A_i)

In a joint error basis W = [U_e, X], X the directions outside U_e in which the factors have most energy, this is a core
[E, R]: small enough to hold for a thousand samples, and computed in a stream for all of them. A new error basis is W
times a rotation, so nothing is V x V and no sample is ever [V, R].

Shapes: N samples, K tokens, V vocabulary, M error rank, R hidden rank, E joint error rank, D sketch width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from index.factors import QuantizedFactors
from index.fit import fit_cores
from index.projection import Projection

__all__ = ["Refit", "StoredPart", "fit_stored"]

_OVERSAMPLING = 16
_PASSES = 2
_BLOCK_TOKENS = 8_192  # 16 MiB of gathered rows at E = 512


@dataclass(frozen=True)
class StoredPart:
    """Some samples as segments keep them; the factors are those of all their tokens, in order."""

    sketches: np.ndarray  # float32 [N, D]
    norms: np.ndarray  # float32 [N]: ||G||
    factors: QuantizedFactors  # K tokens
    counts: np.ndarray  # int64 [N]: tokens of each sample, summing to K

    @property
    def weights(self) -> torch.Tensor:
        """1 / ||G|| of each sample, 0 where there is no gradient: float32 [N]."""
        return torch.from_numpy(np.divide(1, self.norms, out=np.zeros_like(self.norms), where=self.norms > 0))

    def blocks(self) -> Iterator[tuple[slice, list[int], QuantizedFactors]]:
        """(samples, their counts, their factors) of whole samples, about _BLOCK_TOKENS tokens at a time."""
        ends = np.cumsum(self.counts)
        first = start = 0
        while first < len(ends):
            last = max(first + 1, int(np.searchsorted(ends, start + _BLOCK_TOKENS, side="right")))
            stop = int(ends[last - 1])
            yield slice(first, last), self.counts[first:last].tolist(), self.factors[start:stop]
            first, start = last, stop


@dataclass(frozen=True)
class Refit:
    """A new projection and the way to it from what is stored under the old one."""

    old: Projection
    new: Projection
    joint: torch.Tensor  # W float32 [V, E], orthonormal; its first M columns are the old U_e
    rotation: torch.Tensor  # float32 [E, M']: new U_e = W rotation

    def sketches(self, part: StoredPart) -> np.ndarray:
        """New sketches of stored samples, float32 [N, D']."""
        found = np.empty((len(part.norms), self.new.width), np.float32)
        for samples, cores in _cores(self.old, self.joint, part):
            new_cores = torch.einsum("em,ner->nmr", self.rotation, cores)
            found[samples] = (new_cores.reshape(len(cores), -1) @ self.new.rotation).numpy()
        return found


def fit_stored(old: Projection, parts: Sequence[StoredPart], *, error_rank: int, width: int, seed: int) -> Refit:
    """The projection of at most error_rank and width that captures most of these samples. The hidden basis stays.

    Raises ValueError when none of the samples has a gradient.
    """
    joint = _joint_basis(old, parts, error_rank, seed)
    cores = torch.cat([core for part in parts for _, core in _cores(old, joint, part)])
    norms = torch.cat([torch.from_numpy(part.norms) for part in parts])
    if not (norms > 0).any():
        raise ValueError("no stored sample has a gradient: there is nothing to fit on")
    prior = torch.zeros(joint.shape[1])
    prior[: old.error_rank] = 1.0  # where these samples say nothing, the old basis knows more than new directions
    fitted = fit_cores(cores, norms, prior, error_rank=error_rank, width=width)
    new = Projection(joint @ fitted.errors, old.hidden_basis, fitted.rotation, fitted.second_moment)
    return Refit(old, new, joint, fitted.errors)


def _joint_basis(old: Projection, parts: Sequence[StoredPart], num_more: int, seed: int) -> torch.Tensor:
    """W [V, E]: U_e and, by a randomised range finder, at most num_more directions of the factors outside of it."""
    basis = old.error_basis
    width = min(old.vocab_size - old.error_rank, num_more + _OVERSAMPLING)
    if width <= 0:
        return basis
    probe = torch.randn(old.vocab_size, width, generator=torch.Generator().manual_seed(seed))
    for _ in range(_PASSES):
        probe -= basis @ (basis.T @ probe)
        gathered = torch.zeros_like(probe)
        for part in parts:
            for samples, counts, factors in part.blocks():
                errors, hidden = _errors(factors, old.vocab_size), _hidden(factors, old.hidden_rank)
                seen = torch.sparse.mm(errors, probe)
                weights = part.weights[samples].square().tolist()
                back = [
                    weight * (states @ (states.T @ rows))
                    for weight, states, rows in zip(weights, hidden.split(counts), seen.split(counts), strict=True)
                ]
                gathered += torch.sparse.mm(errors.T, torch.cat(back))
        # Few samples span few directions: Householder's QR fills up with others, all orthogonal to U_e.
        probe = torch.linalg.qr(torch.cat([basis, gathered], dim=1))[0][:, old.error_rank :]
    return torch.cat([basis, probe], dim=1)


def _cores(old: Projection, joint: torch.Tensor, part: StoredPart) -> Iterator[tuple[slice, torch.Tensor]]:
    """(samples, their W^T G U_h float32 [n, E, R])."""
    size = (old.error_rank, old.hidden_rank)
    for samples, counts, factors in part.blocks():
        seen = torch.sparse.mm(_errors(factors, old.vocab_size), joint)
        hidden = _hidden(factors, old.hidden_rank)
        cores = torch.stack(
            [rows.T @ states for rows, states in zip(seen.split(counts), hidden.split(counts), strict=True)]
        )
        known = cores[:, : size[0]].reshape(len(counts), -1) @ old.rotation
        missing = torch.from_numpy(part.sketches[samples]) - known
        cores[:, : size[0]] += (missing @ old.rotation.T).reshape(-1, *size)
        yield samples, cores


def _hidden(factors: QuantizedFactors, rank: int) -> torch.Tensor:
    """h U_h, float32 [K, R]."""
    return torch.from_numpy(factors.hidden_states(rank).astype(np.float32))


def _errors(factors: QuantizedFactors, vocab_size: int) -> torch.Tensor:
    """e with zeros where it was cut off, sparse float32 [K, V]."""
    num_tokens = len(factors)
    rows = np.concatenate([np.arange(num_tokens), np.repeat(np.arange(num_tokens), factors.counts)])
    columns = np.concatenate([factors.labels, factors.others]).astype(np.int64)
    values = np.concatenate([factors.label_errors(), factors.other_errors()]).astype(np.float32)
    size = (num_tokens, vocab_size)
    return torch.sparse_coo_tensor(
        torch.from_numpy(np.stack([rows, columns])), torch.from_numpy(values), size, check_invariants=True
    ).coalesce()
