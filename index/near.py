"""Near duplicates: each row goes to the first row before it that is kept and whose sketch has nearly its direction.

Rows are taken in the order of their ids. A row is kept unless a kept one before it has a cosine of at least the
threshold with it; the lowest such is its keeper. So whatever is dropped lies within the threshold of what is kept, and
chains of small steps join nothing.

Up to ALL_PAIRS rows every row is compared with every kept one: N^2 D products, halved. Beyond, with those that share
one of its NEAREST cells out of sqrt(N), whose centres are means of random rows: about N^1.5 D products, and a pair is
missed where the two share no cell. Memory: blocks, and the mapped sketches.

Shapes: N rows, n of a block, D sketch width, C cells.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from index.scan import StoredRows
from index.segment import Segment

__all__ = ["ALL_PAIRS", "keepers"]

ALL_PAIRS = 50_000
NEAREST = 2
BLOCK_ROWS = 4096
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
    keeper_N, cosine_N = np.arange(len(ids)), np.ones(len(ids), np.float32)
    kept: dict[int, list[np.ndarray]] = defaultdict(list)  # by cell, places in ids, ascending
    for start in range(0, len(ids), BLOCK_ROWS):
        block = slice(start, min(start + BLOCK_ROWS, len(ids)))
        unit_nD = _unit(stored, rows[block])
        members = list(_members(cells[block]))
        for cell, at in members:
            for tile in _tiles(kept[cell]):
                _join(unit_nD[at] @ _unit(stored, rows[tile]).T, start + at, tile, threshold, keeper_N, cosine_N)
        _join_within(unit_nD, members, start, threshold, keeper_N, cosine_N)
        for cell, at in members:
            places = start + at
            kept[cell].append(places[keeper_N[places] == places])
    return ids[keeper_N], cosine_N


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


def _join(
    cosines_nk: torch.Tensor,
    places_n: np.ndarray,
    tile_k: np.ndarray,
    threshold: float,
    keeper_N: np.ndarray,
    cosine_N: np.ndarray,
) -> None:
    """Gives rows the first kept one of a tile that is near, unless they have an earlier one."""
    near_nk = cosines_nk >= threshold
    hits = torch.nonzero(near_nk.any(dim=1)).ravel()
    if not len(hits):
        return
    first = near_nk[hits].to(torch.uint8).argmax(dim=1)
    cosines, found, places = cosines_nk[hits, first].numpy(), tile_k[first.numpy()], places_n[hits.numpy()]
    earlier = found < keeper_N[places]
    keeper_N[places[earlier]], cosine_N[places[earlier]] = found[earlier], cosines[earlier]


def _join_within(
    unit_nD: torch.Tensor,
    members: list[tuple[int, np.ndarray]],
    start: int,
    threshold: float,
    keeper_N: np.ndarray,
    cosine_N: np.ndarray,
) -> None:
    """The rows of a block that no earlier block keeps, one after another."""
    near: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for _, at in members:
        free = at[keeper_N[start + at] == start + at]
        cosines = unit_nD[free] @ unit_nD[free].T
        later, earlier = (part.numpy() for part in torch.nonzero(torch.tril(cosines, -1) >= threshold, as_tuple=True))
        values = cosines[later, earlier].tolist()
        for row, other, value in zip(free[later].tolist(), free[earlier].tolist(), values, strict=True):
            near[row].append((other, value))
    for row in sorted(near):
        for other, value in sorted(near[row]):
            if keeper_N[start + other] == start + other:
                keeper_N[start + row], cosine_N[start + row] = start + other, value
                break


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
