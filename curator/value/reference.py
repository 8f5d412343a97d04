"""The value straight from the formula, in float64: slow, and what every faster version is tested against.

    G(sample) = sum_k e_k h_k^T            e_k = f'(u_k) * (onehot(y_k) - softmax(z_k))
    value(i | q) = <G_i, G_q>_F = sum_{k, k'} <e_k, e_k'> <h_k, h_k'>

(For-Value, arXiv 2508.10180, equation 6.) Shapes: K counted tokens, V vocabulary, H hidden size.
"""

import numpy as np

__all__ = ["gradient", "precondition", "value"]


def gradient(errors: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """G [V, H]: minus the gradient of the summed loss with respect to the unembedding, from e [K, V] and h [K, H]."""
    total = np.zeros((errors.shape[1], hidden.shape[1]))
    for error, state in zip(errors.astype(np.float64), hidden.astype(np.float64), strict=True):
        total += np.outer(error, state)
    return total


def value(errors: np.ndarray, hidden: np.ndarray, query_errors: np.ndarray, query_hidden: np.ndarray) -> float:
    """value(i | q) as the double sum over the tokens of both sides; G is never formed."""
    of_errors = errors.astype(np.float64) @ query_errors.astype(np.float64).T
    of_hidden = hidden.astype(np.float64) @ query_hidden.astype(np.float64).T
    return float((of_errors * of_hidden).sum())


def precondition(directions: np.ndarray, moments: np.ndarray, delta: float) -> np.ndarray:
    """delta (F + delta I)^-1 with F = B diag(moments) B^T, as a dense matrix; B [n, D] has orthonormal columns."""
    fisher = directions.astype(np.float64) @ np.diag(moments.astype(np.float64)) @ directions.astype(np.float64).T
    inverse: np.ndarray = delta * np.linalg.inv(fisher + delta * np.eye(len(fisher)))
    return inverse
