"""What a value means: the three methods as transformations of the query. No new ingest, no new index.

    raw             <G_i, G_q>                                        the paper's value
    cosine          <G_i, G_q> / (||G_i|| ||G_q||)                    free of length and loudness
    preconditioned  delta G_i^T (F + delta I)^-1 G_q = <G_i, G_q - U_e (w o S_q) U_h^T>
                                                                      an influence function of the last layer

F = B diag(Lambda) B^T is the Fisher matrix of the unembedding inside U_e x U_h, taken as diagonal there (EK-FAC): S =
U_e^T G U_h, B the products of the two bases in gradient space, Lambda the second moment of the calibration samples' S,
delta = damping * mean(Lambda), w = Lambda / (Lambda + delta). The factor delta keeps the unit: damping -> infinity
gives raw. So a preconditioned query is a raw query with another gradient, at every tier.
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
DEFAULT_DAMPING = 10.0  # never below raw in what was measured: scripts/results/evaluation.md


@dataclass(frozen=True)
class PreparedQuery:
    """A query's gradient under a method, ready for each tier.

    sketch tier:  value = (search . sketch_i) * scale_i
    factor tier:  value = (search . sketch_i + <factors_i, outside>) * scale_i
    exact tier:   value = <G_i, gradient> * scale_i
    scale_i = 1 / ||G_i|| where `is_cosine`, else 1.
    """

    search: np.ndarray  # float32 [width]
    outside: torch.Tensor  # float32 [V, F]: what the sketch does not see, on the hidden basis
    tokens: torch.Tensor  # float32 [V, F]: the whole query on the hidden basis, to split a value over tokens
    gradient: (
        torch.Tensor | None
    )  # float32 [V, H], preconditioned; a saved query has none, and no exact tier until it is run
    is_cosine: bool
    missed: float  # norm of what of `gradient` the sketch does not see
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
    captured = float(query.sketch.double().square().sum()) / norm**2
    if method == "cosine":
        query = query.scaled(1.0 / norm)
    elif method == "preconditioned":
        query = query.damped(projection.damped_weights(damping), projection)
    tokens = query.outside.clone()
    tokens[:, : projection.hidden_rank] += projection.lift(query.sketch)
    return PreparedQuery(
        search=query.sketch.cpu().numpy(),
        outside=query.outside.cpu(),
        tokens=tokens.cpu(),
        gradient=query.gradient,
        is_cosine=method == "cosine",
        missed=max(0.0, query.norm**2 - float(query.sketch.double().square().sum())) ** 0.5,
        norm=norm,
        captured=captured,
    )
