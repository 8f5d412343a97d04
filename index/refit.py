"""A new projection from what segments keep: no model, no forward pass, no gradient of full size.

A stored sample is known inside the old sketch's subspace by its sketch, tails of errors included, and outside of it by
its factors. On the hidden basis U_h, which stays because factors are coordinates on it:

    G_i U_h ~ U_e unvec(P (sketch_i - f_i)) + A_i,    A_i = factors_i U_h [V, R],    f_i = P^T vec(U_e^T A_i)

In a joint error basis W = [U_e, X], X the directions outside U_e in which the factors have most energy, this is a core
[E, R]: small enough to hold for a thousand samples, and computed in a stream for all of them. A new error basis is W
times a rotation, so nothing is V x V and no sample is ever [V, R].

Every sample weighs 1 / ||G_i||^2 in the fit: what it maximizes is the mean captured share of energy, not the energy
captured of the loudest samples. lambda stays the plain second moment, as the preconditioned method defines it.

Shapes: N samples, K tokens, V vocabulary, M error rank, R hidden rank, E joint error rank, D sketch width.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from index.factors import QuantizedFactors
from index.fit import fit_rotation, principal_axes, top_eigenvectors
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
    weights = torch.cat([part.weights for part in parts])
    if not (weights > 0).any():
        raise ValueError("no stored sample has a gradient: there is nothing to fit on")
    weighted = cores * weights[:, None, None]
    side_by_side = weighted.permute(1, 0, 2).reshape(joint.shape[1], -1)
    rotation, error_values = top_eigenvectors((side_by_side @ side_by_side.T).double(), error_rank)
    rotation = rotation.float()
    rotated = torch.einsum("em,ner->nmr", rotation, cores)
    hidden_values = (rotated * weights[:, None, None]).square().sum((0, 1))
    flat = rotated.flatten(1)
    projected = fit_rotation(flat * weights[:, None], error_values, hidden_values, width)
    projected = principal_axes(flat, projected)
    second_moment = (flat @ projected).square().mean(0)
    new = Projection(joint @ rotation, old.hidden_basis, projected, second_moment)
    return Refit(old, new, joint, rotation)


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
        tokens = torch.from_numpy(factors.error_tokens.astype(np.int64))
        seen = torch.nn.functional.embedding_bag(tokens, joint, per_sample_weights=_values(factors), mode="sum")
        hidden = _hidden(factors, old.hidden_rank)
        cores = torch.stack(
            [rows.T @ states for rows, states in zip(seen.split(counts), hidden.split(counts), strict=True)]
        )
        known = cores[:, : size[0]].reshape(len(counts), -1) @ old.rotation
        missing = torch.from_numpy(part.sketches[samples]) - known
        cores[:, : size[0]] += (missing @ old.rotation.T).reshape(-1, *size)
        yield samples, cores


def _values(factors: QuantizedFactors) -> torch.Tensor:
    """e at the kept tokens, float32 [K, S]."""
    return torch.from_numpy(factors.error_values.astype(np.float32)) * torch.from_numpy(factors.error_scales)[:, None]


def _hidden(factors: QuantizedFactors, rank: int) -> torch.Tensor:
    """h U_h, float32 [K, R]."""
    codes = torch.from_numpy(factors.hidden[:, :rank].astype(np.float32))
    return codes * torch.from_numpy(factors.hidden_scales)[:, None]


def _errors(factors: QuantizedFactors, vocab_size: int) -> torch.Tensor:
    """e with zeros where it was cut off, sparse float32 [K, V]."""
    num_tokens, num_kept = factors.error_tokens.shape
    rows = torch.arange(num_tokens).repeat_interleave(num_kept)
    columns = torch.from_numpy(factors.error_tokens.astype(np.int64)).flatten()
    return torch.sparse_coo_tensor(
        torch.stack([rows, columns]), _values(factors).flatten(), (num_tokens, vocab_size), check_invariants=False
    ).coalesce()
