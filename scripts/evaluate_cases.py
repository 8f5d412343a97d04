"""What is asked of the methods, and how answers are judged: retrieval, mislabel detection, good against bad answers.

    retrieval   each test sample is a query; its class's training samples (90 of 900) are what should come first
    detection   10, 30 or 50 % of the training responses swapped between classes; each class's test samples are one
                query, and the wrong ones among its training samples should come last
    truthful    questions split in four: the good answers of one part are one query (or good less bad); the other parts'
                good answers should come before their bad ones

Every judgement is one number a query, so that methods are compared query by query.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from evaluate_data import SETS, Item, corrupt, read_classes, read_truthful
from evaluate_features import Features, SmallModel
from scipy.stats import rankdata

from index import Projection

__all__ = ["SHARES", "Case", "area", "cases"]

SHARES = (0.1, 0.3, 0.5)
_SIDES = ("good", "good - bad")
Judged = dict[str, np.ndarray]


@dataclass(frozen=True)
class Case:
    """A corpus, queries, their grouping to sets, and the judge of scores."""

    task: str
    data: str
    positions: str
    seed: int
    items: list[Item]
    asked: list[Item]
    train: Features
    queries: Features
    groups: np.ndarray  # weights [Q, groups]: a query is a sum of single ones
    judge: Callable[[np.ndarray], Judged]  # of scores [N, groups]: measures, one a group
    projection: Projection


def area(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve, ties counted half."""
    num, others = int(positive.sum()), int((~positive).sum())
    return float((rankdata(scores)[positive].sum() - num * (num + 1) / 2) / (num * others))


def cases(model: SmallModel, folder: Path, tasks: list[str], seeds: int) -> Iterator[Case]:
    """All cases under the model's positions, one after another: a corpus is large."""
    for data in SETS:
        if "retrieval" in tasks or "detection" in tasks:
            yield from _with_classes(model, folder, data, tasks, seeds)
    if "truthful" in tasks:
        yield from _truthful(model, folder, seeds)


def _with_classes(model: SmallModel, folder: Path, data: str, tasks: list[str], seeds: int) -> Iterator[Case]:
    items, asked = read_classes(folder, data)
    train, queries = model.features(items), model.features(asked)
    of_items, of_queries = (np.array([item.label for item in part]) for part in (items, asked))
    if "retrieval" in tasks:
        same = of_items[:, None] == of_queries[None]

        def retrieve(scores: np.ndarray) -> Judged:
            return _judge(scores, same)

        every = np.eye(len(asked))
        projection = model.projection(items, seed=0)
        yield Case("retrieval", data, model.positions, 0, items, asked, train, queries, every, retrieve, projection)
    if "detection" not in tasks:
        return
    labels = sorted(set(of_queries.tolist()))
    means = (of_queries[:, None] == np.array(labels)[None]) / np.array([(of_queries == one).sum() for one in labels])
    for share in SHARES:
        for seed in range(seeds):
            changed, is_wrong = corrupt(items, share, seed)

            def detect(scores: np.ndarray, is_wrong: np.ndarray = is_wrong) -> Judged:
                # A class whose responses are all right, or all wrong, says nothing.
                parts = [
                    _judge(-scores[of_items == one, at][:, None], is_wrong[of_items == one][:, None])
                    for at, one in enumerate(labels)
                    if 0 < is_wrong[of_items == one].sum() < (of_items == one).sum()
                ]
                return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

            wrong = np.flatnonzero(is_wrong)
            corpus = _replaced(train, wrong, model, items, changed)
            projection = model.projection(changed, seed)
            task = f"detection {share:.0%}"
            yield Case(task, data, model.positions, seed, changed, asked, corpus, queries, means, detect, projection)


def _truthful(model: SmallModel, folder: Path, seeds: int) -> Iterator[Case]:
    pairs = read_truthful(folder)
    items = [pair.good for pair in pairs] + [pair.bad for pair in pairs]
    every = model.features(items)
    for seed in range(seeds):
        order = np.random.default_rng(seed).permutation(len(pairs))
        asked, rest = order[: len(pairs) // 4], order[len(pairs) // 4 :]
        rows, of_queries = (np.concatenate([part, part + len(pairs)]) for part in (rest, asked))
        good = np.repeat([True, False], len(rest))
        signs = np.repeat([1.0, 0.0, 1.0, -1.0], len(asked)).reshape(2, -1).T / len(asked)

        def judge(scores: np.ndarray, good: np.ndarray = good, num: int = len(rest)) -> Judged:
            found = _judge(scores, np.repeat(good[:, None], scores.shape[1], axis=1))
            found["pairs"] = (scores[:num] > scores[num:]).mean(0)
            return {
                f"{name}, {query}": part[at : at + 1] for name, part in found.items() for at, query in enumerate(_SIDES)
            }

        corpus = [items[i] for i in rows]
        projection = model.projection(corpus, seed)
        yield Case(
            "truthful", "truthfulqa", model.positions, seed, corpus, [items[i] for i in of_queries], every.take(rows),
            every.take(of_queries), signs, judge, projection,
        )  # fmt: skip


def _judge(scores: np.ndarray, positive: np.ndarray) -> Judged:
    """AUC, and recall among as many as there are, of each column [N, Q]."""
    areas = [area(column, truth) for column, truth in zip(scores.T, positive.T, strict=True)]
    recalls = [
        truth[np.argsort(-column, kind="stable")[: truth.sum()]].mean()
        for column, truth in zip(scores.T, positive.T, strict=True)
    ]
    return {"auc": np.array(areas), "recall": np.array(recalls)}


def _replaced(train: Features, rows: np.ndarray, model: SmallModel, old: list[Item], new: list[Item]) -> Features:
    """The corpus with some samples measured anew; its moments are measured whole, from what is left and what came."""
    came, went = model.features([new[i] for i in rows]), model.features([old[i] for i in rows])
    at = torch.from_numpy(rows)
    losses, texts = train.losses.copy(), list(train.texts)
    losses[rows] = came.losses
    for i, text in zip(rows, came.texts, strict=True):
        texts[i] = text
    gradients, hidden, errors = (
        getattr(train, name).index_copy(0, at, getattr(came, name)) for name in ("gradients", "hidden", "errors")
    )
    moments = type(train.moments)(
        train.moments.errors + came.moments.errors - went.moments.errors,
        train.moments.hidden + came.moments.hidden - went.moments.hidden,
    )
    return Features(gradients, hidden, errors, losses, texts, moments)
