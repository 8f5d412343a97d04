"""Retrainings of the small model: what leaving samples out, or training on a selection, does to losses.

Each result is kept in a folder under the hash of what made it, so that a run that was stopped goes on.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from curator.models import make_batches
from curator.types import EncodedSample

__all__ = ["Recipe", "Retraining", "random_halves"]


@dataclass(frozen=True)
class Recipe:
    """How a model is trained: AdamW without weight decay, a constant rate, every sample `epochs` times."""

    rate: float = 5e-4
    batch: int = 15
    epochs: int = 1


class Retraining:
    """Trains a fresh copy of the model on some of the samples and measures losses of others, once for each choice."""

    def __init__(
        self,
        model: Path,
        train: Sequence[EncodedSample],
        held_out: Sequence[EncodedSample],
        recipe: Recipe,
        cache: Path,
    ):
        self._model, self._train, self._held_out, self._recipe = model, train, held_out, recipe
        self._cache = cache
        cache.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(repr(recipe).encode())
        digest.update((model / "model.safetensors").read_bytes())
        for sample in (*train, *held_out):
            digest.update(sample.input_ids.tobytes() + sample.counted.tobytes())
        self._digest = digest.digest()

    def losses(self, chosen: np.ndarray, seed: int = 0) -> np.ndarray:
        """Mean loss over the counted tokens of each held-out sample after training on the chosen: float64 [Q]."""
        name = hashlib.sha256(self._digest + np.sort(chosen).astype(np.int64).tobytes() + bytes([seed])).hexdigest()
        path = self._cache / f"{name[:24]}.npz"
        if not path.exists():
            losses = self._trained(np.sort(chosen), seed)
            partial = path.with_suffix(".partial.npz")
            np.savez(partial, losses=losses)
            partial.rename(path)
        with np.load(path) as stored:
            found: np.ndarray = stored["losses"]
        return found

    def _trained(self, chosen: np.ndarray, seed: int) -> np.ndarray:
        model = AutoModelForCausalLM.from_pretrained(self._model, dtype=torch.float32, local_files_only=True)
        optimizer = torch.optim.AdamW(model.parameters(), lr=self._recipe.rate, weight_decay=0.0)
        generator = np.random.default_rng(seed)
        for _ in range(self._recipe.epochs if len(chosen) else 0):
            order = generator.permutation(chosen)
            for start in range(0, len(order), self._recipe.batch):
                batch = [self._train[i] for i in order[start : start + self._recipe.batch]]
                loss = torch.stack([part.sum() for part in _token_losses(model, batch)]).sum()
                (loss / sum(sample.num_counted for sample in batch)).backward()
                optimizer.step()
                optimizer.zero_grad()
        return self._measure(model)

    @torch.inference_mode()
    def _measure(self, model: torch.nn.Module) -> np.ndarray:
        losses = np.empty(len(self._held_out))
        for batch in make_batches([sample.num_tokens for sample in self._held_out], 4_096):
            for i, part in zip(batch, _token_losses(model, [self._held_out[i] for i in batch]), strict=True):
                losses[i] = part.double().mean().item()
        return losses


def random_halves(num_samples: int, num_subsets: int, seed: int) -> Iterator[np.ndarray]:
    """Random halves of the samples, each its sorted positions."""
    generator = np.random.default_rng(seed)
    for _ in range(num_subsets):
        yield np.sort(generator.permutation(num_samples)[: num_samples // 2])


def _token_losses(model: torch.nn.Module, batch: Sequence[EncodedSample]) -> tuple[torch.Tensor, ...]:
    """Losses of the counted tokens of each sample; only these pass the unembedding. Padding is on the right."""
    ids = torch.zeros(len(batch), max(sample.num_tokens for sample in batch), dtype=torch.int64)
    counted = torch.zeros(ids.shape, dtype=torch.bool)
    for i, sample in enumerate(batch):
        ids[i, : sample.num_tokens] = torch.from_numpy(sample.input_ids)
        counted[i, : sample.num_tokens] = torch.from_numpy(sample.counted)
    hidden = model.base_model(ids, use_cache=False).last_hidden_state[:, :-1][counted[:, 1:]]
    losses = cross_entropy(model.lm_head(hidden), ids[:, 1:][counted[:, 1:]], reduction="none")
    return losses.split(counted.sum(1).tolist())
