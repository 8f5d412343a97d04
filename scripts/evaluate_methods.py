"""The compared methods, each from features to scores [N, Q], larger is more helpful; and ways to precondition.

A preconditioned value is the raw one less what a Fisher matrix explains: with orthonormal directions B, second moments
lambda along them, coordinates L of the samples and R of the queries,

    value = <G_i, G_q> - sum_j w_j L_ij R_jq,   w_j = lambda_j / (lambda_j + delta)

which is delta G_i^T (B diag(lambda) B^T + delta I)^-1 G_q. `Geometry` is one choice of B and lambda, `RULES` are ways
to choose delta without labels.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from evaluate_features import Features

from index import Projection

__all__ = ["OURS", "RULES", "Geometry", "basic_scores", "bm25_scores", "geometries"]


OURS = "EK-FAC of the sketch"  # what the product does


def basic_scores(train: Features, queries: Features, seed: int) -> dict[str, np.ndarray]:
    """The methods that need no preconditioning. A set's score is the mean over its queries."""
    raw = (train.gradients @ queries.gradients.T).double().numpy()
    norms = train.gradients.norm(dim=1).double().numpy()
    hidden = (train.hidden @ queries.hidden.T).double().numpy()
    errors = (train.errors @ queries.errors.T).double().numpy()
    num = raw.shape[1]
    return {
        "raw": raw,
        "cosine": raw / norms[:, None],
        "hidden states only": hidden,
        "rank-1 product": hidden * errors,
        "loss": np.repeat(-train.losses[:, None], num, axis=1),
        "BM25": bm25_scores(train.texts, queries.texts),
        "random": np.random.default_rng(seed).standard_normal(raw.shape),
    }


def bm25_scores(texts: list[str], queries: list[str]) -> np.ndarray:
    """BM25 of words, float64 [N, Q]."""
    import bm25s  # of the evaluation alone

    tokens = bm25s.tokenize([*texts, *queries], stopwords=None, return_ids=False, show_progress=False)
    index = bm25s.BM25()
    if not any(tokens[: len(texts)]):
        return np.zeros((len(texts), len(queries)))
    index.index(tokens[: len(texts)], show_progress=False)
    zeros = np.zeros(len(texts))
    columns = [index.get_scores(words) if words else zeros for words in tokens[len(texts) :]]
    return np.stack(columns, axis=1).astype(np.float64)


@dataclass(frozen=True)
class Geometry:
    """Coordinates in one basis, and the second moments along it."""

    raw: np.ndarray  # <G_i, G_q> [N, Q]
    norms: np.ndarray  # ||G_i||^2 [N]
    samples: np.ndarray  # L [N, D]
    queries: np.ndarray  # R [D, Q]
    moments: np.ndarray  # lambda [D]
    width: int  # dimensions that the basis stands for
    rotation: np.ndarray | None = None  # P [D, sketch width]: what of the basis sketches keep, where not all of it

    def weights(self, delta: float) -> np.ndarray:
        """w [D]."""
        return self.moments / (self.moments + delta)

    def values(self, delta: float) -> np.ndarray:
        """Preconditioned values [N, Q], the complement of the basis kept: the exact tier."""
        return self.raw - (self.samples * self.weights(delta).astype(self.samples.dtype)) @ self.queries

    def inside(self, delta: float) -> np.ndarray:
        """Preconditioned values inside what sketches keep [N, Q]: the sketch tier."""
        damped = (1 - self.weights(delta)).astype(self.samples.dtype)[:, None] * self.queries
        if self.rotation is None:
            return self.samples @ damped
        return (self.samples @ self.rotation) @ (self.rotation.T @ damped)

    def cosines(self, delta: float) -> np.ndarray:
        """The same over the sample's own norm under the damped inverse: relative influence."""
        squares = self.norms - (self.samples.astype(np.float64) ** 2) @ self.weights(delta)
        return self.values(delta) / np.sqrt(np.maximum(squares, 1e-9 * self.norms))[:, None]


def geometries(train: Features, asked: torch.Tensor, projection: Projection) -> dict[str, Geometry]:
    """Full Fisher matrices, the sketch's, and Kronecker-factored ones; `asked` [Q, V * H] are the queries' G."""
    rows = train.gradients
    raw = (rows @ asked.T).double().numpy()
    norms = rows.double().square().sum(1).numpy()
    size = (-1, projection.vocab_size, projection.hidden_size)
    found = {}

    def add(name: str, *of: Any) -> None:
        found[name] = Geometry(raw, norms, *of)

    gram = (rows @ rows.T).double()
    for name, scale in (("full", np.ones(len(norms))), ("full, unit norms", np.sqrt(norms.mean() / norms))):
        values, vectors = torch.linalg.eigh(gram * torch.from_numpy(np.outer(scale, scale)))
        real = values > values[-1] * 1e-9
        values, vectors = values[real].numpy(), vectors[:, real].numpy()
        of_queries = (vectors.T @ (raw * scale[:, None])) / np.sqrt(values)[:, None]
        samples = vectors * np.sqrt(values) / scale[:, None]
        add(name, samples, of_queries, values / len(norms), rows.shape[1])
    cores = [_cores(part.reshape(size), projection.error_basis, projection) for part in (rows, asked)]
    sketches, asked_sketches = (part @ projection.rotation.numpy() for part in cores)
    add("sketch", sketches, asked_sketches.T, projection.second_moment.double().numpy(), projection.width)
    mean = np.square(sketches.astype(np.float64)).mean(0)
    add("sketch, all samples", sketches, asked_sketches.T, mean, projection.width)
    add("EK-FAC, U_e x U_h", cores[0], cores[1].T, np.square(cores[0].astype(np.float64)).mean(0), cores[0].shape[1])
    seen = (projection.rotation.double().square() @ projection.second_moment.double()).numpy()
    add(OURS, cores[0], cores[1].T, seen, cores[0].shape[1], projection.rotation.numpy())
    error_values = (
        projection.error_basis.double().T @ train.moments.errors @ projection.error_basis.double()
    ).diagonal()
    hidden_basis = projection.hidden_basis[:, : projection.hidden_rank].double()
    hidden_values = (hidden_basis.T @ train.moments.hidden @ hidden_basis).diagonal()
    products = torch.outer(error_values, hidden_values).flatten().numpy()
    products *= np.square(cores[0]).sum() / len(norms) / products.sum()
    add("K-FAC, U_e x U_h", cores[0], cores[1].T, products, cores[0].shape[1])
    return found


def _cores(gradients: torch.Tensor, error_basis: torch.Tensor, projection: Projection) -> np.ndarray:
    """vec(U_e^T G U_h), float32 [N, M * R]."""
    basis = projection.hidden_basis[:, : projection.hidden_rank]
    reduced = gradients @ basis
    return torch.einsum("vm,nvr->nmr", error_basis, reduced).flatten(1).numpy()


def _bisect(share: Callable[[float], float], target: float, scale: float) -> float:
    """delta with share(delta) = target, for a share that rises in delta."""
    low, high = np.log(scale * 1e-9), np.log(scale * 1e6)
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if share(float(np.exp(middle))) < target else (low, middle)
    return float(np.exp((low + high) / 2))


def _mean(factor: float) -> Callable[[Geometry], float]:
    return lambda g: factor * float(g.moments.sum()) / g.width if g.width < 20_000 else factor * float(g.moments.mean())


def _energy_left(share: float) -> Callable[[Geometry], float]:
    """So large a share of the samples' energy stays: the same for every width, since the tail has no energy."""

    def rule(g: Geometry) -> float:
        total = g.moments.sum()
        return _bisect(lambda delta: float((g.moments * (1 - g.weights(delta))).sum() / total), share, float(total))

    return rule


def _trace(share: float) -> Callable[[Geometry], float]:
    return lambda g: share * float(g.moments.sum())


def _participation(g: Geometry) -> float:
    """Effective dimension sum w = (sum lambda)^2 / sum lambda^2."""
    number = float(g.moments.sum() ** 2 / np.square(g.moments).sum())
    return _bisect(lambda delta: -float(g.weights(delta).sum()), -number, float(g.moments.sum()))


def _ledoit_wolf(g: Geometry) -> float:
    """Ledoit and Wolf 2004: shrinkage towards a multiple of the identity with the least expected squared error."""
    squares = np.square(g.samples.astype(np.float64)).sum(1)
    total, of_squares = g.moments.sum(), np.square(g.moments).sum()
    spread = of_squares - total**2 / g.width
    noise = max(0.0, float(np.square(squares).mean() - of_squares)) / len(squares)
    share = min(0.999, noise / spread)
    return float(share / (1 - share) * total / g.width)


def _left_out_likelihood(g: Geometry) -> float:
    """delta under which each sample is likeliest given the others: a Gaussian of covariance F + delta I.

    Inside the basis, taken as diagonal; a sample's own part is taken out of lambda.
    """
    squares = np.square(g.samples.astype(np.float64))
    num = len(squares)
    total = float(g.moments.sum())
    best, chosen = np.inf, total
    for delta in total * np.logspace(-7, 1, 41):
        others = np.maximum(num * g.moments[None] - squares, 0) / (num - 1) + delta
        loss = float((np.log(others) + squares / others).sum(1).mean())
        if loss < best:
            best, chosen = loss, float(delta)
    return chosen


RULES: dict[str, Callable[[Geometry], float]] = {
    **{f"{factor:g} x mean": _mean(factor) for factor in (1, 3, 10, 30, 100, 300)},
    **{f"{share:g} of the trace": _trace(share) for share in (0.003, 0.01, 0.03, 0.1, 0.3)},
    **{f"{share:g} of the energy left": _energy_left(share) for share in (0.1, 0.25, 0.5, 0.75)},
    "participation": _participation,
    "median": lambda g: float(np.median(g.moments)),
    "Ledoit-Wolf": _ledoit_wolf,
    "left-out likelihood": _left_out_likelihood,
}
