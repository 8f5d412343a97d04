import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from index import faiss_index
from index.errors import FaissMissingError
from index.faiss_index import FaissIndex, Kind
from index.scan import RowScale, exact_values, top_k
from index.segment import Segment
from tests.index.builders import clustered_sketches, make_segment, make_segments

pytest.importorskip("faiss")

WIDTH = 256
KINDS: tuple[Kind, ...] = ("flat", "rabitq")


@pytest.fixture(autouse=True)
def small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Corpora of a few thousand rows have closed groups, young ones, and rows behind them."""
    monkeypatch.setattr(faiss_index, "GROUP_ROWS", 4_000)
    monkeypatch.setattr(faiss_index, "YOUNG_ROWS", 1_500)


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> list[Segment]:
    """8,000 rows."""
    return make_segments(tmp_path_factory.mktemp("segments"), [3_000, 1, 2_999, 0, 2_000], WIDTH)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    queries = clustered_sketches(np.random.default_rng(5), 8, WIDTH)
    return np.concatenate([queries, -queries])


def open_index(directory: Path, segments: list[Segment], **options: object) -> FaissIndex:
    return FaissIndex.open(directory, segments, names=[str(s.directory) for s in segments], **options)  # type: ignore[arg-type]


def recall(found: np.ndarray, expected: np.ndarray) -> float:
    hits = [len(np.intersect1d(row, wanted)) for row, wanted in zip(found, expected, strict=True)]
    return sum(hits) / expected.size


def shard_files(directory: Path) -> dict[str, tuple[int, int]]:
    """name -> (inode, mtime): equal exactly if the file was not written again."""
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in directory.glob("*.faiss")}


@pytest.mark.parametrize("row_scale", ["none", "inverse_norm"])
@pytest.mark.parametrize("k", [1, 100, 9_999])
def test_flat_answers_as_the_scan_does_to_the_last_bit(
    tmp_path: Path, segments: list[Segment], queries: np.ndarray, row_scale: RowScale, k: int
) -> None:
    index = open_index(tmp_path, segments, row_scale=row_scale)
    assert index.describe()["type"] == "flat"
    for found, expected in zip(index.search(queries, k), top_k(segments, queries, k, row_scale=row_scale), strict=True):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("row_scale", ["none", "inverse_norm"])
def test_rabitq_finds_both_ends_and_reports_exact_scores(
    tmp_path: Path, segments: list[Segment], queries: np.ndarray, row_scale: RowScale, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faiss_index, "MIN_EXTRA", 100)  # or half of the rows would be candidates
    index = open_index(tmp_path, segments, kind="rabitq", row_scale=row_scale)
    ids, scores = index.search(queries, 100, refine=4)
    expected_ids, expected_scores = top_k(segments, queries, 100, row_scale=row_scale)
    for end in (slice(0, 8), slice(8, 16)):
        assert recall(ids[end], expected_ids[end]) >= 0.98
    np.testing.assert_array_equal(scores, exact_values(segments, queries, ids, row_scale=row_scale))
    assert (np.diff(scores, axis=1) <= 0).all()
    assert (scores <= expected_scores).all()


def test_rabitq_finds_what_preconditioned_queries_ask_for(
    tmp_path: Path, segments: list[Segment], queries: np.ndarray
) -> None:
    """Dividing a query by the variances turns it away from the large components: what balancing is there for."""
    variance = np.mean(np.square(segments[0].sketches(0, 3_000)), axis=0)
    preconditioned = queries / (variance + 10 * variance.mean())
    found, _ = open_index(tmp_path, segments, kind="rabitq").search(preconditioned, 100)
    assert recall(found, top_k(segments, preconditioned, 100)[0]) >= 0.98


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.9])
@pytest.mark.parametrize("exclude", [False, True])
def test_filters_hold_at_every_selectivity(
    tmp_path: Path, segments: list[Segment], queries: np.ndarray, kind: Kind, share: float, exclude: bool
) -> None:
    stored = np.concatenate([segment.ids for segment in segments])
    chosen = stored[np.random.default_rng(3).random(len(stored)) < share]
    options = {"excluded" if exclude else "allowed": np.sort(np.concatenate([chosen, chosen + 1]))}
    ids, scores = open_index(tmp_path, segments, kind=kind).search(queries, 50, **options)
    expected_ids, expected_scores = top_k(segments, queries, 50, **options)
    assert ids.shape == expected_ids.shape
    assert (np.isin(ids, chosen) != exclude).all()
    if kind == "flat" or expected_ids.shape[1] < 50 or share == (0.9 if exclude else 0.1):
        np.testing.assert_array_equal(ids, expected_ids)
        np.testing.assert_array_equal(scores, expected_scores)
    else:
        assert recall(ids, expected_ids) >= 0.97 if ids.size else True


@pytest.mark.parametrize("kind", KINDS)
def test_a_deleted_row_never_returns_however_often_the_best_is_deleted(
    tmp_path: Path, segments: list[Segment], queries: np.ndarray, kind: Kind
) -> None:
    index = open_index(tmp_path, segments, kind=kind)
    deleted = np.empty(0, np.int64)
    for _ in range(5):
        ids, _ = index.search(queries, 10, excluded=deleted)
        assert not np.isin(ids, deleted).any()
        assert (ids >= 0).all()
        deleted = np.unique(np.concatenate([deleted, ids.ravel()]))


@pytest.mark.parametrize("kind", KINDS)
def test_ids_need_not_ascend_from_one_segment_to_the_next(tmp_path: Path, queries: np.ndarray, kind: Kind) -> None:
    rng = np.random.default_rng(0)
    ids = rng.permutation(3_000)
    parts = [np.sort(ids[:1_400]), np.sort(ids[1_400:])]
    segments = [
        make_segment(tmp_path / str(number), part, clustered_sketches(rng, len(part), WIDTH))
        for number, part in enumerate(parts)
    ]
    allowed = np.sort(rng.permutation(3_000)[:2_000])
    found, _ = open_index(tmp_path / "index", segments, kind=kind).search(queries, 20, allowed=allowed)
    expected, _ = top_k(segments, queries, 20, allowed=allowed)
    assert np.isin(found, allowed).all()
    assert recall(found, expected) >= (1.0 if kind == "flat" else 0.98)


def test_an_append_writes_only_what_it_completes(
    tmp_path: Path, queries: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faiss_index, "GROUP_ROWS", 1_000)
    monkeypatch.setattr(faiss_index, "YOUNG_ROWS", 300)
    segments = make_segments(tmp_path / "s", [600, 600, 1_000, 400, 200], WIDTH)
    directory = tmp_path / "index"
    first = open_index(directory, segments, kind="rabitq")
    before = shard_files(directory)
    assert (first.describe()["shards"], first.describe()["scanned"], len(before)) == (3, 200, 3)
    segments += make_segments(tmp_path / "s", [50], WIDTH, seed=1, first_id=50_000)
    assert open_index(directory, segments, kind="rabitq", reuse=first).describe()["scanned"] == 250
    assert shard_files(directory) == before
    segments += make_segments(tmp_path / "s", [450, 500], WIDTH, seed=1, first_id=100_000)
    grown = open_index(directory, segments, kind="rabitq", reuse=first)
    after = shard_files(directory)
    assert after.items() >= before.items()
    assert (grown.describe()["shards"], grown.describe()["scanned"], len(after)) == (4, 0, 5)
    assert len(grown.prune()) == 2  # the young shard that the third large one holds now
    assert len(shard_files(directory)) == 4
    assert recall(grown.search(queries, 50)[0], top_k(segments, queries, 50)[0]) >= 0.98
    reopened = open_index(directory, segments, kind="rabitq")
    for found, expected in zip(reopened.search(queries, 50), grown.search(queries, 50), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert shard_files(directory) == {name: seal for name, seal in after.items() if name in shard_files(directory)}


def test_what_has_no_shard_yet_is_scanned_and_answers_are_right_at_once(
    tmp_path: Path, segments: list[Segment], queries: np.ndarray
) -> None:
    expected = top_k(segments, queries, 20)
    waiting = open_index(tmp_path, segments, kind="rabitq", build=False)
    assert (waiting.describe()["shards"], waiting.num_missing) == (0, 8_000)
    for found, wanted in zip(waiting.search(queries, 20), expected, strict=True):
        np.testing.assert_array_equal(found, wanted)
    part = open_index(tmp_path, segments[:2], kind="rabitq")
    assert (part.describe()["shards"], part.num_missing) == (1, 0)
    half = open_index(tmp_path, segments, kind="rabitq", build=False)  # the young shard serves until the large one
    assert (half.describe()["shards"], half.num_missing) == (1, 8_000)
    assert recall(half.search(queries, 20)[0], expected[0]) >= 0.98
    built = open_index(tmp_path, segments, kind="rabitq", reuse=half)
    assert (built.describe()["shards"], built.num_missing) == (2, 0)


def test_a_build_that_is_no_longer_wanted_leaves_the_rest_to_the_scan(
    tmp_path: Path, segments: list[Segment], queries: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("index.rabitq.BUILD_BLOCK_ROWS", 1_000)
    calls: list[None] = []

    def is_wanted() -> bool:
        calls.append(None)
        return len(calls) < 10

    index = open_index(tmp_path, segments, kind="rabitq", is_wanted=is_wanted)
    assert (index.describe()["shards"], index.num_missing) == (1, 2_000)
    assert recall(index.search(queries, 20)[0], top_k(segments, queries, 20)[0]) >= 0.98


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "remove seal"])
def test_a_damaged_shard_is_built_anew_with_the_same_bytes(
    tmp_path: Path, segments: list[Segment], queries: np.ndarray, damage: str
) -> None:
    expected = open_index(tmp_path, segments, kind="rabitq").search(queries, 10)
    path = min(tmp_path.glob("*.faiss"))
    data = path.read_bytes()
    if damage == "flip":
        path.write_bytes(data[:-9] + bytes([data[-9] ^ 1]) + data[-8:])
    elif damage == "truncate":
        path.write_bytes(data[: len(data) // 2])
    elif damage == "remove":
        path.unlink()
    else:
        path.with_suffix(".json").unlink()
    found = open_index(tmp_path, segments, kind="rabitq").search(queries, 10)
    np.testing.assert_array_equal(found, expected)
    assert path.read_bytes() == data


def test_row_scales_share_a_directory_without_mixing(
    tmp_path: Path, segments: list[Segment], queries: np.ndarray
) -> None:
    plain = open_index(tmp_path, segments, kind="rabitq")
    cosine = open_index(tmp_path, segments, kind="rabitq", row_scale="inverse_norm")
    assert len(shard_files(tmp_path)) == 4
    assert plain.prune() == cosine.prune() == []
    assert len(open_index(tmp_path, segments, kind="flat").prune()) == 4  # both files of both shards it does without
    assert len(shard_files(tmp_path)) == 2


def test_auto_changes_kind_at_the_threshold(
    tmp_path: Path, segments: list[Segment], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faiss_index, "FLAT_MAX_ROWS", 8_001)
    assert open_index(tmp_path, segments).describe()["type"] == "flat"
    monkeypatch.setattr(faiss_index, "FLAT_MAX_ROWS", 8_000)
    described = open_index(tmp_path, segments).describe()
    assert described["type"] == "rabitq"
    assert described["rows"] == 8_000
    assert described["bytes"] == sum(path.stat().st_size for path in tmp_path.glob("*.faiss"))


def test_auto_keeps_narrow_sketches_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bit a coordinate is too coarse where there are few coordinates."""
    monkeypatch.setattr(faiss_index, "FLAT_MAX_ROWS", 100)
    narrow = make_segments(tmp_path / "s", [500], faiss_index.MIN_RABITQ_WIDTH - 1)
    assert open_index(tmp_path / "index", narrow).describe()["type"] == "flat"


@pytest.mark.parametrize("kind", KINDS)
def test_searches_from_many_threads_while_a_grown_index_opens_agree(
    tmp_path: Path, queries: np.ndarray, kind: Kind, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faiss_index, "GROUP_ROWS", 2_000)
    monkeypatch.setattr(faiss_index, "YOUNG_ROWS", 900)
    segments = make_segments(tmp_path / "s", [2_000, 1_500, 1_000], WIDTH)
    index = open_index(tmp_path / "index", segments[:2], kind=kind)
    allowed = segments[0].ids[::2]
    expected = [index.search(queries, 20), index.search(queries, 20, allowed=allowed)]
    failures: list[str] = []
    stop = threading.Event()

    def search() -> None:
        while not stop.is_set():
            for answer, options in zip(expected, ({}, {"allowed": allowed}), strict=True):
                if not all(map(np.array_equal, index.search(queries, 20, **options), answer)):
                    failures.append("an answer changed")

    threads = [threading.Thread(target=search) for _ in range(4)]
    for thread in threads:
        thread.start()
    for number in range(3):
        grown = open_index(tmp_path / f"index-{number % 2}", segments, kind=kind, reuse=index)
        grown.search(queries, 20)
        grown.prune()
    stop.set()
    for thread in threads:
        thread.join()
    assert failures == []
    assert grown.describe()["rows"] == 4_500


@pytest.mark.parametrize("kind", KINDS)
def test_tiny_and_degenerate_corpora(tmp_path: Path, kind: Kind) -> None:
    query = np.ones((2, 3), np.float32)
    cases = {
        "nothing": [],
        "no rows": [np.empty((0, 3), np.float32)],
        "one row": [np.array([[1, 2, 3]], np.float32)],
        "zeros": [np.zeros((5_000, 3), np.float32)],
        "copies": [np.tile(np.array([[1, 0, 2]], np.float32), (20, 1)), np.tile([[1, 0, 2]], (30, 1)).astype("f4")],
    }
    for name, blocks in cases.items():
        starts = np.cumsum([0, *(len(block) for block in blocks)])
        segments = [
            make_segment(tmp_path / name / str(at), np.arange(start, start + len(block)), block)
            for at, (start, block) in enumerate(zip(starts, blocks, strict=False))
        ]
        index = open_index(tmp_path / f"{name} index", segments, kind=kind)
        num_rows = int(starts[-1])
        ids, scores = index.search(query, 40)
        assert ids.shape == scores.shape == (2, min(40, num_rows)), name
        if num_rows:
            expected = exact_values(segments, query, ids)
            np.testing.assert_array_equal(scores, expected)
            if name != "zeros" or kind == "flat":
                np.testing.assert_array_equal(ids, top_k(segments, query, 40)[0])
        assert index.search(query[:0], 5)[0].shape[0] == 0
        assert index.search(query, 0)[0].shape == (2, 0)


def test_arguments_that_do_not_fit_are_refused(tmp_path: Path, segments: list[Segment], queries: np.ndarray) -> None:
    with pytest.raises(ValueError, match="names"):
        FaissIndex.open(tmp_path, segments, names=["a"] * len(segments))
    with pytest.raises(ValueError, match="kind"):
        open_index(tmp_path, segments, kind="hnsw")
    with pytest.raises(ValueError, match="row_scale"):
        open_index(tmp_path, segments, row_scale="norm")
    narrow = make_segment(tmp_path / "narrow", np.arange(2), np.ones((2, 3), np.float32))
    with pytest.raises(ValueError, match="width"):
        open_index(tmp_path, [*segments, narrow])
    index = open_index(tmp_path, segments)
    with pytest.raises(ValueError, match="wide"):
        index.search(queries[:, :5], 1)
    with pytest.raises(ValueError, match="finite"):
        index.search(queries * np.inf, 1)
    with pytest.raises(ValueError, match="k must"):
        index.search(queries, -1)
    with pytest.raises(ValueError, match="sort it"):
        index.search(queries, 1, allowed=np.array([2, 1]))


def test_without_faiss_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "faiss", None)
    stored = make_segments(tmp_path / "s", [2_000], 8)
    with pytest.raises(FaissMissingError, match="pip install"):
        open_index(tmp_path, stored, kind="rabitq")
    assert open_index(tmp_path, stored).describe()["type"] == "flat"  # a scan needs no faiss


def test_importing_the_module_does_not_import_faiss() -> None:
    code = "import sys, index.faiss_index; print([name for name in sys.modules if name.split('.')[0] == 'faiss'])"
    root = Path(faiss_index.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], check=True, cwd=root, capture_output=True, text=True)
    assert done.stdout == "[]\n"
