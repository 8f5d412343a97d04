from pathlib import Path

import numpy as np
import pytest

from index.scan import eligible, exact_values, scan, top_k
from index.segment import Segment
from tests.index.builders import clustered_sketches, make_segment, make_segments

WIDTH = 16


@pytest.fixture
def segments(tmp_path: Path) -> list[Segment]:
    return make_segments(tmp_path, [700, 1, 299, 0, 500], WIDTH)


@pytest.fixture
def queries() -> np.ndarray:
    queries = clustered_sketches(np.random.default_rng(5), 3, WIDTH)
    return np.concatenate([queries, -queries])


def everything(segments: list[Segment]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """ids [N], sketches float64 [N, D], norms [N], in memory: what a scan must not need."""
    ids = np.concatenate([segment.ids for segment in segments])
    stored = [segment.quantized(slice(None)) for segment in segments]
    sketches = np.concatenate([rows.double().numpy() * scales[:, None].astype(np.float64) for rows, scales in stored])
    return ids, sketches, np.concatenate([segment.norms for segment in segments])


def brute_force(
    segments: list[Segment], queries: np.ndarray, k: int, keep: np.ndarray | None = None, cosine: bool = False
) -> tuple[np.ndarray, np.ndarray]:
    ids, sketches, norms = everything(segments)
    values = queries.astype(np.float64) @ sketches.T / (norms.astype(np.float64) if cosine else 1)
    if keep is not None:
        values, ids = values[:, keep], ids[keep]
    values = values.astype(np.float32)  # what is reported is what ties are judged by
    order = np.argsort(-values, axis=1, kind="stable")[:, :k]
    return ids[order], np.take_along_axis(values, order, axis=1)


@pytest.mark.parametrize("block_rows", [1, 64, 10_000])
def test_a_scan_yields_every_row_once_with_its_inner_products(
    segments: list[Segment], queries: np.ndarray, block_rows: int
) -> None:
    blocks = list(scan(segments, queries, block_rows))
    assert max(len(ids) for ids, _, _ in blocks) <= block_rows
    ids, sketches, norms = everything(segments)
    np.testing.assert_array_equal(np.concatenate([block[0] for block in blocks]), ids)
    np.testing.assert_array_equal(np.concatenate([block[2] for block in blocks]), norms)
    values = np.concatenate([block[1] for block in blocks])
    assert values.dtype == np.float32
    np.testing.assert_allclose(values, sketches @ queries.T.astype(np.float64), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("k", [0, 1, 7, 400, 1_500, 9_999])
@pytest.mark.parametrize("cosine", [False, True])
def test_top_k_is_the_head_of_the_full_sort(segments: list[Segment], queries: np.ndarray, k: int, cosine: bool) -> None:
    ids, values = top_k(segments, queries, k, row_scale="inverse_norm" if cosine else "none", block_rows=100)
    expected_ids, expected_values = brute_force(segments, queries, k, cosine=cosine)
    assert ids.shape == (len(queries), min(k, 1_500))
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(values, expected_values, rtol=1e-6)


def test_the_lowest_are_the_highest_of_the_negated_query(segments: list[Segment], queries: np.ndarray) -> None:
    ids, sketches, _ = everything(segments)
    lowest, _ = top_k(segments, queries[3:], 10)
    np.testing.assert_array_equal(lowest, ids[np.argsort(queries[:3].astype(np.float64) @ sketches.T, axis=1)[:, :10]])


@pytest.mark.parametrize("places", [[0, 3], [3, 0], [0, 1, 3, 0, 4, 3], [2, 5, 5, 2]])
def test_both_ends_asked_for_together_are_those_asked_for_alone(
    segments: list[Segment], queries: np.ndarray, places: list[int]
) -> None:
    together = top_k(segments, queries[places], 30, block_rows=100)
    for at, place in enumerate(places):
        alone = top_k(segments, queries[place : place + 1], 30, block_rows=100)
        for found, expected in zip(together, alone, strict=True):
            np.testing.assert_array_equal(found[at], expected[0])


def test_values_do_not_depend_on_blocks_batch_mates_or_segmentation(
    segments: list[Segment], queries: np.ndarray, tmp_path: Path
) -> None:
    ids, sketches, _ = everything(segments)
    one = make_segment(tmp_path / "one", ids, sketches.astype(np.float32))
    reference = top_k(segments, queries, 50)
    for found in (
        top_k(segments, queries, 50, block_rows=13),
        top_k([one], queries, 50),
        tuple(np.concatenate(part) for part in zip(*(top_k(segments, q[None], 50) for q in queries), strict=True)),
    ):
        np.testing.assert_array_equal(found[0], reference[0])
        np.testing.assert_array_equal(found[1], reference[1])
    np.testing.assert_array_equal(exact_values(segments, queries, reference[0]), reference[1])


def test_equal_values_come_in_the_order_of_their_ids(tmp_path: Path) -> None:
    rows = clustered_sketches(np.random.default_rng(0), 40, WIDTH)
    late, early = np.arange(1_000, 1_800), np.arange(0, 800)
    segments = [make_segment(tmp_path / str(ids[0]), ids, np.repeat(rows, 20, axis=0)) for ids in (late, early)]
    best = int(np.argmax(segments[0].sketches(0, 800)[::20] @ rows[0]))
    copies = np.concatenate([early[20 * best :][:20], late[20 * best :][:20]])
    for k in (1, 10, 30, 40):  # cuts through the copies of one row
        ids, values = top_k(segments, rows[:1], k, block_rows=37)
        np.testing.assert_array_equal(ids, copies[None, :k])
        assert len(np.unique(values)) == 1


def test_rows_of_zeros_tie_in_the_order_of_their_ids(tmp_path: Path) -> None:
    segment = make_segment(tmp_path / "s", np.arange(9_000), np.zeros((9_000, WIDTH), np.float32))
    ids, _ = top_k([segment], np.ones((1, WIDTH)), 200)
    np.testing.assert_array_equal(ids, np.arange(200)[None])


@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("exclude", [False, True])
def test_filters_give_the_answer_of_the_filtered_corpus(
    segments: list[Segment], queries: np.ndarray, share: float, exclude: bool
) -> None:
    stored, _, _ = everything(segments)
    chosen = np.random.default_rng(2).random(len(stored)) < share
    ids_filter = np.sort(np.concatenate([stored[chosen], stored[chosen] + 1]))  # + 1: ids that are not stored
    keep = np.flatnonzero(chosen != exclude)
    ids, values = top_k(segments, queries, 20, **{"excluded" if exclude else "allowed": ids_filter}, block_rows=50)
    expected_ids, expected_values = brute_force(segments, queries, 20, keep=keep)
    np.testing.assert_array_equal(ids, expected_ids)
    np.testing.assert_allclose(values, expected_values, rtol=1e-6)


def test_excluded_wins_over_allowed(segments: list[Segment], queries: np.ndarray) -> None:
    some = segments[0].ids[:10]
    ids, _ = top_k(segments, queries, 100, allowed=some, excluded=some[:9])
    np.testing.assert_array_equal(ids, np.full((len(queries), 1), some[9]))


def test_eligible_is_set_membership() -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        ids, allowed, excluded = (np.unique(rng.integers(0, 40, rng.integers(0, 30))) for _ in range(3))
        expected = np.isin(ids, allowed) & ~np.isin(ids, excluded)
        np.testing.assert_array_equal(eligible(ids, allowed, excluded), expected)


def test_a_norm_of_zero_gives_a_cosine_of_zero(tmp_path: Path) -> None:
    rows = np.array([[0, 0], [3, 4], [-3, -4]], np.float32)
    segment = make_segment(tmp_path / "s", np.arange(3), rows)
    ids, values = top_k([segment], np.array([[0.6, 0.8]]), 3, row_scale="inverse_norm")
    np.testing.assert_array_equal(ids, [[1, 0, 2]])
    np.testing.assert_allclose(values, [[1, 0, -1]], rtol=1e-3)


def test_no_rows_and_no_queries_are_empty_answers(segments: list[Segment], queries: np.ndarray) -> None:
    assert top_k([], queries, 5)[0].shape == (len(queries), 0)
    assert top_k([segments[3]], queries, 5)[0].shape == (len(queries), 0)
    assert top_k(segments, queries[:0], 5)[0].shape[0] == 0


def test_exact_values_keep_padding_and_refuse_unknown_ids(segments: list[Segment], queries: np.ndarray) -> None:
    first, last = segments[0].ids[0], segments[-1].ids[-1]
    values = exact_values(segments, queries[:1], np.array([[last, -1, first, last]]))
    assert values[0, 1] == -np.inf
    assert values[0, 0] == values[0, 3]
    with pytest.raises(ValueError, match="in no segment"):
        exact_values(segments, queries[:1], np.array([[first + 1]]))


def test_arguments_that_would_be_searched_wrongly_in_silence_are_refused(
    segments: list[Segment], queries: np.ndarray
) -> None:
    with pytest.raises(ValueError, match="finite"):
        top_k(segments, queries * np.nan, 5)
    with pytest.raises(ValueError, match="wide"):
        top_k(segments, queries[:, :3], 5)
    with pytest.raises(ValueError, match="sort it"):
        top_k(segments, queries, 5, allowed=np.array([3, 1]))
    with pytest.raises(ValueError, match="sort it"):
        top_k(segments, queries, 5, excluded=np.array([1.0, 3.0]))
    with pytest.raises(ValueError, match="k must"):
        top_k(segments, queries, -1)
    with pytest.raises(ValueError, match="row_scale"):
        top_k(segments, queries, 1, row_scale="norm")  # type: ignore[arg-type]
