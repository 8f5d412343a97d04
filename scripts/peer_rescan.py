"""For-Value without an index: what a new validation set costs when nothing is kept between two of them."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

__all__ = ["TOKENS", "Encoded", "Rescan"]

TOKENS = 8192  # of a batch, here and in ingest
Encoded = list[torch.Tensor]


class Rescan:
    """For-Value from the paper's description (arXiv 2508.10180), without anything kept between validation sets.

    A new validation set costs its own G, and then every training sample runs forward again; its value is the sum over
    its tokens of e_k G h_k. As a good implementation would: tokenised once, sorted by length, batches filled by tokens,
    only positions that count pass the unembedding, the set's G once as a dense matrix, no sample's G at all.
    """

    def __init__(self, directory: Path):
        self.tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32, local_files_only=True)
        self.model: Any = model.eval().requires_grad_(False)
        self.head: torch.Tensor = self.model.get_output_embeddings().weight
        self.limit: int = self.model.config.max_position_embeddings

    def encode(self, texts: list[str], max_length: int) -> Encoded:
        """Token ids of each text with its end, cut at max_length."""
        ids = self.tokenizer(texts, verbose=False)["input_ids"]
        return [torch.tensor([*row, self.tokenizer.eos_token_id][:max_length]) for row in ids]

    def batches(self, samples: Encoded) -> Iterator[tuple[list[int], torch.Tensor, torch.Tensor]]:
        """(positions, padded ids, mask), long samples first."""
        order = sorted(range(len(samples)), key=lambda i: -len(samples[i]))
        while order:
            size = max(1, TOKENS // len(samples[order[0]]))
            taken, order = order[:size], order[size:]
            lengths = torch.tensor([len(samples[i]) for i in taken])
            ids = torch.nn.utils.rnn.pad_sequence([samples[i] for i in taken], batch_first=True)
            yield taken, ids, (torch.arange(ids.shape[1]) < lengths[:, None]).long()

    @torch.inference_mode()
    def forward(self, samples: Encoded) -> None:
        """The floor: model(**batch) and nothing else."""
        for _, ids, mask in self.batches(samples):
            self.model(input_ids=ids, attention_mask=mask, use_cache=False)

    def _tokens(self, ids: torch.Tensor, mask: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        hidden = self.model.base_model(ids, attention_mask=mask, use_cache=False).last_hidden_state
        counted = mask[:, 1:].bool()
        return hidden[:, :-1][counted], ids[:, 1:][counted], counted.sum(1)

    @torch.inference_mode()
    def gradient(self, samples: Encoded) -> torch.Tensor:
        """Mean over the samples of G = sum_k (onehot(y_k) - softmax(z_k)) h_k^T: [V, D]."""
        total = torch.zeros_like(self.head)
        for _, ids, mask in self.batches(samples):
            hidden, labels, _ = self._tokens(ids, mask)
            total.index_add_(0, labels, hidden)
            total.addmm_(torch.softmax(hidden @ self.head.T, -1).T, hidden, alpha=-1.0)
        return total / len(samples)

    @torch.inference_mode()
    def values(self, samples: Encoded, gradient: torch.Tensor) -> np.ndarray:
        """The value of every sample for the validation set with this gradient: [N]."""
        found = np.empty(len(samples))
        for taken, ids, mask in self.batches(samples):
            hidden, labels, counts = self._tokens(ids, mask)
            expected = torch.softmax(hidden @ self.head.T, -1) @ gradient
            per_token = ((gradient[labels] - expected) * hidden).sum(1)
            found[taken] = [part.sum().item() for part in per_token.split(counts.tolist())]
        return found
