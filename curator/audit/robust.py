"""How far out a value lies, by medians: a few wild values do not hide each other."""

import numpy as np

__all__ = ["deviations"]

MAD_TO_DEVIATION = 1.4826  # of a normal distribution
MEAN_TO_DEVIATION = 1.2533


def deviations(values_n: np.ndarray) -> np.ndarray:
    """(value - median) / robust standard deviation, float64 [n]: 1.4826 times the median absolute deviation.

    Where that is 0 (half of the values are equal), 1.2533 times the mean absolute deviation, as Iglewicz and Hoaglin
    (1993) have it; 0 where all are equal.
    """
    away = values_n - np.median(values_n) if len(values_n) else np.asarray(values_n, np.float64)
    if not len(away):
        return away
    spread = MAD_TO_DEVIATION * np.median(np.abs(away)) or MEAN_TO_DEVIATION * np.abs(away).mean()
    found: np.ndarray = away / spread if spread else np.zeros(len(away))
    return found
