"""Greedy gradient matching: the subset whose summed sketches best follow a direction, so that a second copy of a
helpful sample is worth less than the first.

    minimize over S, |S| = k:   || t q/||q|| - sum_{i in S} s_i ||^2,    t = sum of the k largest <s_i, q>/||q||

t is how far the k most helpful go along q; what they add across q, the same way again and again, is what is avoided.
The next sample is the one with the largest gain 2 <r, s_i> - ||s_i||^2, r being what is still missing (GRAD-MATCH,
arXiv 2103.00123, without its weights: a sample is trained on or not). Each step looks at a random part of the rows
that are left, m = ceil(n/k ln(1/epsilon)) of them (stochastic greedy, arXiv 1409.7938), at most a buffer full, so that
k steps read each row at most ln(1/epsilon) times, whatever k is. The objective is not submodular, so that paper's bound
is no promise here; a test and scripts/bench_select.py compare with looking at every row.

Shapes: n rows that may be taken, k rows to take, D sketch width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from index.scan import StoredRows

__all__ = ["EPSILON", "Matched", "match"]

EPSILON = 0.01
_BUFFER_ROWS = 16_384  # gathered at once: 64 MB of float32 at 1,024 numbers


@dataclass(frozen=True)
class Matched:
    """Rows in the order they were taken, and how well their sum follows the direction."""

    rows: np.ndarray  # int64 [k]
    cosine: float  # of sum_i s_i with q
    along: float  # <sum_i s_i, q> / ||q||
    across: float  # what of ||sum_i s_i|| is not along q


def match(
    stored: StoredRows,
    query_D: np.ndarray,
    rows: np.ndarray,
    values: np.ndarray,
    k: int,
    *,
    admits: Callable[[int], bool] = lambda row: True,
    epsilon: float = EPSILON,
    seed: int = 0,
    on_progress: Callable[[int], None] = lambda taken: None,
) -> Matched:
    """Takes at most k of `rows`, whose inner products with query_D [D] are `values`; the same seed takes the same.

    `admits` is asked before a row is taken and, once it says no to a row, that row is out for good (a quota that is
    full, a budget that would be broken). epsilon = 0 looks at every row of the buffer in each step: the reference.
    """
    norm = float(np.linalg.norm(query_D.astype(np.float64)))
    k = min(k, len(rows))
    if not k or not norm:
        return Matched(np.empty(0, np.int64), 0.0, 0.0, 0.0)
    target = float(np.partition(values, len(values) - k)[len(values) - k :].astype(np.float64).sum()) / norm
    missing = torch.from_numpy(query_D.astype(np.float32) * (target / norm))
    total = torch.zeros(len(query_D), dtype=torch.float64)
    per_step = len(rows) if epsilon == 0 else max(1, math.ceil(len(rows) / k * math.log(1 / epsilon)))
    deck = _Deck(stored, rows, seed)
    taken: list[int] = []
    while len(taken) < k and deck.num_left:
        places, sketches_mD = deck.draw(min(per_step, deck.num_left))
        gains = 2.0 * (sketches_mD @ missing) - deck.squares(places)
        for at in torch.argsort(gains, descending=True, stable=True).tolist():
            row = deck.take(int(places[at]))
            if admits(row):
                taken.append(row)
                missing -= sketches_mD[at]
                total += sketches_mD[at].double()
                break
        on_progress(len(taken))
    along = float(total @ torch.from_numpy(query_D).double()) / norm
    length = float(total.norm())
    across = math.sqrt(max(0.0, length**2 - along**2))
    return Matched(np.array(taken, dtype=np.int64), along / length if length else 0.0, along, across)


class _Deck:
    """Rows in random order, drawn without putting back until all that are left have been seen, then shuffled again.

    A buffer of them lies in memory as float32; places count within it.
    """

    def __init__(self, stored: StoredRows, rows: np.ndarray, seed: int):
        self._stored = stored
        self._generator = np.random.default_rng(seed)
        self._waiting = self._generator.permutation(rows)
        self._start = 0  # of those of _waiting that this round has not seen yet
        self._seen: list[np.ndarray] = []  # and is done with, without those taken
        self.num_left = len(rows)
        self._load()

    def draw(self, num: int) -> tuple[np.ndarray, torch.Tensor]:
        """Places and sketches [m, D] of the next rows, at least one while any is left and at most `num`."""
        while True:
            places = self._order[self._next : self._next + num]
            self._next += len(places)
            places = places[~self._is_taken[places]]
            if len(places):
                return places, self._sketches[torch.from_numpy(places)]
            self._turn()

    def squares(self, places: np.ndarray) -> torch.Tensor:
        """||s_i||^2 of rows that were drawn."""
        return self._squares[torch.from_numpy(places)]

    def take(self, place: int) -> int:
        """The row at a place; it is not drawn again."""
        self._is_taken[place] = True
        self.num_left -= 1
        return int(self._rows[place])

    def _turn(self) -> None:
        """On to the next buffer or, after the last, to the next round."""
        is_whole = len(self._waiting) <= _BUFFER_ROWS
        if is_whole:
            self._order, self._next = self._generator.permutation(np.flatnonzero(~self._is_taken)), 0
            return
        self._seen.append(self._rows[~self._is_taken])
        if self._start >= len(self._waiting):
            self._waiting = self._generator.permutation(np.concatenate(self._seen))
            self._seen, self._start = [], 0
        self._load()

    def _load(self) -> None:
        self._rows = np.sort(self._waiting[self._start : self._start + _BUFFER_ROWS])
        self._start += len(self._rows)
        factors = torch.from_numpy(self._stored.factors(self._rows).astype(np.float32))
        self._sketches = self._stored.gather(self._rows).float() * factors[:, None]
        self._squares = self._sketches.square().sum(1)
        self._is_taken = np.zeros(len(self._rows), bool)
        self._order, self._next = self._generator.permutation(len(self._rows)), 0
