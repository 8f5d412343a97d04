"""The device's search answers as the scan does, on the CPU everywhere and on a GPU where there is one."""

from pathlib import Path

import numpy as np
import pytest
import torch

from index import device_scan
from index.device_scan import DeviceScan
from index.scan import RowScale, top_k
from index.segment import Segment
from tests.index.builders import clustered_sketches, make_segments

WIDTH = 64
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICES = [
    pytest.param(torch.device("cpu"), id="cpu"),
    pytest.param(torch.device("cuda"), id="cuda", marks=[pytest.mark.gpu, needs_cuda]),
]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks, and fewer rows kept than there are."""
    monkeypatch.setattr(device_scan, "BLOCK_ROWS", 700)
    monkeypatch.setattr(device_scan, "KEPT", 100)


@pytest.fixture(scope="module")
def segments(tmp_path_factory: pytest.TempPathFactory) -> list[Segment]:
    """3,000 rows."""
    return make_segments(tmp_path_factory.mktemp("segments"), [1_200, 1, 0, 1_799], WIDTH)


@pytest.fixture(scope="module")
def queries() -> np.ndarray:
    queries = clustered_sketches(np.random.default_rng(5), 4, WIDTH)
    return np.concatenate([queries, -queries])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("row_scale", ["none", "inverse_norm"])
@pytest.mark.parametrize("k", [0, 1, 50, 5_000])
def test_answers_are_those_of_the_scan(
    segments: list[Segment], queries: np.ndarray, device: torch.device, row_scale: RowScale, k: int
) -> None:
    found = DeviceScan(segments, device, row_scale).search(queries, k)
    for got, expected in zip(found, top_k(segments, queries, k, row_scale=row_scale), strict=True):
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("share", [0.0, 0.001, 0.1, 0.9, 1.0])
@pytest.mark.parametrize("which", ["allowed", "excluded"])
def test_filters_hold_at_every_selectivity(
    segments: list[Segment], queries: np.ndarray, device: torch.device, share: float, which: str
) -> None:
    stored = np.concatenate([segment.ids for segment in segments])
    options = {which: stored[np.random.default_rng(3).random(len(stored)) < share]}
    found = DeviceScan(segments, device).search(queries, 40, **options)
    for got, expected in zip(found, top_k(segments, queries, 40, **options), strict=True):
        np.testing.assert_array_equal(got, expected)


def test_magnitudes_beyond_float16_change_nothing(segments: list[Segment], queries: np.ndarray) -> None:
    scan = DeviceScan(segments, torch.device("cpu"))
    for factor in (1e-30, 1e30):
        np.testing.assert_array_equal(scan.search(queries * factor, 20)[0], scan.search(queries, 20)[0])
    assert (scan.search(queries * 0, 20)[1] == 0).all()


def test_arguments_that_do_not_fit_are_refused(segments: list[Segment], queries: np.ndarray) -> None:
    scan = DeviceScan(segments, torch.device("cpu"))
    with pytest.raises(ValueError, match="k must"):
        scan.search(queries, -1)
    with pytest.raises(ValueError, match="wide"):
        scan.search(queries[:, :5], 1)
    with pytest.raises(ValueError, match="sort it"):
        scan.search(queries, 1, allowed=np.array([2, 1]))


def test_only_a_gpu_is_chosen_by_itself(segments: list[Segment]) -> None:
    assert not DeviceScan.fits(segments, torch.device("cpu"))
    described = DeviceScan(segments, torch.device("cpu")).describe()
    assert (described["type"], described["rows"], described["device"]) == ("device", 3_000, "cpu")
    assert described["bytes"] == 3_000 * (2 * WIDTH + 4)


@pytest.mark.gpu
@needs_cuda
def test_a_gpu_is_chosen_while_the_sketches_fit(segments: list[Segment], monkeypatch: pytest.MonkeyPatch) -> None:
    assert DeviceScan.fits(segments, torch.device("cuda"))
    monkeypatch.setattr(device_scan, "SHARE", 0.0)
    assert not DeviceScan.fits(segments, torch.device("cuda"))


def test_an_empty_corpus_has_no_results(tmp_path: Path, queries: np.ndarray) -> None:
    for number, stored in enumerate(([], make_segments(tmp_path / "none", [0], WIDTH))):
        assert DeviceScan(stored, torch.device("cpu")).search(queries, 5)[0].shape == (8, 0), number
