import hashlib
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from index.errors import StoredFileError
from index.segment import Segment, SegmentArrays, token_dtype, verify_files, write_segment
from tests.index.builders import clustered_sketches, make_segment, segment_arrays


@pytest.fixture
def arrays() -> SegmentArrays:
    return segment_arrays(np.arange(0, 60, 3), clustered_sketches(np.random.default_rng(0), 20, 8))


def test_what_is_read_is_what_was_written_up_to_float16(tmp_path: Path, arrays: SegmentArrays) -> None:
    files = write_segment(tmp_path, arrays)
    segment = Segment(tmp_path)
    assert (segment.num_samples, segment.num_tokens, segment.width) == (20, len(arrays.hidden_scales), 8)
    np.testing.assert_array_equal(segment.ids, arrays.ids)
    np.testing.assert_array_equal(segment.norms, arrays.norms)
    largest = np.abs(arrays.sketches).max(axis=1, keepdims=True)
    assert (np.abs(segment.sketches(0, 20) - arrays.sketches) <= largest * 2.0**-11).all()
    for row in range(20):
        tokens = slice(arrays.offsets[row], arrays.offsets[row + 1])
        factors = segment.factors(row)
        for name in ("hidden", "hidden_scales", "error_tokens", "error_values", "error_scales"):
            read, written = getattr(factors, name), getattr(arrays, name)[tokens]
            assert read.dtype == written.dtype
            np.testing.assert_array_equal(read, written)
    assert verify_files(tmp_path, files) == []
    assert {file.name for file in files} == {path.name for path in tmp_path.iterdir()}


def test_blocks_rows_and_slices_are_the_same_sketches(tmp_path: Path, arrays: SegmentArrays) -> None:
    write_segment(tmp_path, arrays)
    segment = Segment(tmp_path)
    blocks = list(segment.iter_blocks(block_rows=7))
    assert [len(ids) for ids, _ in blocks] == [7, 7, 6]
    np.testing.assert_array_equal(np.concatenate([ids for ids, _ in blocks]), segment.ids)
    np.testing.assert_array_equal(np.concatenate([rows for _, rows in blocks]), segment.sketches(0, 99))
    rows = np.array([19, 0, 5, 5])
    np.testing.assert_array_equal(segment.sketch_rows(rows), segment.sketches(0, 20)[rows])
    assert segment.sketches(3, 3).shape == (0, 8)
    with pytest.raises(IndexError):
        segment.factors(20)
    with pytest.raises(IndexError):
        segment.factors(-1)


@pytest.mark.parametrize("magnitude", [1e-42, 1e-30, 1e-8, 1.0, 1e6, 1e30, 2.5e38])
def test_no_magnitude_over_or_underflows(tmp_path: Path, magnitude: float) -> None:
    sketches = np.array([[1, -0.5, 0.25], [0, 0, 0]], np.float32) * np.float32(magnitude)
    segment = make_segment(tmp_path / "s", np.array([0, 1]), sketches.astype(np.float32))
    np.testing.assert_allclose(segment.sketches(0, 2), sketches, rtol=2e-3, atol=0)


def test_the_format_is_safetensors_with_these_bytes(tmp_path: Path, arrays: SegmentArrays) -> None:
    """Golden bytes: if these change, stores that exist cannot be read: raise the version in FORMAT instead."""
    fixed = SegmentArrays(
        ids=np.array([3, 5], np.int64),
        norms=np.array([2, 0], np.float32),
        sketches=np.array([[1, -2], [0, 0]], np.float32),
        hidden=np.array([[1, -1, 2]], np.int8),
        hidden_scales=np.array([0.5], np.float32),
        error_tokens=np.array([[7, 65_535]], np.uint16),
        error_values=np.array([[-127, 127]], np.int8),
        error_scales=np.array([0.25], np.float32),
        offsets=np.array([0, 1, 1], np.int64),
    )
    files = write_segment(tmp_path, fixed)
    assert [(file.name, file.sha256) for file in files] == [
        ("sketches.safetensors", "20c4af66280c0caae52bc8f15e5048620a8df7953540f36b3c42b36fb8230385"),
        ("factors.safetensors", "2eec3d2e4a65cc3e3e05dd2e2eb8f7512c570d301cf9ec2013975aa4d9b1ff90"),
    ]
    tensors = load_file(tmp_path / "sketches.safetensors")
    np.testing.assert_array_equal(tensors["sketches"], np.array([[0.5, -1], [0, 0]], np.float16))
    np.testing.assert_array_equal(tensors["scales"], np.array([2, 1], np.float32))


def broken(arrays: SegmentArrays, name: str, index: int, value: float) -> SegmentArrays:
    array = getattr(arrays, name).copy()
    array.reshape(-1)[index] = value
    return replace(arrays, **{name: array})


@pytest.mark.parametrize(
    ("name", "index", "value"),
    [
        ("ids", 0, -1),
        ("ids", 1, 0),
        ("ids", 5, 100),
        ("norms", 0, -1.0),
        ("norms", 0, np.nan),
        ("sketches", 3, np.inf),
        ("hidden_scales", 0, np.nan),
        ("error_scales", 0, -0.5),
        ("offsets", 0, 1),
        ("offsets", -1, 10_000),
        ("offsets", 5, 10_000),
    ],
)
def test_a_bad_value_is_named_and_nothing_is_written(
    tmp_path: Path, arrays: SegmentArrays, name: str, index: int, value: float
) -> None:
    with pytest.raises(ValueError, match=name):
        write_segment(tmp_path, broken(arrays, name, index, value))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", [field.name for field in fields(SegmentArrays)])
def test_a_wrong_dtype_shape_or_length_of_any_array_is_refused(
    tmp_path: Path, arrays: SegmentArrays, name: str
) -> None:
    array = getattr(arrays, name)
    for wrong in (array.astype(np.float64), array[..., None], array[:-1], array.tolist()):
        with pytest.raises(ValueError, match="must"):
            write_segment(tmp_path, replace(arrays, **{name: wrong}))
    assert list(tmp_path.iterdir()) == []


def test_tokens_are_16_bits_wide_exactly_where_the_vocabulary_fits(tmp_path: Path) -> None:
    assert token_dtype(65_536) == np.uint16
    assert token_dtype(65_537) == np.uint32
    arrays = segment_arrays(np.arange(4), np.ones((4, 2), np.float32), vocabulary=150_000)
    write_segment(tmp_path, arrays)
    assert Segment(tmp_path).factors(3).error_tokens.dtype == np.uint32
    np.testing.assert_array_equal(Segment(tmp_path).factors(3).error_tokens, arrays.error_tokens[arrays.offsets[3] :])


def test_a_segment_is_never_overwritten(tmp_path: Path, arrays: SegmentArrays) -> None:
    files = write_segment(tmp_path, arrays)
    with pytest.raises(FileExistsError):
        write_segment(tmp_path, replace(arrays, norms=arrays.norms * 2))
    assert verify_files(tmp_path, files) == []


def test_no_samples_and_no_tokens_are_a_segment(tmp_path: Path) -> None:
    segment = make_segment(tmp_path / "s", np.empty(0, np.int64), np.empty((0, 5), np.float32))
    assert (segment.num_samples, segment.num_tokens, segment.width) == (0, 0, 5)
    assert segment.sketches(0, 10).shape == (0, 5)
    assert list(segment.iter_blocks()) == []


def test_an_open_segment_holds_no_file_descriptor(tmp_path: Path, arrays: SegmentArrays) -> None:
    """A store of thousands of segments must not run into the limit on open files."""
    write_segment(tmp_path, arrays)
    descriptors = Path("/proc/self/fd")
    if not descriptors.exists():
        pytest.skip("needs /proc")
    before = len(list(descriptors.iterdir()))
    segment = Segment(tmp_path)
    segment.sketches(0, 20)
    segment.factors(0)
    assert len(list(descriptors.iterdir())) == before


@pytest.mark.parametrize("name", ["sketches.safetensors", "factors.safetensors"])
def test_every_truncation_is_refused(tmp_path: Path, arrays: SegmentArrays, name: str) -> None:
    write_segment(tmp_path, arrays)
    data = (tmp_path / name).read_bytes()
    for length in [*range(0, len(data), 37), len(data) - 1]:
        (tmp_path / name).write_bytes(data[:length])
        with pytest.raises(StoredFileError, match=name):
            Segment(tmp_path)
    (tmp_path / name).write_bytes(data + b"\0")
    with pytest.raises(StoredFileError, match=name):
        Segment(tmp_path)


@pytest.mark.parametrize("name", ["sketches.safetensors", "factors.safetensors"])
def test_flipped_bits_are_refused_or_found_by_verify_and_never_crash(
    tmp_path: Path, arrays: SegmentArrays, name: str
) -> None:
    files = write_segment(tmp_path, arrays)
    data = (tmp_path / name).read_bytes()
    header_bytes = 8 + int.from_bytes(data[:8], "little")
    rng = np.random.default_rng(1)
    for trial in range(300):
        flipped = bytearray(data)
        flipped[rng.integers(0, header_bytes if trial < 250 else len(data))] ^= 1 << rng.integers(0, 8)
        (tmp_path / name).write_bytes(flipped)
        assert len(verify_files(tmp_path, files)) == 1
        try:
            segment = Segment(tmp_path)
            segment.sketches(0, 20)
            for row in range(segment.num_samples):
                segment.factors(row)
        except StoredFileError:
            pass


def test_files_of_two_segments_are_not_one(tmp_path: Path, arrays: SegmentArrays) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for directory, ids in ((one, np.arange(20)), (two, np.arange(9))):
        make_segment(directory, ids, clustered_sketches(np.random.default_rng(0), len(ids), 8))
    (one / "factors.safetensors").write_bytes((two / "factors.safetensors").read_bytes())
    with pytest.raises(StoredFileError):
        Segment(one).factors(0)


def test_recorded_hashes_are_of_the_bytes_on_disk(tmp_path: Path, arrays: SegmentArrays) -> None:
    for file in write_segment(tmp_path, arrays):
        data = (tmp_path / file.name).read_bytes()
        assert (file.sha256, file.num_bytes) == (hashlib.sha256(data).hexdigest(), len(data))
