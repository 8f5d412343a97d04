"""What values predict of training: the linear datamodeling score, and the loss after training on a selection.

datamodeling   a subset's predicted effect on a query is the sum of its samples' values; Spearman correlation with what
               training on the subset did to the query's loss, over random halves (TRAK, arXiv 2303.14186)
selections     for a class: train on its best 10, 20, 50 % of the whole corpus; mean loss on the class's test samples
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from evaluate_data import Item, read_classes
from evaluate_features import Features, SmallModel, WholeGradients
from evaluate_methods import OURS, RULES, basic_scores, geometries
from evaluate_retrain import Retraining, random_halves
from scipy.stats import spearmanr

from index import Projection

__all__ = ["datamodeling", "selections"]

_DATA = "sentences"
_RULES = ("1 x mean", "10 x mean", "30 x mean", "100 x mean")
_SHARES = (0.1, 0.2, 0.5)
_RANDOM_SEEDS = 3
MakeRetraining = Callable[[list[Item], list[Item]], Retraining]


def datamodeling(model: SmallModel, folder: Path, retraining: MakeRetraining, num_subsets: int) -> dict[str, Any]:
    """{method: the score of each query} of the sentences, their responses counted."""
    items, asked = read_classes(folder, _DATA)
    trained = retraining(items, asked)
    halves = list(random_halves(len(items), num_subsets, seed=0))
    losses = np.stack([trained.losses(half) for half in halves])  # [S, Q]
    inside = np.zeros((num_subsets, len(items)))
    for row, half in zip(inside, halves, strict=True):
        row[half] = 1.0
    scores = _scores(model, items, asked)
    whole = WholeGradients(model, asked).products(items)
    scores["all parameters, dot product"] = whole["whole"]
    scores["all parameters, cosine"] = whole["whole"] / whole["whole_norm"][:, None]
    return {
        "num_subsets": num_subsets,
        "methods": {name: _correlations(inside @ values, -losses) for name, values in scores.items()},
    }


def selections(model: SmallModel, folder: Path, retraining: MakeRetraining, num_targets: int) -> dict[str, Any]:
    """{"share": {method: mean loss of each class}} and the losses before training and after training on all."""
    items, asked = read_classes(folder, _DATA)
    trained = retraining(items, asked)
    labels = sorted({item.label for item in asked})[:num_targets]
    scores = _scores(model, items, asked)
    of = {label: np.array([item.label == label for item in asked]) for label in labels}
    found: dict[str, Any] = {"labels": labels, "shares": {}}
    for name, chosen in (("none", np.array([], dtype=np.int64)), ("all", np.arange(len(items)))):
        losses = trained.losses(chosen)
        found[name] = [float(losses[of[label]].mean()) for label in labels]
    for share in _SHARES:
        number = round(share * len(items))
        by_method: dict[str, list[float]] = {}
        for name in ("raw", "cosine", f"{OURS}, 10 x mean", "BM25"):
            chosen_of = [np.argsort(-scores[name][:, of[label]].mean(1), kind="stable")[:number] for label in labels]
            by_method[name] = [
                float(trained.losses(chosen)[of[label]].mean()) for chosen, label in zip(chosen_of, labels, strict=True)
            ]
        drawn = [np.random.default_rng(seed).permutation(len(items))[:number] for seed in range(_RANDOM_SEEDS)]
        losses = np.mean([trained.losses(chosen) for chosen in drawn], axis=0)
        by_method["random"] = [float(losses[of[label]].mean()) for label in labels]
        found["shares"][f"{share:g}"] = by_method
    return found


def _scores(model: SmallModel, items: list[Item], asked: list[Item]) -> dict[str, np.ndarray]:
    train, queries = model.features(items), model.features(asked)
    return basic_scores(train, queries, seed=0) | _preconditioned(train, queries, model.projection(items, seed=0))


def _preconditioned(train: Features, queries: Features, projection: Projection) -> dict[str, np.ndarray]:
    found = geometries(train, torch.as_tensor(queries.gradients).float(), projection)
    return {
        f"{name}, {rule}": found[name].values(RULES[rule](found[name]))
        for name in ("full", "sketch", OURS, "EK-FAC, U_e x U_h", "K-FAC, U_e x U_h")
        for rule in _RULES
    }


def _correlations(predicted: np.ndarray, measured: np.ndarray) -> Sequence[float]:
    """Spearman correlation over the subsets, of each query; 0 where nothing is predicted."""
    found = []
    for one, other in zip(predicted.T, measured.T, strict=True):
        value = spearmanr(one, other).statistic if np.ptp(one) else 0.0
        found.append(float(value))
    return found
