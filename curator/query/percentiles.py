"""Where a value stands in the corpus: exactly at the two ends, which a search knows, by a random part in between."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from index.scan import RowScale, StoredRows, scan
from index.scan import row_factors as factors_of
from index.segment import Segment

__all__ = ["Corpus", "Distribution", "Ends"]

ALL_VALUES_UP_TO = 20_000  # scanned in 10 ms; above, percentiles come from the ends and a random part
SAMPLED_ROWS = 10_000  # kept in memory, 2 KB each at 1,024 numbers: half a percentile of standard error
_BLOCK_ROWS = 1024


@dataclass(frozen=True)
class Ends:
    """The sketch values that a search of all samples found: best first, and worst first."""

    highest: np.ndarray
    lowest: np.ndarray


@dataclass(frozen=True)
class Distribution:
    """The values of a corpus of num_samples: of all or of some, sorted, and the known ends."""

    values: np.ndarray
    num_samples: int
    ends: Ends | None
    described: str

    def percentile(self, value: float) -> float:
        """Share of the corpus's values below, ties counted half, 0 to 100."""
        if self.ends is not None:
            for end, sign in ((self.ends.lowest, 1), (self.ends.highest, -1)):
                if len(end) and sign * value <= sign * end[-1]:
                    beyond = float((sign * end < sign * value).sum() + (end == value).sum() / 2)
                    return self._rounded(beyond if sign == 1 else self.num_samples - beyond, self.num_samples)
        below, up_to = (np.searchsorted(self.values, value, side=side) for side in ("left", "right"))
        return self._rounded(float(below + up_to) / 2, len(self.values))

    @staticmethod
    def _rounded(count: float, of: int) -> float:
        return round(100.0 * count / of, 4) if of else 0.0


class Corpus:
    """The samples of a space that are not deleted, for their distribution; a part of a large one stays in memory."""

    def __init__(self, segments: Sequence[Segment], deleted: np.ndarray):
        self._segments = segments
        self._deleted = deleted
        self.num_samples = sum(segment.num_samples for segment in segments) - len(deleted)
        self._part: tuple[torch.Tensor, dict[RowScale, np.ndarray]] | None = None

    def distribution(self, search: np.ndarray, row_scale: RowScale, ends: Ends | None) -> Distribution:
        """Sketch values for what is searched for, float32 [D]."""
        if self.num_samples <= ALL_VALUES_UP_TO:
            blocks = scan(self._segments, search[None], excluded=self._deleted)
            found = [values_nQ[:, 0] * factors_of(norms, row_scale) for _, values_nQ, norms in blocks]
            values = np.sort(np.concatenate(found)) if found else np.empty(0)
            return Distribution(values, self.num_samples, None, "all sketch values")
        sketches_nD, factors = self._sampled()
        query = torch.from_numpy(search)
        products = torch.cat([block.float() @ query for block in sketches_nD.split(_BLOCK_ROWS)]).numpy()
        values = np.sort(products * factors[row_scale])
        described = f"the sketch values of {len(values):,} random samples"
        if ends is not None:
            described = f"the {len(ends.highest):,} highest and lowest sketch values; between, {described[4:]}"
        return Distribution(values, self.num_samples, ends, described)

    def _sampled(self) -> tuple[torch.Tensor, dict[RowScale, np.ndarray]]:
        if self._part is None:
            stored = StoredRows(self._segments)
            mask = stored.mask(None, self._deleted)
            admitted = np.arange(len(stored)) if mask is None else np.flatnonzero(mask)
            rows = np.sort(np.random.default_rng(0).choice(admitted, SAMPLED_ROWS, replace=False))
            cosine = StoredRows(self._segments, "inverse_norm")
            self._part = stored.gather(rows), {"none": stored.factors(rows), "inverse_norm": cosine.factors(rows)}
        return self._part
