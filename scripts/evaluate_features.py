"""What the compared methods know of a sample: G whole, sums of hidden states and of errors, loss, text.

For a small model only: G is V * H numbers a sample. Shapes: N samples, Q queries, V vocabulary, H hidden size.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evaluate_data import Item
from torch.nn.functional import cross_entropy

from curator.models import CausalLM, Encoder, Positions, load_tokenizer, make_batches
from curator.types import EncodedSample, Sample
from curator.value import Ranks, calibrate
from index import Projection

__all__ = ["Features", "Moments", "SmallModel", "WholeGradients"]

_BATCH_TOKENS = 4_096


@dataclass(frozen=True)
class Moments:
    """Second moments over all counted tokens, for Kronecker factors."""

    errors: torch.Tensor  # float64 [V, V]
    hidden: torch.Tensor  # float64 [H, H]


@dataclass(frozen=True)
class Features:
    """Of N samples; where N are of a corpus, with the moments of their tokens."""

    gradients: torch.Tensor  # G float32 [N, V * H]
    hidden: torch.Tensor  # sum of h, float32 [N, H]
    errors: torch.Tensor  # sum of e, float32 [N, V]
    losses: np.ndarray  # float64 [N], mean over the counted tokens
    texts: list[str]  # what the positions count: all of it, or the response
    moments: Moments

    def take(self, rows: np.ndarray) -> "Features":
        """Of some of the samples; the moments stay those of all."""
        return Features(
            self.gradients[rows],
            self.hidden[rows],
            self.errors[rows],
            self.losses[rows],
            [self.texts[i] for i in rows],
            self.moments,
        )


class SmallModel:
    """The model, one choice of counted positions, and what is measured of samples under both."""

    def __init__(self, directory: Path, positions: Positions):
        self.lm = CausalLM.load(directory, device="cpu", dtype="float32")
        self.positions = positions
        self._encoder = Encoder(
            load_tokenizer(directory),
            max_length=self.lm.context or 2048,
            vocab_size=self.lm.vocab_size,
            positions=positions,
        )

    def encode(self, items: Sequence[Item]) -> list[EncodedSample]:
        """Items as the engine encodes them. Raises ValueError for one that has no counted token."""
        encoded = self._encoder.encode([Sample(prompt=item.prompt, response=item.response) for item in items])
        good = [sample for sample in encoded if isinstance(sample, EncodedSample)]
        if len(good) < len(items):
            raise ValueError(f"{len(items) - len(good)} items cannot be valued")
        return good

    @torch.inference_mode()
    def features(self, items: Sequence[Item]) -> Features:
        """By the definition: errors and hidden states of the counted tokens, G their product."""
        samples, head = self.encode(items), self.lm.head
        size = (head.vocab_size, head.hidden_size)
        gradients = torch.empty(len(samples), size[0] * size[1])
        hidden, errors = torch.empty(len(samples), size[1]), torch.empty(len(samples), size[0])
        losses = np.empty(len(samples))
        moments = Moments(*(torch.zeros(n, n, dtype=torch.float64) for n in size))
        for batch in make_batches([sample.num_tokens for sample in samples], _BATCH_TOKENS):
            counted = self.lm.hidden([samples[i] for i in batch])
            parts = zip(counted.hidden.split(counted.counts), counted.labels.split(counted.counts), strict=True)
            for i, (states, labels) in zip(batch, parts, strict=True):
                wrong, loss = head.errors(states, labels)
                gradients[i] = (wrong.T @ states).flatten()
                hidden[i], errors[i], losses[i] = states.sum(0), wrong.sum(0), loss.double().mean().item()
                moments.errors.add_((wrong.T @ wrong).double())
                moments.hidden.add_((states.T @ states).double())
        texts = [item.text if self.positions == "all" else item.response for item in items]
        return Features(gradients, hidden, errors, losses, texts, moments)

    def projection(self, items: Sequence[Item], seed: int, ranks: Ranks | None = None) -> Projection:
        """A projection fitted as ingest fits it: on 256 random samples, or an eighth of them if that is more."""
        samples = self.encode(items)
        number = min(len(samples), max(256, min(1_024, len(samples) // 8)))
        some = np.sort(np.random.default_rng(seed).permutation(len(samples))[:number])
        batches = make_batches([samples[i].num_tokens for i in some], _BATCH_TOKENS)
        hidden = (self.lm.hidden([samples[some[i]] for i in batch]) for batch in batches)
        return calibrate(hidden, self.lm.head, ranks=ranks or Ranks(), seed=seed)


class WholeGradients:
    """Inner products with the gradients of all parameters, one backward pass a sample: what For-Value does without.

    Of all parameters, and of those of the last block alone.
    """

    def __init__(self, model: SmallModel, queries: Sequence[Item]):
        self._model = model
        self._module: Any = model.lm._model
        last = max(int(name.split(".")[2]) for name, _ in self._module.named_parameters() if ".layers." in name)
        named = list(self._module.named_parameters())
        edges = np.cumsum([0, *(parameter.numel() for _, parameter in named)])
        inside = [f".layers.{last}." in name for name, _ in named]
        self._last_block = np.concatenate(
            [np.arange(a, b) for a, b, is_in in zip(edges[:-1], edges[1:], inside, strict=True) if is_in]
        )
        self._queries = torch.stack(self._each(queries, lambda gradient: gradient))

    def products(self, items: Sequence[Item]) -> dict[str, np.ndarray]:
        """whole and last_block [N, Q]: minus gradient times minus gradient; and their norms, ..._norm [N]."""
        few = torch.from_numpy(self._last_block)
        last = self._queries[:, few]

        def work(gradient: torch.Tensor) -> tuple[np.ndarray, ...]:
            part = gradient[few]
            return (
                (self._queries @ gradient).numpy(),
                (last @ part).numpy(),
                float(gradient.norm()),
                float(part.norm()),
            )  # type: ignore[return-value]

        names = ("whole", "last_block", "whole_norm", "last_block_norm")
        return {
            name: np.array(part) for name, part in zip(names, zip(*self._each(items, work), strict=True), strict=True)
        }

    def _each(self, items: Sequence[Item], work: Callable[[torch.Tensor], Any]) -> list[Any]:
        parameters = list(self._module.parameters())
        found = []
        for sample in self._model.encode(items):
            ids = torch.from_numpy(sample.input_ids)
            counted = torch.from_numpy(sample.counted)[1:]
            with torch.enable_grad():
                for parameter in parameters:
                    parameter.requires_grad_(True)
                hidden = self._module.base_model(ids[None], use_cache=False).last_hidden_state[0, :-1][counted]
                loss = cross_entropy(self._module.lm_head(hidden), ids[1:][counted], reduction="sum")
                gradients = torch.autograd.grad(loss, parameters)
            found.append(work(torch.cat([gradient.flatten() for gradient in gradients])))
        for parameter in parameters:
            parameter.requires_grad_(False)
        return found
