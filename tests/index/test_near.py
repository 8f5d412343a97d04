"""Near duplicates against the plain loop that defines them."""

from pathlib import Path

import numpy as np
import pytest

from index import Segment, SegmentArrays, write_segment
from index import near as module
from index.near import keepers

WIDTH = 24


def make(folder: Path, vectors: np.ndarray, gap: int = 1, parts: int = 3) -> tuple[list[Segment], np.ndarray]:
    ids = np.arange(5, 5 + gap * len(vectors), gap, dtype=np.int64)
    segments = []
    for number, (some, rows) in enumerate(zip(np.array_split(ids, parts), np.array_split(vectors, parts), strict=True)):
        directory = folder / str(number)
        directory.mkdir(parents=True)
        write_segment(directory, SegmentArrays.of_sketches(some, rows.astype(np.float32)))
        segments.append(Segment(directory))
    return segments, ids


def crowded(seed: int, num: int) -> np.ndarray:
    """Random rows, most of them near one of a few, of any length."""
    random = np.random.default_rng(seed)
    centres = random.standard_normal((num // 6, WIDTH))
    rows = centres[random.integers(len(centres), size=num)]
    rows = rows + random.uniform(0, 0.25, (num, 1)) * random.standard_normal((num, WIDTH))
    return rows * random.lognormal(0, 1, (num, 1))


def by_definition(vectors: np.ndarray, threshold: float) -> np.ndarray:
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    found: list[int] = []
    for row in range(len(unit)):
        near = [other for other in range(row) if found[other] == other and unit[row] @ unit[other] >= threshold]
        found.append(min(near, default=row))
    return np.array(found)


@pytest.mark.parametrize("threshold", [0.8, 0.95, 0.99])
@pytest.mark.parametrize(("block_rows", "span_rows"), [(7, 40), (7, 65_536), (4096, 40), (4096, 65_536)])
def test_keepers_are_those_of_the_plain_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threshold: float, block_rows: int, span_rows: int
):
    monkeypatch.setattr(module, "BLOCK_ROWS", block_rows)
    monkeypatch.setattr(module, "SPAN_ROWS", span_rows)
    segments, ids = make(tmp_path, crowded(1, 300), gap=3)
    stored = np.concatenate([segment.sketches(0, segment.num_samples) for segment in segments]).astype(np.float64)
    expected = by_definition(stored, threshold)
    found, cosines = keepers(segments, ids, threshold)
    assert (found == ids[expected]).all()
    assert 0 < (found != ids).sum() < 300
    unit = stored / np.linalg.norm(stored, axis=1, keepdims=True)
    np.testing.assert_allclose(cosines, (unit * unit[expected]).sum(1), atol=1e-5)


def test_some_of_the_ids_are_those_alone(tmp_path: Path):
    segments, ids = make(tmp_path, crowded(2, 120))
    some = ids[np.random.default_rng(0).random(120) < 0.5]
    stored = np.concatenate([segment.sketches(0, segment.num_samples) for segment in segments])
    expected = by_definition(stored[np.searchsorted(ids, some)], 0.9)
    assert (keepers(segments, some, 0.9)[0] == some[expected]).all()
    with pytest.raises(ValueError, match="ids asked for"):
        keepers(segments, np.array([4, 5]), 0.9)


def test_by_cells_each_keeper_is_near_and_kept_and_few_are_missed(tmp_path: Path):
    segments, ids = make(tmp_path, crowded(3, 900))
    exact, _ = keepers(segments, ids, 0.95)
    found, cosines = keepers(segments, ids, 0.95, all_pairs=0)
    assert np.isin(found, found[found == ids]).all()
    assert (cosines >= 0.95 - 1e-6).all()
    assert (found == ids).sum() <= (exact == ids).sum() * 1.02


def test_by_cells_keepers_do_not_depend_on_how_rows_are_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    segments, ids = make(tmp_path, crowded(5, 700))
    expected, _ = keepers(segments, ids, 0.9, all_pairs=0)
    for block_rows, span_rows in [(9, 100), (20, 65_536), (4096, 150)]:
        monkeypatch.setattr(module, "BLOCK_ROWS", block_rows)
        monkeypatch.setattr(module, "SPAN_ROWS", span_rows)
        assert (keepers(segments, ids, 0.9, all_pairs=0)[0] == expected).all()


def test_rows_of_zeros_are_near_nothing(tmp_path: Path):
    segments, ids = make(tmp_path, np.zeros((6, WIDTH)))
    assert (keepers(segments, ids, 0.5)[0] == ids).all()


def test_no_rows_have_no_keepers(tmp_path: Path):
    segments, _ = make(tmp_path, crowded(4, 12))
    assert len(keepers(segments, np.empty(0, np.int64), 0.9)[0]) == 0
