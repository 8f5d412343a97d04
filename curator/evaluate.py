"""How well values tell a store's own classes apart, and right samples from wrong ones: what a user with labels can ask.

Every class of a validation set is one query, the mean of its samples. Of its values, at the sketch tier:

    retrieval   samples of the query's own class should come first:  AUC, and the share among the first n, n of them
    detection   of those, samples known to be wrong should be last:  AUC, and the share among the last w, w of them

AUC is the chance that one of the first kind is above one of the second, ties counted half: .5 is chance.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from curator.errors import EmptyQueryError, UsageError
from curator.metadata.samples import live_ids
from curator.metadata.traits import Traits, traits_of
from curator.query.answer import Answering
from curator.query.inputs import Query
from curator.value import METHODS, Method, prepare
from index.scan import RowScale, row_factors, scan

__all__ = ["Evaluation", "GroupScore", "area", "evaluate", "recall"]


@dataclass(frozen=True)
class GroupScore:
    """One query under one method. None: without a sample of either kind there is nothing to tell apart."""

    group: str
    method: Method
    num_own: int  # samples of the corpus that are of the group
    num_wrong: int | None  # of those, known to be wrong
    retrieval_auc: float | None
    retrieval_recall: float | None
    detection_auc: float | None
    detection_recall: float | None


@dataclass(frozen=True)
class Evaluation:
    """Scores of every group and method, and what they come from."""

    by: str
    groups: list[GroupScore]
    how: dict[str, Any]
    notes: list[str] = field(default_factory=list)  # what a reader should know, in words; not part of the document

    @property
    def methods(self) -> list[dict[str, Any]]:
        """For each method and measure: mean and standard deviation over the groups, and how many there are."""
        found = []
        for method in dict.fromkeys(score.method for score in self.groups):
            row: dict[str, Any] = {"method": method}
            for name in ("retrieval_auc", "retrieval_recall", "detection_auc", "detection_recall"):
                values = [getattr(score, name) for score in self.groups if score.method == method]
                known = [value for value in values if value is not None]
                row[name] = (
                    {"mean": float(np.mean(known)), "std": float(np.std(known)), "num_groups": len(known)}
                    if known
                    else None
                )
            found.append(row)
        return found

    def to_dict(self) -> dict[str, Any]:
        """The document {"by", "methods", "groups", "how"}."""
        groups = [asdict(score) for score in self.groups]
        return {"by": self.by, "methods": self.methods, "groups": groups, "how": self.how}


def evaluate(
    answering: Answering,
    queries: Sequence[Query],
    *,
    by: str,
    wrong: str | None,
    where: str | None,
    methods: Sequence[Method],
    damping: float,
) -> Evaluation:
    """Scores of the queries, each named as its group of the corpus's field `by`.

    One streaming scan for all queries and methods; memory grows by 4 bytes for each sample, query and method. Raises
    UsageError when no query is of a group of the corpus, or for a method that is not known.
    """
    started = time.perf_counter()
    traits, own = _groups(answering, by, where)
    known = [query for query in queries if query.name in own]
    if not known:
        names = ", ".join(sorted(own)[:5]) or "none"
        asked = ", ".join(query.name for query in queries[:5])
        raise UsageError(f"no group of the data is one of the corpus by {by}: the data has {asked}; the corpus {names}")
    is_wrong = None if wrong is None else np.isin(traits.ids, live_ids(answering.session, answering.space.id, wrong))
    scores, notes = [], []
    values, skipped = _values(answering, known, methods, damping, traits.ids)
    for query, method, column in values:
        scores.append(_score(query.name, method, column, own[query.name], is_wrong))
    left_out = sorted({query.name for query in queries} - set(own))
    if left_out:
        notes.append(f"groups of the data that the corpus has no sample of, by {by}: {', '.join(left_out)}")
    notes += skipped
    how = {
        "space": answering.space.fingerprint,
        "tier": "sketch",
        "damping": damping if "preconditioned" in methods else None,
        "where": where,
        "wrong": wrong,
        "num_samples": answering.corpus.num_samples,
        "num_eligible": len(traits.ids),
        "seconds": time.perf_counter() - started,
    }
    return Evaluation(by, scores, how, notes)


def area(values: np.ndarray, positive: np.ndarray) -> float | None:
    """The chance that a value of a positive is above one of another, ties counted half; None without both kinds."""
    num_positive = int(positive.sum())
    num_others = len(positive) - num_positive
    if not num_positive or not num_others:
        return None
    _, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[places]
    return float((ranks[positive].sum() - num_positive * (num_positive + 1) / 2) / (num_positive * num_others))


def recall(values: np.ndarray, positive: np.ndarray) -> float | None:
    """Of as many highest values as there are positives, the share that is positive; ties in order."""
    number = int(positive.sum())
    return float(positive[np.argsort(-values, kind="stable")[:number]].mean()) if number else None


def _groups(answering: Answering, by: str, where: str | None) -> tuple[Traits, dict[str, np.ndarray]]:
    """The samples, and which are of which group."""
    traits = traits_of(answering.session, answering.space.id, where, by)
    names = {str(name): at for at, name in enumerate(traits.group_names) if name is not None}
    return traits, {name: traits.groups == at for name, at in names.items()}


def _values(
    answering: Answering, queries: Sequence[Query], methods: Sequence[Method], damping: float, ids: np.ndarray
) -> tuple[Iterator[tuple[Query, Method, np.ndarray]], list[str]]:
    """(query, method, values of the samples), and why some queries have none. Each query runs the model once."""
    unknown = [method for method in methods if method not in METHODS]
    if unknown or not methods:
        raise UsageError(f"method {', '.join(unknown) or 'none'!r} is not known; use some of {', '.join(METHODS)}")
    asked, prepared, skipped = [], [], []
    for query in queries:
        try:
            represented, description = answering.represent(query)
            represented = replace(represented, gradient=None)  # [V, H] a query and method, for the exact tier alone
            ways = [prepare(represented, answering.projection, method, damping) for method in methods]
        except EmptyQueryError as error:
            skipped.append(f"query {query.name}: {error}")
            continue
        skipped += [f"query {query.name}: {note}" for note in answering.notes(query, description, captured=1.0)]
        asked += [(query, method) for method in methods]
        prepared += ways
    if not prepared:
        raise EmptyQueryError("; ".join(skipped))
    searches = np.stack([one.search for one in prepared])
    scales: list[RowScale] = ["inverse_norm" if one.is_cosine else "none" for one in prepared]
    found = np.empty((len(prepared), len(ids)), dtype=np.float32)
    at = 0
    for some, values, norms in scan(answering.segments, searches, allowed=ids):
        for column, scale in enumerate(scales):
            found[column, at : at + len(some)] = values[:, column] * row_factors(norms, scale)
        at += len(some)
    assert at == len(ids), "a live sample is in a segment"
    return ((query, method, column) for (query, method), column in zip(asked, found, strict=True)), skipped


def _score(group: str, method: Method, values: np.ndarray, own: np.ndarray, is_wrong: np.ndarray | None) -> GroupScore:
    inside = None if is_wrong is None else is_wrong[own]
    return GroupScore(
        group=group,
        method=method,
        num_own=int(own.sum()),
        num_wrong=None if inside is None else int(inside.sum()),
        retrieval_auc=area(values, own),
        retrieval_recall=recall(values, own),
        detection_auc=None if inside is None else area(-values[own], inside),
        detection_recall=None if inside is None else recall(-values[own], inside),
    )
