"""The same query in two spaces of one store: before and after fine-tuning, or two checkpoints.

Values of two spaces have no common scale, so ranks are compared. A sample is the same in both by dataset, key and
content.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from curator.errors import UsageError
from curator.metadata.samples import identities
from curator.query import Answering, Query, QueryOptions, QueryResult, value_rows

__all__ = ["Comparison", "Ranking", "compare", "rank"]

Identity = tuple[str, str, bytes]  # dataset, key, hash of the content


@dataclass(frozen=True)
class Ranking:
    """A space's samples for a query, best first: both ends as the answer has them, between by the sketch."""

    result: QueryResult
    place: dict[Identity, int]  # from 0


@dataclass(frozen=True)
class Comparison:
    """How a query's answer differs between two spaces, called before and after.

    `top`, `bottom`: the samples at that end of either, with rank (1 is the best) and percentile in both, None where a
    space lacks the sample. `moved_up`, `moved_down`: the common samples whose percentile changed most. `overlap`: the
    share of the top that both have. `spearman`: of the ranks of the common samples, None below 3 of them.
    """

    query: dict[str, Any]
    spaces: dict[str, str]
    samples: dict[str, int]  # common, only_before, only_after
    overlap: float
    spearman: float | None
    top: list[dict[str, Any]]
    bottom: list[dict[str, Any]]
    moved_up: list[dict[str, Any]]
    moved_down: list[dict[str, Any]]

    def to_dict(self) -> dict[str, Any]:
        """Plain types."""
        return asdict(self)


def rank(answering: Answering, query: Query, options: QueryOptions) -> Ranking:
    """Ranks a space's samples for a query."""
    result = answering.answer(query, options)
    values = {row["id"]: row["value"] for row in value_rows(answering, query, options)}
    ordered = sorted(values, key=lambda id_: (-values[id_], id_))
    first = [item.id for item in result.helpful]
    last = [item.id for item in reversed(result.harmful) if item.id not in set(first)]
    shown = {*first, *last}
    ordered = [*first, *(id_ for id_ in ordered if id_ not in shown), *last]
    known = identities(answering.session, answering.space.id)
    return Ranking(result, {known[id_]: place for place, id_ in enumerate(ordered)})


def compare(before: Ranking, after: Ranking, *, top: int, harmful: int) -> Comparison:
    """Holds two rankings of one query against each other. Raises UsageError when they share no sample."""
    common = sorted(before.place.keys() & after.place.keys(), key=before.place.__getitem__)
    only = {"only_before": len(before.place) - len(common), "only_after": len(after.place) - len(common)}
    if not common:
        raise UsageError(
            f"the two spaces share no sample ({only['only_before']:,} and {only['only_after']:,}): ingest the same "
            "data under the same --dataset, with both models"
        )
    moves = {one: _percentile(after, one) - _percentile(before, one) for one in common}
    by_move = sorted(common, key=lambda one: (-moves[one], before.place[one]))
    ends = [_end(ranking, top) for ranking in (before, after)]
    lows = [_end(ranking, -harmful) for ranking in (before, after)]
    ranks = [[ranking.place[one] for one in common] for ranking in (before, after)]
    return Comparison(
        query=before.result.query,
        spaces={"before": before.result.how.space, "after": after.result.how.space},
        samples={"common": len(common), **only},
        overlap=len({*ends[0]} & {*ends[1]}) / max(1, max(map(len, ends))),
        spearman=float(spearmanr(*ranks).statistic) if len(common) > 2 else None,
        top=_described(_joined(ends), before, after),
        bottom=_described(_joined(lows), before, after),
        moved_up=_described([one for one in by_move[:top] if moves[one] > 0], before, after),
        moved_down=_described([one for one in by_move[::-1][:top] if moves[one] < 0], before, after),
    )


def _end(ranking: Ranking, count: int) -> list[Identity]:
    ordered = sorted(ranking.place, key=ranking.place.__getitem__)
    return ordered[:count] if count >= 0 else ordered[count:][::-1]


def _joined(ends: Sequence[Sequence[Identity]]) -> list[Identity]:
    return list(dict.fromkeys([*ends[0], *ends[1]]))


def _percentile(ranking: Ranking, one: Identity) -> float:
    num = len(ranking.place)
    return 100.0 * (num - ranking.place[one] - 0.5) / num


def _described(ones: Sequence[Identity], before: Ranking, after: Ranking) -> list[dict[str, Any]]:
    return [
        {"dataset": one[0], "key": one[1]}
        | {
            name: {"rank": ranking.place[one] + 1, "percentile": float(np.round(_percentile(ranking, one), 4))}
            if one in ranking.place
            else None
            for name, ranking in (("before", before), ("after", after))
        }
        for one in ones
    ]
