"""A query as one gradient: values are linear in G, so a validation set of any size is the mean of its samples' G.

Shapes: K counted tokens, V vocabulary, D hidden.
"""

import torch

from curator.models import CountedHidden, Head
from curator.value.represent import MAX_ELEMENTS

__all__ = ["QueryGradient"]


class QueryGradient:
    """Sums G over samples as their hidden states arrive; holds one [V, D] buffer in float32, whatever their number."""

    def __init__(self, head: Head, *, max_elements: int = MAX_ELEMENTS):
        self._head = head
        self._block = max(1, max_elements // head.vocab_size)
        self._sum = torch.zeros(head.vocab_size, head.hidden_size, device=head.weight.device)
        self.num_samples = 0
        self.num_tokens = 0

    @torch.inference_mode()
    def add(self, batch: CountedHidden) -> None:
        """Adds the samples of a batch; each counts alike, however long it is."""
        for start in range(0, len(batch.labels), self._block):
            hidden = batch.hidden[start : start + self._block]
            errors, _ = self._head.errors(hidden, batch.labels[start : start + self._block])
            self._sum.addmm_(errors.T, hidden.float())
        self.num_samples += len(batch.counts)
        self.num_tokens += len(batch.labels)

    def mean(self) -> torch.Tensor:
        """The query's gradient: mean of G over the samples, float32 [V, D]."""
        return self._sum / max(1, self.num_samples)
