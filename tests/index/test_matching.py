"""Greedy gradient matching against the same greedy written out, and what it is for: copies are worth less."""

from pathlib import Path

import numpy as np
import pytest

from index import matching
from index.matching import match
from index.scan import StoredRows
from tests.index.builders import make_segment, make_segments

WIDTH = 24


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> StoredRows:
    return StoredRows(make_segments(tmp_path_factory.mktemp("segments"), [120, 7, 173], WIDTH))


def sketches(stored: StoredRows) -> np.ndarray:
    rows = np.arange(len(stored))
    return stored.gather(rows).float().numpy() * stored.factors(rows)[:, None]


def direction(seed: int = 1) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(WIDTH).astype(np.float32)


def written_out(sketches_nD: np.ndarray, query: np.ndarray, rows: np.ndarray, k: int) -> list[int]:
    """min || t q/||q|| - sum s ||^2, one row at a time, in float64."""
    unit = query.astype(np.float64) / np.linalg.norm(query.astype(np.float64))
    target = np.sort(sketches_nD[rows] @ unit)[-k:].sum() * unit
    taken: list[int] = []
    while len(taken) < k:
        total = sketches_nD[taken].sum(0)
        left = [row for row in rows if row not in taken]
        costs = [np.square(target - total - sketches_nD[row]).sum() for row in left]
        taken.append(int(left[int(np.argmin(costs))]))
    return taken


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_looking_at_every_row_it_is_the_greedy_minimum(stored: StoredRows, seed: int) -> None:
    query, all_ = direction(seed), sketches(stored)
    rows = np.arange(0, len(stored), 2)
    found = match(stored, query, rows, all_[rows] @ query, 20, epsilon=0, seed=seed)
    assert found.rows.tolist() == written_out(all_, query, rows, 20)
    total = all_[found.rows].sum(0)
    assert found.cosine == pytest.approx(total @ query / np.linalg.norm(total) / np.linalg.norm(query), rel=1e-5)
    assert found.along == pytest.approx(total @ query / np.linalg.norm(query), rel=1e-5)
    assert found.along**2 + found.across**2 == pytest.approx(np.square(total).sum(), rel=1e-5)


def test_looking_at_few_rows_comes_close_and_follows_better_than_the_most_helpful(stored: StoredRows) -> None:
    """The cost that is minimized, over several directions: at most a tenth above the reference's, as a share of t^2."""
    for seed in range(5):
        query, all_ = direction(seed), sketches(stored)
        rows, values = np.arange(len(stored)), all_ @ query
        few, every = (match(stored, query, rows, values, 40, epsilon=e, seed=0) for e in (0.01, 0))
        top = all_[np.argsort(-values)[:40]].sum(0)
        target = top @ query / np.linalg.norm(query)
        unit = query / np.linalg.norm(query)
        cost, reference, of_top = (
            np.square(target * unit - total).sum() / target**2
            for total in (all_[few.rows].sum(0), all_[every.rows].sum(0), top)
        )
        assert cost < reference + 0.1
        assert cost < of_top
        assert few.cosine > top @ query / np.linalg.norm(top) / np.linalg.norm(query)


@pytest.mark.parametrize("buffer", [8, 50, 10_000])
@pytest.mark.parametrize("k", [1, 30, 300, 1000])
def test_rows_are_taken_once_and_from_those_given_whatever_the_buffer(
    stored: StoredRows, k: int, buffer: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(matching, "_BUFFER_ROWS", buffer)
    query, rows = direction(), np.arange(5, len(stored))
    found = match(stored, query, rows, sketches(stored)[rows] @ query, k)
    assert len(found.rows) == len(set(found.rows.tolist())) == min(k, len(rows))
    assert set(found.rows.tolist()) <= set(rows.tolist())


def test_the_same_seed_takes_the_same(stored: StoredRows) -> None:
    query, rows = direction(), np.arange(len(stored))
    values = sketches(stored) @ query
    one, again, other = (match(stored, query, rows, values, 25, seed=seed).rows.tolist() for seed in (3, 3, 4))
    assert one == again != other


def test_a_row_that_is_not_admitted_is_asked_about_once(stored: StoredRows) -> None:
    query, rows = direction(), np.arange(len(stored))
    refused: list[int] = []

    def admits(row: int) -> bool:
        if row % 3 == 0:
            refused.append(row)
        return row % 3 != 0

    found = match(stored, query, rows, sketches(stored) @ query, len(stored), admits=admits)
    assert sorted(found.rows.tolist()) == [row for row in rows.tolist() if row % 3]
    assert len(refused) == len(set(refused))


def test_the_second_copy_of_a_helpful_sample_is_worth_less(tmp_path: Path) -> None:
    """Ten copies of the most helpful row against rows that each add something else: the top has all the copies."""
    rng = np.random.default_rng(0)
    copies = np.tile(np.concatenate([[2.0, 3.0], np.zeros(WIDTH - 2)]), (10, 1))
    others = np.zeros((40, WIDTH))
    others[:, 0] = 1.5
    others[np.arange(40), rng.integers(1, WIDTH, 40)] = rng.choice([-1.0, 1.0], 40)
    all_ = np.concatenate([copies, others]).astype(np.float32)
    stored = StoredRows([make_segment(tmp_path / "one", np.arange(50), all_)])
    query = np.eye(WIDTH, dtype=np.float32)[0]
    found = match(stored, query, np.arange(50), all_ @ query, 10)
    assert set(np.argsort(-all_ @ query, kind="stable")[:10].tolist()) == set(range(10))
    assert sum(row < 10 for row in found.rows.tolist()) <= 3
    assert found.cosine > 0.97


def test_nothing_to_follow_or_to_take_is_an_empty_answer(stored: StoredRows) -> None:
    nothing = np.zeros(WIDTH, np.float32)
    assert not len(match(stored, nothing, np.arange(5), np.zeros(5), 3).rows)
    assert not len(match(stored, direction(), np.empty(0, np.int64), np.empty(0), 3).rows)
    assert not len(match(stored, direction(), np.arange(5), np.ones(5), 0).rows)
