"""What a value means: the three methods as transformations of the query. No new ingest, no new index.

    raw             <G_i, G_q>                                        the paper's value
    cosine          <G_i, G_q> / (||G_i|| ||G_q||)                    free of length and loudness
    preconditioned  delta G_i^T (F + delta I)^-1 G_q
                    = <G_i, G_q> - sum_j w_j sketch_ij sketch_qj      an influence function of the last layer

F = B diag(lambda) B^T is the empirical Fisher matrix of the unembedding inside the sketch's subspace (lambda: second
moment of the calibration samples, B: the sketch's directions in gradient space, orthonormal), delta = damping *
mean(lambda), w_j = lambda_j / (lambda_j + delta). The factor delta keeps the unit: damping -> infinity gives raw.
"""

from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch

from curator.errors import EmptyQueryError, UsageError
from curator.value.query_representation import QueryRepresentation
from index.projection import Projection

__all__ = ["DEFAULT_DAMPING", "METHODS", "Method", "PreparedQuery", "prepare"]

Method = Literal["raw", "cosine", "preconditioned"]
METHODS: tuple[Method, ...] = get_args(Method)
DEFAULT_DAMPING = 30.0  # above raw in every case measured, as 10 is not: scripts/results/evaluation.md


@dataclass(frozen=True)
class PreparedQuery:
    """A query's gradient under a method, ready for each tier.

    sketch tier:  value = (search . sketch_i) * scale_i
    factor tier:  value = (search . sketch_i + <factors_i, outside>) * scale_i
    exact tier:   value = (<G_i, gradient> - taken . sketch_i) * scale_i
    scale_i = 1 / ||G_i|| where `is_cosine`, else 1.
    """

    search: np.ndarray  # float32 [width]
    taken: np.ndarray  # float32 [width]: what preconditioning takes away inside the subspace; zeros otherwise
    outside: torch.Tensor  # float32 [V, F]
    tokens: torch.Tensor  # float32 [V, F]: the whole query on the hidden basis, to split a value over tokens
    gradient: torch.Tensor | None  # float32 [V, H]; a saved query has none, and no exact tier until it is run
    is_cosine: bool
    norm: float  # ||G_q||
    captured: float  # ||sketch_q||^2 / ||G_q||^2: how much of the query the sketch sees


def prepare(query: QueryRepresentation, projection: Projection, method: Method, damping: float) -> PreparedQuery:
    """Applies a method to a query. Raises UsageError for an empty query or a damping that is not above 0."""
    if method not in METHODS:
        raise UsageError(f"method {method!r} is not known; use one of {', '.join(METHODS)}")
    if not damping > 0:
        raise UsageError(f"damping must be above 0, got {damping:g}")
    norm = query.norm
    if not np.isfinite(norm) or norm == 0.0:
        raise EmptyQueryError("the query has no usable gradient: the model predicts it perfectly, or gave NaN")
    if method == "cosine":
        query = query.scaled(1.0 / norm)
    sketch = query.sketch
    captured = float(sketch.double().square().sum()) / (1.0 if method == "cosine" else norm**2)
    taken = torch.zeros_like(sketch)
    if method == "preconditioned":
        taken = torch.from_numpy(projection.precondition_weights(damping)).to(sketch.device) * sketch
    tokens = query.outside.clone()
    tokens[:, : projection.hidden_rank] += projection.lift(sketch - taken)
    return PreparedQuery(
        search=(sketch - taken).cpu().numpy(),
        taken=taken.cpu().numpy(),
        outside=query.outside.cpu(),
        tokens=tokens.cpu(),
        gradient=query.gradient,
        is_cosine=method == "cosine",
        norm=norm,
        captured=captured,
    )
