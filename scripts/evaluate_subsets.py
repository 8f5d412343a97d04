"""What values predict of training: the linear datamodeling score, and the loss after training on a selection.

Linear datamodeling score (Park et al. 2023): models are trained on random halves S of the corpus; for each test sample
q, the Spearman correlation over the halves between sum over S of value(i|q) and minus the loss of q.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from evaluate_data import read_classes
from evaluate_features import Features, SmallModel
from evaluate_methods import RULES, basic_scores, geometries
from evaluate_retrain import Retraining, random_halves
from scipy.stats import spearmanr

__all__ = ["datamodeling", "selections"]

_RATIOS = (0.1, 0.2, 0.5)
Trained = Callable[[Any, Any], Retraining]


def datamodeling(model: SmallModel, folder: Path, trained: Trained, num_subsets: int) -> dict[str, list[float]]:
    """For each method the score of every test sample, on the sentences."""
    items, asked = read_classes(folder, "sentences")
    halves = list(random_halves(len(items), num_subsets, seed=0))
    retraining = trained(items, asked)
    likely = -np.stack([retraining.losses(half) for half in halves])
    inside = np.zeros((len(halves), len(items)))
    for row, half in zip(inside, halves, strict=True):
        row[half] = 1.0
    train, queries = model.features(items), model.features(asked)
    scores = basic_scores(train, queries, seed=0)
    del scores["loss"]  # the same for every query
    for name, geometry in geometries(train, queries.gradients, model.projection(items, seed=0)).items():
        for rule, choose in RULES.items():
            delta = choose(geometry)
            scores[f"{name} | {rule} | value"] = geometry.values(delta)
            scores[f"{name} | {rule} | relative"] = geometry.cosines(delta)
    predicted = {name: inside @ values for name, values in scores.items()}
    return {
        name: [float(spearmanr(values[:, q], likely[:, q]).statistic) for q in range(len(asked))]
        for name, values in predicted.items()
    }


def selections(model: SmallModel, folder: Path, trained: Trained, num_targets: int) -> list[dict[str, Any]]:
    """For each target class: half of its test samples choose, the mean loss of the other half after training."""
    items, asked = read_classes(folder, "sentences")
    train = model.features(items)
    labels = list(dict.fromkeys(item.label for item in asked))[:num_targets]
    found = []
    for target, label in enumerate(labels):
        own = [i for i, item in enumerate(asked) if item.label == label]
        retraining = trained(items, [asked[i] for i in own[1::2]])
        orders = _orders(train, model.features([asked[i] for i in own[::2]]), model, items, target)
        everything, nothing = np.arange(len(items)), np.arange(0)
        for name, chosen in (("all of it", everything), ("no training", nothing)):
            found.append(_row(label, name, len(chosen) / len(items), retraining.losses(chosen)))
        for name, order in orders.items():
            for ratio in _RATIOS:
                losses = retraining.losses(order[: round(ratio * len(items))])
                found.append(_row(label, name, ratio, losses))
    return found


def _orders(train: Features, queries: Features, model: SmallModel, items: Any, seed: int) -> dict[str, np.ndarray]:
    """Best first, by the sum of the query's samples."""
    scores = {name: values.sum(1) for name, values in basic_scores(train, queries, seed).items()}
    orders = {name: np.argsort(-scores[name], kind="stable") for name in ("raw", "cosine", "BM25", "random")}
    geometry = geometries(train, queries.gradients.mean(0, keepdim=True), model.projection(items, seed=0))["sketch"]
    values = geometry.values(RULES["10 x mean"](geometry))[:, 0]
    return {**orders, "preconditioned": np.argsort(-values, kind="stable")}


def _row(target: str, method: str, ratio: float, losses: np.ndarray) -> dict[str, Any]:
    return {"target": target, "method": method, "ratio": ratio, "loss": float(losses.mean())}
