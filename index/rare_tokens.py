"""Rare tokens: which of a segment's samples have a label that few samples have, and what it adds to a value.

A sketch sees errors inside U_e, a few hundred directions of V. The label of a rare token lies outside of all of them,
so that what a query and a sample share there, e_y <h, h'> e'_y, is missing from the sketch's value. With a large
vocabulary it can be much of the whole. So a segment lists such labels: for each its samples, and for each of these the
sum of e_y h over its tokens with that label, in the leading hidden dimensions. A query looks up its own tokens only.

The file, `rare_tokens.safetensors` of a segment (index/segment.py), written with it and as immutable:

    tokens   U32 [L]     labels that at most RARE_SHARE of the samples have, or RARE_SAMPLES; ascending
    starts   I64 [L+1]   where their postings start
    rows     U32 [P]     row numbers of samples, ascending within a token
    scales   F32 [P]     of the vectors, >= 0
    vectors  I8 [P, R]   sum of e_y h = scales * vectors

Nothing of it is held in memory: a lookup touches the pages it needs. It proposes candidates, which are rescored from
their factors like all others, so that its rounding moves no value.

Shapes: N samples, K tokens, L labels listed, P postings, R dimensions, n tokens of a query, m hits.
"""

from pathlib import Path

import numpy as np

from index.errors import StoredFileError
from index.factors import QuantizedFactors
from index.stored import MappedTensors

__all__ = ["RARE_RANK", "RARE_TOKENS_FILE", "RareTokens", "rare_tokens"]

RARE_TOKENS_FILE = "rare_tokens.safetensors"
RARE_SHARE = 0.1  # of a segment's samples
RARE_SAMPLES = 16
RARE_RANK = 8
_DTYPES = {"tokens": ("uint32", 1), "starts": ("int64", 1), "rows": ("uint32", 1), "scales": ("float32", 1)}


def rare_tokens(factors: QuantizedFactors, offsets: np.ndarray, rank: int = RARE_RANK) -> dict[str, np.ndarray]:
    """The tensors of the file, for the factors of all tokens of N samples, which start at offsets int64 [N + 1]."""
    num_samples = len(offsets) - 1
    labels = factors.labels.astype(np.int64)
    samples = np.repeat(np.arange(num_samples), np.diff(offsets))
    places = labels * max(1, num_samples) + samples
    order = np.argsort(places, kind="stable")
    pairs, firsts = np.unique(places[order], return_index=True)  # (token, sample), ascending
    tokens, starts = np.unique(pairs // max(1, num_samples), return_index=True)
    sizes = np.diff(np.append(starts, len(pairs)))
    is_rare = sizes <= max(RARE_SAMPLES, RARE_SHARE * num_samples)
    kept = np.repeat(is_rare, sizes)  # of the pairs
    chosen = np.repeat(kept, np.diff(np.append(firsts, len(order))))  # of the tokens in order
    summed = np.zeros((int(kept.sum()), min(rank, factors.hidden.shape[1])), np.float32)
    if len(summed):
        of_tokens = order[chosen]
        bounds = np.cumsum(np.append(0, np.diff(np.append(firsts, len(order)))[kept]))[:-1]
        weighted = factors.hidden_states(summed.shape[1])[of_tokens] * factors.label_errors()[of_tokens, None]
        summed = np.add.reduceat(weighted.astype(np.float32), bounds, axis=0)
    scales = np.abs(summed).max(axis=1, initial=0) / np.float32(127)
    divisors = np.where(scales > 0, scales, np.float32(1))
    return {
        "tokens": tokens[is_rare].astype(np.uint32),
        "starts": np.cumsum(np.append(0, sizes[is_rare])).astype(np.int64),
        "rows": (pairs[kept] % max(1, num_samples)).astype(np.uint32),
        "scales": scales.astype(np.float32),
        "vectors": np.rint(summed / divisors[:, None]).astype(np.int8),
    }


class RareTokens:
    """The lists of one segment of num_samples samples, mapped. Safe to share between threads.

    Raises StoredFileError, when it is made or at a lookup, where the file is missing, truncated or does not add up.
    """

    def __init__(self, path: Path, format_name: str, num_samples: int) -> None:
        self._file = MappedTensors(path, format_name)
        self._num_samples = num_samples
        sizes = {name: self._file.shape(name, *expected)[0] for name, expected in _DTYPES.items()}
        num_vectors, self.rank = self._file.shape("vectors", "int8", 2)
        if sizes["starts"] != sizes["tokens"] + 1 or {sizes["rows"], sizes["scales"]} != {num_vectors}:
            raise StoredFileError(f"{path}: the sizes of its tensors do not fit each other; verify the store")
        self.num_postings = num_vectors

    def lookup(self, tokens: np.ndarray, matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What these tokens, int64 [n] ascending, add to values for a query with matrix float32 [n, >= R] there.

        Returns ascending row numbers int64 [m] of the samples that have one of them, and float32 [m].
        """
        listed, starts = self._file.array("tokens"), self._file.array("starts")
        at = np.searchsorted(listed, tokens.astype(listed.dtype))
        found = np.flatnonzero(at < len(listed))
        found = found[listed[at[found]] == tokens[found]]
        first, last = starts[at[found]], starts[at[found] + 1]
        if (first < 0).any() or (last < first).any() or (last > self.num_postings).any():
            raise self._damaged("starts")
        sizes = last - first
        of_token = np.repeat(found, sizes)
        postings = np.arange(len(of_token)) + np.repeat(first - (np.cumsum(sizes) - sizes), sizes)
        rows = self._file.array("rows")[postings].astype(np.int64)
        if (rows >= self._num_samples).any():
            raise self._damaged("rows")
        products = np.einsum("pr,pr->p", self._file.array("vectors")[postings], matrix[of_token, : self.rank])
        unique, inverse = np.unique(rows, return_inverse=True)
        added = np.bincount(inverse, products * self._file.array("scales")[postings], minlength=len(unique))
        return unique, added.astype(np.float32)

    def _damaged(self, name: str) -> StoredFileError:
        return StoredFileError(f"{self._file.path}: {name} point beyond its end; verify the store")
