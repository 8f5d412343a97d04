"""Candidates that a sketch misses: samples which share a rare token with the query, found through the segments' lists.

    gain(i|q) = sum over the query's tokens v of <sum of e_v h over i's labels v, (G_q outside the sketch)_v>

The lists (index/rare_tokens.py) give the gain of every sample that has one of the tokens, without reading its factors.
It is added to the value of the sketch, and the best and the worst sums are the candidates.

Shapes: V vocabulary, F factor rank, D sketch width, m candidates.
"""

from collections.abc import Sequence

import numpy as np
import torch

from index.scan import RowScale, eligible, exact_values, row_factors
from index.segment import Segment

__all__ = ["query_tokens", "rare_candidates"]

QUERY_TOKENS = 256  # of a query that are looked up: those where most of it lies outside the sketch
POOL = 4  # samples whose sketches are read, for each that is asked for


def rare_candidates(
    segments: Sequence[Segment],
    query: np.ndarray,
    outside: torch.Tensor,
    k: int,
    *,
    row_scale: RowScale = "none",
    allowed: np.ndarray | None = None,
    excluded: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return ids int64 [m] and sketch values float32 [m], m <= 2 k, of eligible samples that share a rare token.

    They are the k with the highest and the k with the lowest sum of sketch value and gain. query float32 [D] and
    outside float32 [V, F] are the query inside and outside of the sketch; the rest is as for `scan.top_k`.
    """
    tokens = query_tokens(outside)
    matrix = outside[torch.from_numpy(tokens)].numpy()
    ids, gains = np.empty(0, np.int64), np.empty(0, np.float32)
    for segment in segments:
        if segment.rare_tokens is None:
            continue
        rows, found = segment.rare_tokens.lookup(tokens, matrix)
        mask = eligible(segment.ids[rows], allowed, excluded)
        rows, found = rows[mask], found[mask] * row_factors(segment.norms[rows[mask]], row_scale)
        ids, gains = np.concatenate([ids, segment.ids[rows]]), np.concatenate([gains, found])
        kept = _ends(gains, POOL * k)
        ids, gains = ids[kept], gains[kept]
    if not len(ids):
        return ids, gains
    values = exact_values(segments, query[None], ids[None], row_scale=row_scale)[0]
    kept = _ends(values + gains, k)
    return ids[kept], values[kept]


def query_tokens(outside: torch.Tensor) -> np.ndarray:
    """Return ascending int64 [n]: the tokens where most of a query lies outside the sketch."""
    lengths = torch.linalg.vector_norm(outside, dim=1)
    found = lengths.topk(min(QUERY_TOKENS, len(lengths))).indices.sort().values
    return found[lengths[found] > 0].cpu().numpy()


def _ends(values: np.ndarray, k: int) -> np.ndarray:
    """Ascending places of the k highest and the k lowest."""
    if len(values) <= 2 * k:
        return np.arange(len(values))
    order = np.argsort(values, kind="stable")
    return np.sort(np.concatenate([order[:k], order[len(order) - k :]]))
