"""Which samples a selection takes: the best by value within limits, or greedily by what each adds."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from curator.errors import UsageError
from index.matching import Matched, match
from index.scan import StoredRows

__all__ = ["Candidates", "Limits", "best", "diverse"]


@dataclass(frozen=True)
class Limits:
    """All that are given hold; at least one must be. Values are those of the method that is asked for."""

    ratio: float | None = None  # of the samples that the filter admits
    count: int | None = None
    budget_tokens: int | None = None  # all tokens of a sample count, prompts too; what does not fit is passed over
    min_value: float | None = None
    min_percentile: float | None = None  # among the values of the samples that the filter admits
    each: int | None = None  # samples of every group; see `by`
    by: str | None = None  # the field whose values are the groups

    def __post_init__(self) -> None:
        if not self.given:
            raise UsageError(
                "how much to select? give --ratio, --count, --budget-tokens, --min-value, --min-percentile, "
                "or --by FIELD with --each N"
            )
        if (self.by is None) != (self.each is None):
            raise UsageError("--by and --each go together: at most --each N samples of every value of --by FIELD")
        if self.ratio is not None and not 0 < self.ratio <= 1:
            raise UsageError(f"--ratio must be above 0 and at most 1, got {self.ratio:g}")
        if self.min_percentile is not None and not 0 <= self.min_percentile <= 100:
            raise UsageError(f"--min-percentile must be 0 to 100, got {self.min_percentile:g}")
        if self.min_value is not None and not np.isfinite(self.min_value):
            raise UsageError(f"--min-value must be a number, got {self.min_value:g}")
        for name in ("count", "budget_tokens", "each"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise UsageError(f"--{name.replace('_', '-')} must be at least 1, got {value}")

    @property
    def given(self) -> dict[str, Any]:
        """Those that are set."""
        return {name: value for name, value in asdict(self).items() if value is not None}


@dataclass(frozen=True)
class Candidates:
    """The samples that may be taken, ids ascending: one entry in each array for each of them."""

    ids: np.ndarray  # int64 [n]
    values: np.ndarray  # float64 [n]
    num_tokens: np.ndarray  # int64 [n]
    groups: np.ndarray  # int64 [n]: the group's number

    def __len__(self) -> int:
        return len(self.ids)


def best(candidates: Candidates, limits: Limits) -> np.ndarray:
    """Positions of the samples with the highest values within the limits, best first, ties by id: int64."""
    order = np.lexsort((candidates.ids, -candidates.values))
    order = order[_reaches(candidates, limits)[order]]
    most = _most(candidates, limits)
    if limits.each is None and limits.budget_tokens is None:
        return order[:most]
    admits = _admitting(candidates, limits)
    taken: list[int] = []
    for position in order.tolist():
        if len(taken) == most:
            break
        if admits(position):
            taken.append(position)
    return np.array(taken, dtype=np.int64)


def diverse(
    candidates: Candidates,
    limits: Limits,
    stored: StoredRows,
    stored_ids: np.ndarray,
    search: np.ndarray,
    seed: int,
    on_progress: Callable[[int], None],
) -> tuple[np.ndarray, Matched]:
    """Positions in the order in which greedy matching takes them, and how well their sum follows the query."""
    positions = np.flatnonzero(_reaches(candidates, limits))
    rows = np.searchsorted(stored_ids, candidates.ids[positions])
    position_of = dict(zip(rows.tolist(), positions.tolist(), strict=True))
    admits = _admitting(candidates, limits)
    matched = match(
        stored,
        search,
        rows,
        candidates.values[positions],
        min(_most(candidates, limits), len(positions)),
        admits=lambda row: admits(position_of[row]),
        seed=seed,
        on_progress=on_progress,
    )
    return np.array([position_of[row] for row in matched.rows.tolist()], dtype=np.int64), matched


def _reaches(candidates: Candidates, limits: Limits) -> np.ndarray:
    """bool [n]: which have the value and the percentile asked for."""
    reaches = np.ones(len(candidates), bool)
    if limits.min_value is not None:
        reaches &= candidates.values >= limits.min_value
    if limits.min_percentile is not None and len(candidates):
        ordered = np.sort(candidates.values)
        below = np.searchsorted(ordered, candidates.values, "left")
        up_to = np.searchsorted(ordered, candidates.values, "right")
        reaches &= 50.0 * (below + up_to) / len(candidates) >= limits.min_percentile  # ties count half, as in answers
    return reaches


def _most(candidates: Candidates, limits: Limits) -> int:
    """No more than so many samples fit the limits; for a budget and for quotas, about so many."""
    most = len(candidates)
    if limits.count is not None:
        most = min(most, limits.count)
    if limits.ratio is not None:
        most = min(most, max(1, round(limits.ratio * len(candidates))))
    if limits.each is not None:
        each = min(limits.each, len(candidates))  # so that it fits numpy's integers
        most = min(most, int(np.minimum(np.bincount(candidates.groups), each).sum()))
    if limits.budget_tokens is not None:
        fitting = np.cumsum(np.sort(candidates.num_tokens)) <= limits.budget_tokens
        most = min(most, int(fitting.sum()))
    return most


def _admitting(candidates: Candidates, limits: Limits) -> Callable[[int], bool]:
    """Takes a position where its group's quota and the budget have room for it, and then counts it."""
    taken_of: dict[int, int] = {}
    spent = 0

    def admits(position: int) -> bool:
        nonlocal spent
        group, size = int(candidates.groups[position]), int(candidates.num_tokens[position])
        if limits.each is not None and taken_of.get(group, 0) >= limits.each:
            return False
        if limits.budget_tokens is not None and spent + size > limits.budget_tokens:
            return False
        taken_of[group] = taken_of.get(group, 0) + 1
        spent += size
        return True

    return admits
