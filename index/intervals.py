"""How many there are at most, from a random sample of them: finite, without any assumption on how they are spread."""

from collections.abc import Sequence
from dataclasses import dataclass

from scipy.stats import hypergeom

__all__ = ["Stratum", "most_in", "most_in_all"]


@dataclass(frozen=True)
class Stratum:
    """A part of a population: its size, how many of it were drawn without putting back, how many of these count."""

    size: int
    drawn: int
    found: int


def most_in(stratum: Stratum, error: float) -> int:
    """An upper bound on how many of a stratum count, wrong with probability at most `error`: exact, hypergeometric.

    The largest number for which so few among those drawn would not be rarer than `error` (Clopper and Pearson 1934, for
    draws without putting back).
    """
    low, high = stratum.found, stratum.size - (stratum.drawn - stratum.found)
    while low < high:  # the chance to find so few falls with the number there is
        middle = (low + high + 1) // 2
        if hypergeom.cdf(stratum.found, stratum.size, middle, stratum.drawn) > error:
            low = middle
        else:
            high = middle - 1
    return low


def most_in_all(strata: Sequence[Stratum], error: float) -> int:
    """The same for several strata together, their chances to be wrong added up; one drawn whole has none."""
    uncertain = sum(stratum.drawn < stratum.size for stratum in strata)
    return sum(most_in(stratum, error / max(1, uncertain)) for stratum in strata)
