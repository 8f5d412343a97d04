"""How far to trust an answer: what the stored norms guarantee, and what running other samples has shown.

    G_i = (its part inside the sketch's subspace) + r_i,     |v(i|q) - sketch_i . search| <= ||r_i|| ||r_q||

holds for every method, since a preconditioned query is a query with another gradient, and needs nothing but what is
stored: that is the bound. (Not of sketches that a refit has made from stored factors: there it is an estimate, and an
answer says so.)
A sample that is not shown, and whose value is below that of the last one shown even at its bound, is certainly not
missed. Among the others either those with the highest bounds are run through the model until none is left (certify),
or a random part is run, and tells with confidence how many of the rest can be missed at most (trust).

Let M be the number of samples not shown whose value is above that of the last one shown. At most M of the true top k
are missing, so recall >= 1 - M / k. `trust` bounds M by exact hypergeometric bounds on strata of falling sketch value.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from curator.value import PreparedQuery
from index.intervals import Stratum, most_in_all
from index.scan import RowScale, eligible, row_factors
from index.segment import Segment

if TYPE_CHECKING:
    from curator.query.answer import QueryOptions

__all__ = ["CONFIDENCE", "Trust", "bounds_of", "check_end"]

CONFIDENCE = 0.95
_BATCH = 64
_ROUNDING = 2.0**-11  # of a float16 entry of a stored sketch
_ARITHMETIC = 1e-5  # of float32 sums, as a share of ||G_i|| ||G_q||
_BLOCK_ROWS = 1024


class Scorer(Protocol):
    """Runs samples through the model: the exact value of each id."""

    def __call__(self, ids: Sequence[int], /) -> dict[int, float]:
        """Exact values by id."""


@dataclass(frozen=True)
class Bounds:
    """What the stored norms say of every sample that may be an answer: its value is middle +- slack."""

    ids: np.ndarray  # int64 [n], ascending
    middle: np.ndarray  # float64 [n]
    slack: np.ndarray  # float64 [n]


@dataclass(frozen=True)
class Trust:
    """How far one end of an answer can be trusted. Its values are exact."""

    shown: int  # k
    certain: int  # of these: nothing that has not been run can push them out
    recall_at_least: float  # of the shown among the true best k: certain, or with `confidence`
    confidence: float  # 1 where it is certain
    run: int  # samples run through the model
    in_doubt: int  # samples not run that might belong, by the bound, before some were drawn
    drawn: int  # of these, at random
    above: int  # of those drawn: had a value above the last one shown, and are shown now
    error: float | None  # root mean square of exact value - sketch value over those in doubt, estimated from the drawn
    bound: float  # the largest error that the stored norms allow for a sample shown
    is_guaranteed: bool  # not after a refit: its sketches are of stored factors, which err by what no norm tells

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self)

    def describe(self, end: str) -> str:
        """One sentence for a curator."""
        sentence = self._describe(end)
        return (
            sentence
            if self.is_guaranteed
            else f"{sentence}; as far as the refit's sketches, of stored factors, are right"
        )

    def _describe(self, end: str) -> str:
        if not self.shown:
            return f"{end}: nothing is shown"
        if self.certain == self.shown:
            return f"{end}: certain, nothing else in the corpus can belong to the {self.shown} shown ({self.run:,} run)"
        if not self.drawn:
            return (
                f"{end}: {self.certain} of the {self.shown} shown are certain; {self.in_doubt:,} samples that were not "
                f"run could still belong by the bound ({self.run:,} run; --certify with a higher limit goes on)"
            )
        how_sure = f"with {self.confidence:.0%} confidence" if self.confidence < 1 else "certainly"
        return (
            f"{end}: at least {self.recall_at_least:.0%} of the true {self.shown} are shown, {how_sure}: of "
            f"{self.in_doubt:,} samples that could belong by the bound {self.drawn:,} random ones were run, "
            f"{self.above} had a higher value than the last shown"
        )


def bounds_of(
    segments: Iterable[Segment],
    prepared: PreparedQuery,
    row_scale: RowScale,
    *,
    allowed: np.ndarray | None,
    excluded: np.ndarray | None,
) -> Bounds:
    """One scan of the sketches; memory grows by 24 bytes a sample."""
    search = prepared.search.astype(np.float64)
    length = float(np.linalg.norm(search))
    norm_q = 1.0 if prepared.is_cosine else prepared.norm
    parts: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = [(np.empty(0, np.int64), np.empty(0), np.empty(0))]
    for segment in segments:
        for start in range(0, segment.num_samples, _BLOCK_ROWS):
            stop = min(start + _BLOCK_ROWS, segment.num_samples)
            mask = eligible(segment.ids[start:stop], allowed, excluded)
            if not mask.any():
                continue
            sketches = segment.sketches(start, stop)[mask].astype(np.float64)
            norms = segment.norms[start:stop][mask].astype(np.float64)
            energies = np.square(sketches).sum(1)
            rest = np.sqrt(np.maximum(0.0, norms**2 - energies * (1.0 - 2.0 * _ROUNDING)))
            slack = rest * prepared.missed + _ROUNDING * np.sqrt(energies) * length + _ARITHMETIC * norms * norm_q
            factors = row_factors(norms, row_scale)
            parts.append((segment.ids[start:stop][mask], sketches @ search * factors, slack * factors))
    ids, middle, slack = (np.concatenate(column) for column in zip(*parts, strict=True))
    return Bounds(ids, middle, slack)


def check_end(
    bounds: Bounds,
    shown: Sequence[int],
    sign: int,
    score: Scorer,
    options: "QueryOptions",
    *,
    is_guaranteed: bool = True,
) -> tuple[list[tuple[int, float]], Trust]:
    """The best k = len(shown) of all samples that were run, best first, and how far they can be trusted.

    `sign` is 1 for the helpful end and -1 for the harmful one; `shown` are the best ids that the answer has found.
    """
    k = len(shown)

    def run(places: np.ndarray) -> dict[int, float]:
        return {id_: sign * value for id_, value in score(bounds.ids[places].tolist()).items()}

    scored = {id_: sign * value for id_, value in score(list(shown)).items()}
    middle = sign * bounds.middle
    highest = middle + bounds.slack
    is_scored = np.isin(bounds.ids, np.fromiter(scored, np.int64, k))
    if options.certify:
        _run_highest(scored, is_scored, highest, k, options.certify, run)
    last = _last(scored, k)
    in_doubt = np.flatnonzero(~is_scored & (highest > last))
    certain = _num_certain(scored, highest[~is_scored], k)
    recall, confidence = certain / k if k else 1.0, 1.0
    drawn = _Drawn([], 0, None)
    if options.trust and len(in_doubt) and certain < k:
        ranked = in_doubt[np.argsort(-middle[in_doubt], kind="stable")]
        drawn = _run_some(scored, ranked, middle, bounds.ids, last, max(1, options.trust // 2), run)
        by_chance = 1.0 - min(k, most_in_all(drawn.strata, 1.0 - CONFIDENCE)) / k
        if all(stratum.drawn == stratum.size for stratum in drawn.strata):
            certain, recall = k, 1.0  # every sample in doubt was run
        elif by_chance > recall:
            recall, confidence = by_chance, CONFIDENCE
    best = sorted(scored.items(), key=lambda item: (-item[1], item[0]))[:k]
    places = np.searchsorted(bounds.ids, [id_ for id_, _ in best])
    return [(id_, sign * value) for id_, value in best], Trust(
        shown=k,
        certain=certain,
        recall_at_least=recall,
        confidence=confidence,
        run=len(scored),
        in_doubt=len(in_doubt),
        drawn=sum(stratum.drawn for stratum in drawn.strata),
        above=drawn.above,
        error=drawn.error,
        bound=float(bounds.slack[places].max()) if k else 0.0,
        is_guaranteed=is_guaranteed,
    )


@dataclass(frozen=True)
class _Drawn:
    """What running random samples has shown: strata, how many were above the last one shown, and the error."""

    strata: list[Stratum]
    above: int
    error: float | None


def _run_highest(
    scored: dict[int, float],
    is_scored: np.ndarray,
    highest: np.ndarray,
    k: int,
    limit: int,
    run: Callable[[np.ndarray], dict[int, float]],
) -> None:
    """Runs the samples with the highest bounds, at most `limit`, until none left can be above the k-th; adds them."""
    order = np.argsort(-highest, kind="stable")
    order = order[~is_scored[order]][:limit]
    for start in range(0, len(order), _BATCH):
        some = order[start : start + _BATCH]
        some = some[highest[some] > _last(scored, k)]
        if not len(some):
            return
        scored |= run(some)
        is_scored[some] = True


def _run_some(
    scored: dict[int, float],
    ranked: np.ndarray,
    middle: np.ndarray,
    ids: np.ndarray,
    last: float,
    num: int,
    run: Callable[[np.ndarray], dict[int, float]],
) -> _Drawn:
    """Runs random samples of strata of those in doubt, ranked by sketch value; adds them to those scored."""
    strata, squares, above = [], 0.0, 0
    for places, size in _draw(ranked, num):
        found = run(places)
        exact = np.array([found[id_] for id_ in ids[places].tolist()])
        num_above = int((exact > last).sum())
        strata.append(Stratum(size, len(places), num_above))
        squares += size * float(np.square(exact - middle[places]).mean())
        scored |= found
        above += num_above
    return _Drawn(strata, above, float(np.sqrt(squares / len(ranked))))


def _last(scored: dict[int, float], k: int) -> float:
    """The k-th highest value."""
    return float(np.partition(list(scored.values()), len(scored) - k)[len(scored) - k]) if k else np.inf


def _num_certain(scored: dict[int, float], highest: np.ndarray, k: int) -> int:
    """How many of the best k scored stay among the best k whatever the values of those not scored turn out to be."""
    ordered = np.sort(highest)
    best = sorted(scored.values(), reverse=True)[:k]
    return sum(
        rank + len(ordered) - int(np.searchsorted(ordered, value, "right")) < k for rank, value in enumerate(best)
    )


def _draw(ranked: np.ndarray, num: int) -> list[tuple[np.ndarray, int]]:
    """Random places of strata that double in size from the head of a ranking on: (drawn, size of the stratum)."""
    generator = np.random.default_rng(0)
    num_strata = 1
    while (num // num_strata) * (2**num_strata - 1) < len(ranked) and num_strata < num:
        num_strata += 1
    each = max(1, num // num_strata)
    drawn, start = [], 0
    for number in range(num_strata):
        is_last = number == num_strata - 1
        stratum = ranked[start:] if is_last else ranked[start : start + each * 2**number]
        start += len(stratum)
        if len(stratum):
            drawn.append((generator.choice(stratum, min(each, len(stratum)), replace=False), len(stratum)))
    return drawn
