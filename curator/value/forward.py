"""The forward pass over many samples: batches filled by tokens, smaller ones when memory runs out."""

from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch

from curator.models import CausalLM, CountedHidden, make_batches
from curator.types import EncodedSample
from curator.value.represent import Representation, represent
from index.projection import Projection

__all__ = ["DEFAULT_BATCH_TOKENS", "Forward"]

DEFAULT_BATCH_TOKENS = 8_192
T = TypeVar("T")


def _is_out_of_memory(error: BaseException) -> bool:
    # On the CPU it is a plain RuntimeError, told from others by its words only.
    words = str(error).lower()
    return (
        isinstance(error, torch.OutOfMemoryError | MemoryError)
        or "can't allocate memory" in words
        or "not enough memory" in words
        or "out of memory" in words
    )


class Forward:
    """Runs encoded samples through the model. `batch_tokens` halves for good when a batch does not fit the memory."""

    def __init__(self, lm: CausalLM, batch_tokens: int = DEFAULT_BATCH_TOKENS):
        self.lm = lm
        self.batch_tokens = batch_tokens

    def hidden(self, samples: Sequence[EncodedSample]) -> Iterator[CountedHidden]:
        """Hidden states of all samples, batch after batch, in no particular order; too large ones are left out."""
        for _, batch in self.run(samples, self.lm.hidden):
            if batch is not None:
                yield batch

    def representations(
        self, samples: Sequence[EncodedSample], projection: Projection
    ) -> Iterator[tuple[list[int], list[Representation] | None]]:
        """(positions, their representations) batch after batch; None for one sample that does not fit the memory."""

        def work(batch: Sequence[EncodedSample]) -> list[Representation]:
            return represent(self.lm.hidden(batch), self.lm.head, projection)

        yield from self.run(samples, work)

    def run(
        self, samples: Sequence[EncodedSample], work: Callable[[Sequence[EncodedSample]], T]
    ) -> Iterator[tuple[list[int], T | None]]:
        """(positions, what `work` makes of these samples) batch after batch; None for one that does not fit alone."""
        waiting = list(make_batches([sample.num_tokens for sample in samples], self.batch_tokens))
        while waiting:
            positions = waiting.pop(0)
            try:
                result: T | None = work([samples[i] for i in positions])
            except (RuntimeError, MemoryError) as error:
                if not _is_out_of_memory(error):
                    raise
                result = None
            if result is None and len(positions) > 1:
                self.batch_tokens = max(1, self.batch_tokens // 2)
                waiting = self._regroup(samples, [positions, *waiting])
                continue
            yield positions, result

    def _regroup(self, samples: Sequence[EncodedSample], batches: list[list[int]]) -> list[list[int]]:
        """The waiting samples in batches of the smaller size, outside of the handler that holds the old tensors."""
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        left = [i for batch in batches for i in batch]
        return [
            [left[i] for i in group] for group in make_batches([samples[i].num_tokens for i in left], self.batch_tokens)
        ]
