"""Near duplicates: each row goes to the first row before it that is kept and whose sketch has nearly its direction.

Rows are taken in the order of their ids. A row is kept unless a kept one before it has a cosine of at least the
threshold with it; the lowest such is its keeper. So whatever is dropped lies within the threshold of what is kept, and
chains of small steps join nothing.

Up to ALL_PAIRS rows every row is compared with every kept one: N^2 D products, halved. Beyond, with those that share
one of its NEAREST cells out of sqrt(N), whose centres are means of random rows: about N^1.5 D products, and a pair is
missed where the two share no cell. Memory: a span of rows, blocks of cosines,
and the mapped sketches.

Shapes: N rows, S of a span, n of a block, D sketch width, C cells.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from index.scan import StoredRows
from index.segment import Segment

__all__ = ["ALL_PAIRS", "keepers"]

ALL_PAIRS = 50_000
NEAREST = 3
BLOCK_ROWS = 4096
SPAN_ROWS = 65_536  # each span reads the rows kept before it once
ROWS_A_CELL = 32  # random rows for each centre
ROUNDS = 3


def keepers(
    segments: Sequence[Segment], ids: np.ndarray, threshold: float, *, all_pairs: int = ALL_PAIRS
) -> tuple[np.ndarray, np.ndarray]:
    """Return (int64 [N], float32 [N]): the id that each of these ascending ids goes to, its own where it is kept, and
    the cosine of the two sketches. Raises ValueError for an id that no segment holds.
    """
    stored = StoredRows(segments)
    mask = stored.mask(ids, None)
    rows = np.arange(len(stored)) if mask is None else np.flatnonzero(mask)
    if len(rows) != len(ids):
        raise ValueError(f"{len(ids)} ids asked for, {len(rows)} rows found")
    cells = np.zeros((len(ids), 1), np.int64) if len(ids) <= all_pairs else _cells(stored, rows)
    found = _Keepers(len(ids), threshold)
    kept: dict[int, list[np.ndarray]] = defaultdict(list)  # by cell, places in ids, ascending
    for start in range(0, len(ids), SPAN_ROWS):
        span = slice(start, min(start + SPAN_ROWS, len(ids)))
        unit_SD = _unit(stored, rows[span])
        for cell, at in _members(cells[span]):
            for tile in _tiles(kept[cell]):
                unit_kD = _unit(stored, rows[tile])
                for part in _tiles([at]):
                    found.join(unit_SD[part] @ unit_kD.T, start + part, tile)
        for cell, places in _join_span(found, unit_SD, cells[span], start).items():
            kept[cell] += places
    return ids[found.keeper_N], found.cosine_N


def _join_span(
    found: "_Keepers", unit_SD: torch.Tensor, cells_SK: np.ndarray, start: int
) -> dict[int, list[np.ndarray]]:
    """Joins the rows of a span to each other; returns the places of those that are kept, by cell.

    In blocks where a cell is so full that its cosines with itself would not fit.
    """
    kept: dict[int, list[np.ndarray]] = defaultdict(list)
    step = BLOCK_ROWS if np.bincount(cells_SK.ravel()).max() > BLOCK_ROWS else len(unit_SD)
    for first in range(0, len(unit_SD), step):
        unit_nD = unit_SD[first : first + step]
        members = list(_members(cells_SK[first : first + step]))
        for cell, at in members:
            for tile in _tiles(kept[cell]):
                found.join(unit_nD[at] @ unit_SD[tile - start].T, start + first + at, tile)
        found.join_within(unit_nD, members, start + first)
        for cell, at in members:
            places = start + first + at
            kept[cell].append(places[found.keeper_N[places] == places])
    return kept


class _Keepers:
    """The place of each row's keeper, and the cosine of the two, as far as rows have been compared."""

    def __init__(self, num_rows: int, threshold: float):
        self.keeper_N = np.arange(num_rows)
        self.cosine_N = np.ones(num_rows, np.float32)
        self._threshold = threshold

    def join(self, cosines_nk: torch.Tensor, places_n: np.ndarray, tile_k: np.ndarray) -> None:
        """Gives rows the first kept one of a tile that is near, unless they have an earlier one."""
        near_nk = cosines_nk >= self._threshold
        hits = torch.nonzero(near_nk.any(dim=1)).ravel()
        if not len(hits):
            return
        first = near_nk[hits].to(torch.uint8).argmax(dim=1)
        cosines, found, places = cosines_nk[hits, first].numpy(), tile_k[first.numpy()], places_n[hits.numpy()]
        is_earlier = found < self.keeper_N[places]
        self.keeper_N[places[is_earlier]], self.cosine_N[places[is_earlier]] = found[is_earlier], cosines[is_earlier]

    def join_within(self, unit_nD: torch.Tensor, members: list[tuple[int, np.ndarray]], start: int) -> None:
        """The rows of a block that no earlier block keeps, one after another."""
        found = [np.empty((2, 0), np.int32)]
        cosines = [np.empty(0, np.float32)]
        for _, at in members:
            free = at[self.keeper_N[start + at] == start + at].astype(np.int32)
            of_cell = unit_nD[free] @ unit_nD[free].T
            pairs = torch.nonzero(torch.tril(of_cell, -1) >= self._threshold, as_tuple=True)
            found.append(free[torch.stack(pairs).numpy()])
            cosines.append(of_cell[pairs].numpy())
        (later, earlier), values = np.concatenate(found, axis=1), np.concatenate(cosines)
        if not len(values):
            return
        order = np.lexsort((earlier, later))
        rows, starts = np.unique(later[order], return_index=True)
        for row, near in zip(rows.tolist(), np.split(order, starts[1:]), strict=True):
            others = start + earlier[near]
            is_kept = self.keeper_N[others] == others
            if is_kept.any():
                first = int(is_kept.argmax())
                self.keeper_N[start + row], self.cosine_N[start + row] = others[first], values[near[first]]


def _unit(stored: StoredRows, rows: np.ndarray) -> torch.Tensor:
    return torch.nn.functional.normalize(stored.gather(rows).float())  # scales drop out


def _members(cells_nK: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (cell, the rows of the block in it, ascending)."""
    flat = cells_nK.ravel()
    order = np.argsort(flat, kind="stable")
    found, starts = np.unique(flat[order], return_index=True)
    yield from zip(found.tolist(), np.split(order // cells_nK.shape[1], starts[1:]), strict=True)


def _tiles(parts: list[np.ndarray]) -> list[np.ndarray]:
    if not parts:
        return []
    places = np.concatenate(parts)
    parts[:] = [places]
    return [places[start : start + BLOCK_ROWS] for start in range(0, len(places), BLOCK_ROWS)]


def _cells(stored: StoredRows, rows: np.ndarray) -> np.ndarray:
    """The NEAREST cells of each row, int64 [N, NEAREST]; the same for the same rows."""
    num_cells = max(NEAREST, round(len(rows) ** 0.5))
    random = np.random.default_rng(0)
    picked = np.sort(random.choice(rows, min(len(rows), ROWS_A_CELL * num_cells), replace=False))
    sample = _unit(stored, picked)
    centres = sample[torch.from_numpy(np.sort(random.choice(len(sample), num_cells, replace=False)))]
    for _ in range(ROUNDS):
        nearest = torch.cat([(part @ centres.T).argmax(dim=1) for part in sample.split(BLOCK_ROWS)])
        sums = torch.zeros_like(centres).index_add_(0, nearest, sample)
        is_used = sums.norm(dim=1, keepdim=True) > 0
        centres = torch.where(is_used, torch.nn.functional.normalize(sums), centres)
    found = [
        (_unit(stored, rows[start : start + BLOCK_ROWS]) @ centres.T).topk(NEAREST, dim=1).indices
        for start in range(0, len(rows), BLOCK_ROWS)
    ]
    return torch.cat(found).numpy()
