"""Which samples go through the model together: batches filled by tokens, long ones first."""

from collections.abc import Iterator, Sequence

__all__ = ["make_batches"]


def make_batches(lengths: Sequence[int], max_tokens: int) -> Iterator[list[int]]:
    """Positions grouped so that (samples in a batch) x (longest of them) <= max_tokens, or the batch is one sample.

    Sorted from long to short: little padding, and a batch that does not fit the memory shows at once.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    start = 0
    while start < len(order):
        size = max(1, max_tokens // max(1, lengths[order[start]]))
        yield order[start : start + size]
        start += size
