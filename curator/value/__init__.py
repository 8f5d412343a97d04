"""The value of a sample: reference, representation of samples, gradient of queries, methods, calibration."""

from curator.value.calibrate import Ranks, calibrate
from curator.value.forward import DEFAULT_BATCH_TOKENS, Forward
from curator.value.methods import DEFAULT_DAMPING, METHODS, Method, PreparedQuery, prepare
from curator.value.query_gradient import QueryGradient
from curator.value.query_representation import QueryRepresentation
from curator.value.represent import Representation, represent

__all__ = [
    "DEFAULT_BATCH_TOKENS",
    "DEFAULT_DAMPING",
    "METHODS",
    "Forward",
    "Method",
    "PreparedQuery",
    "QueryGradient",
    "QueryRepresentation",
    "Ranks",
    "Representation",
    "calibrate",
    "prepare",
    "represent",
]
