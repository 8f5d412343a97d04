"""Exact search where a device holds all sketches: made for a GPU, the same code on the CPU for its tests.

The sketches stay on the device as they are stored, float16 in [-1, 1] with one scale a row, and a search is one product
and one selection a block. Products are rounded to float16, so that far more than k rows are kept of them and rescored
exactly on the host, as every other search does (scan.StoredRows): reported scores are exact, and a row is missed only
where more than KEPT others lie within float16's rounding of the kth best.
"""

from collections.abc import Sequence

import numpy as np
import torch

from index.scan import RowScale, StoredRows, check_search, rank
from index.segment import Segment

__all__ = ["DeviceScan"]

BLOCK_ROWS = 262_144  # 1 MB of products a query; blocks are uploaded and searched one by one
KEPT = 1_024  # rows beyond 2 k whose values are looked at in float32
SHARE = 0.7  # of the device's free memory that sketches may take: a model lives beside them


class DeviceScan:
    """The sketches of some segments on a device; never changed, safe from several threads."""

    def __init__(self, segments: Sequence[Segment], device: torch.device, row_scale: RowScale = "none") -> None:
        """Upload all sketches. Raises torch.OutOfMemoryError where they do not fit: ask `fits` before."""
        self.device = device
        self._segments = tuple(segments)
        self._stored = StoredRows(segments, row_scale)
        self._blocks = []
        for start in range(0, len(self._stored), BLOCK_ROWS):
            rows = np.arange(start, min(start + BLOCK_ROWS, len(self._stored)))
            factors = torch.from_numpy(self._stored.factors(rows).astype(np.float32))
            self._blocks.append((self._stored.gather(rows).to(device), factors.to(device)))

    @staticmethod
    def fits(segments: Sequence[Segment], device: torch.device) -> bool:
        """Whether the device is a GPU whose free memory holds all sketches."""
        if device.type != "cuda" or not segments:
            return False
        free, _ = torch.cuda.mem_get_info(device)
        return sum(segment.num_samples * (2 * segment.width + 4) for segment in segments) <= SHARE * free

    @torch.inference_mode()
    def search(
        self,
        queries: np.ndarray,
        k: int,
        *,
        allowed: np.ndarray | None = None,
        excluded: np.ndarray | None = None,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return (ids int64 [Q, K], scores float32 [Q, K]), as `scan.top_k` does, and raise as it does."""
        queries_QD = check_search(self._segments, queries, k, allowed, excluded)
        mask = self._stored.mask(allowed, excluded)
        num_results = min(k, len(self._stored) if mask is None else int(mask.sum()))
        if num_results == 0 or len(queries_QD) == 0:
            return np.empty((len(queries_QD), num_results), np.int64), np.empty((len(queries_QD), num_results), "f4")
        rows_QC = self._kept(queries_QD, 2 * k + KEPT, mask)
        best = [
            self._stored.best(query_D, np.sort(rows[rows >= 0]), k)
            for query_D, rows in zip(queries_QD, rows_QC, strict=True)
        ]
        ranked = [rank(ids[None], scores[None], num_results) for ids, scores in best]
        return np.concatenate([ids for ids, _ in ranked]), np.concatenate([scores for _, scores in ranked])

    def _kept(self, queries_QD: np.ndarray, num_kept: int, mask: np.ndarray | None) -> np.ndarray:
        """Return the rows [Q, C] of the highest products, -1 where a filter left fewer."""
        wanted = torch.from_numpy(queries_QD).to(self.device)
        # In [-1, 1] neither a query nor, at less than 65,504 coordinates, a product leaves float16; ranks stay.
        wanted = (wanted / wanted.abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)).half()
        values = torch.empty((len(queries_QD), 0), device=self.device)
        rows = torch.empty((len(queries_QD), 0), dtype=torch.int64, device=self.device)
        start = 0
        for sketches_nD, factors_n in self._blocks:
            products_Qn = (wanted @ sketches_nD.T).float() * factors_n
            if mask is not None:
                admitted = torch.from_numpy(mask[start : start + len(factors_n)]).to(self.device)
                products_Qn.masked_fill_(~admitted, -torch.inf)
            top = products_Qn.topk(min(num_kept, len(factors_n)), dim=1)
            values, rows = torch.cat([values, top.values], dim=1), torch.cat([rows, top.indices + start], dim=1)
            best = values.topk(min(num_kept, values.shape[1]), dim=1)
            values, rows = best.values, rows.gather(1, best.indices)
            start += len(factors_n)
        return rows.masked_fill(values == -torch.inf, -1).cpu().numpy()

    def describe(self) -> dict[str, str | int]:
        """Return what `FaissIndex.describe` does, of type "device", with the device's name and the bytes it holds."""
        num_bytes = sum(sketches.nbytes + factors.nbytes for sketches, factors in self._blocks)
        rows = len(self._stored)
        return {
            "type": "device",
            "shards": 0,
            "rows": rows,
            "bytes": num_bytes,
            "scanned": rows,
            "device": str(self.device),
        }
