import hashlib
from dataclasses import fields, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save

from index.errors import StoredFileError
from index.factors import QuantizedFactors
from index.segment import Segment, SegmentArrays, gather_factors, verify_files, write_segment
from tests.index.builders import clustered_sketches, make_segment, random_factors, segment_arrays


@pytest.fixture
def arrays() -> SegmentArrays:
    return segment_arrays(np.arange(0, 60, 3), clustered_sketches(np.random.default_rng(0), 20, 8))


def assert_equal_factors(read: QuantizedFactors, written: QuantizedFactors) -> None:
    for field in fields(QuantizedFactors):
        one, other = getattr(read, field.name), getattr(written, field.name)
        assert one.dtype == other.dtype
        np.testing.assert_array_equal(one, other)


def test_what_is_read_is_what_was_written_up_to_float16(tmp_path: Path, arrays: SegmentArrays) -> None:
    files = write_segment(tmp_path, arrays)
    segment = Segment(tmp_path)
    assert (segment.num_samples, segment.num_tokens, segment.width) == (20, len(arrays.factors), 8)
    np.testing.assert_array_equal(segment.ids, arrays.ids)
    np.testing.assert_array_equal(segment.norms, arrays.norms)
    largest = np.abs(arrays.sketches).max(axis=1, keepdims=True)
    assert (np.abs(segment.sketches(0, 20) - arrays.sketches) <= largest * 2.0**-11).all()
    for row in range(20):
        assert_equal_factors(segment.factors(row), arrays.factors[arrays.offsets[row] : arrays.offsets[row + 1]])
    assert verify_files(tmp_path, files) == []
    assert {file.name for file in files} == {path.name for path in tmp_path.iterdir()}


def test_factors_are_gathered_from_several_segments_in_any_order(tmp_path: Path, arrays: SegmentArrays) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_segment(tmp_path / name, arrays)
    segments = [Segment(tmp_path / name) for name in ("a", "b")]
    places = [(segments[at], row) for at, row in ((1, 19), (0, 3), (1, 0), (0, 3), (0, 19))]
    parts = [segment.factors(row) for segment, row in places]
    assert_equal_factors(gather_factors(places), QuantizedFactors.concatenate(parts))
    assert [segment.num_tokens_of[row] for segment, row in places] == [len(part) for part in parts]
    assert len(gather_factors([])) == 0


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


# One token: h in bands [0], [1], [2] of steps 0.5, 0.25, 2; label 7; others 2 and 66,000 with e of -1 and -3 steps.
TOKEN = QuantizedFactors(
    hidden=np.array([[1, -1, 2]], np.int8),
    steps=np.array([[0.125, 0.5, 0.25, 2]], np.float32),
    labels=np.array([7], np.uint32),
    label_codes=np.array([31], np.uint8),
    counts=np.array([2], np.uint8),
    others=np.array([2, 66_000], np.uint32),
    other_codes=np.array([1, 3], np.uint8),
)
PACKED = bytes.fromhex("28b52ffd2010") + bytes.fromhex(
    "810000" "01ff02" "1f02" "0702d0" "000001" "000001" "0103"
)  # fmt: skip


def fixed_arrays() -> SegmentArrays:
    return SegmentArrays(
        ids=np.array([3, 5], np.int64),
        norms=np.array([2, 0], np.float32),
        sketches=np.array([[1, -2], [0, 0]], np.float32),
        factors=TOKEN,
        offsets=np.array([0, 1, 1], np.int64),
    )


def test_the_format_is_safetensors_with_these_bytes(tmp_path: Path) -> None:
    """Golden bytes: if these change, stores that exist cannot be read: raise the version in FORMAT instead."""
    sketches, *_ = write_segment(tmp_path, fixed_arrays())
    assert sketches.sha256 == "ec93e3e258ccc3c5d006d3f2b51fc64b5472376e0ec9fe42a1f2a026912a1f62"
    tensors = load_file(tmp_path / "sketches.safetensors")
    np.testing.assert_array_equal(tensors["sketches"], np.array([[0.5, -1], [0, 0]], np.float16))
    np.testing.assert_array_equal(tensors["scales"], np.array([2, 1], np.float32))


def test_factors_that_another_zstd_packed_are_read(tmp_path: Path) -> None:
    """Golden bytes of the factors: one raw block, as the specification of zstd has it; any compressor may be used."""
    write_segment(tmp_path, fixed_arrays())
    tensors = load_file(tmp_path / "factors.safetensors")
    np.testing.assert_array_equal(tensors["factor_rank"], [3])
    np.testing.assert_array_equal(tensors["steps"], [[0.125, 0.5, 0.25, 2], [0, 0, 0, 0]])
    tensors |= {"packed": np.frombuffer(PACKED, np.uint8), "places": np.array([0, len(PACKED), len(PACKED)])}
    (tmp_path / "factors.safetensors").write_bytes(save(tensors, {"format": "forvalue-segment/2"}))
    factors = Segment(tmp_path).factors(0)
    assert_equal_factors(factors, TOKEN)
    np.testing.assert_array_equal(factors.hidden_states(), [[0.5, -0.25, 4]])
    np.testing.assert_array_equal(factors.label_errors(), [31 * 0.125 / 4])
    np.testing.assert_array_equal(factors.other_errors(), [-0.125, -0.375])
    assert len(Segment(tmp_path).factors(1)) == 0


def test_equal_segments_have_equal_bytes(tmp_path: Path, arrays: SegmentArrays) -> None:
    files = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        files.append(write_segment(tmp_path / name, arrays))
    assert files[0] == files[1]


def test_a_segment_of_the_first_format_is_refused_with_what_to_do(tmp_path: Path, arrays: SegmentArrays) -> None:
    write_segment(tmp_path, arrays)
    path = tmp_path / "factors.safetensors"
    path.write_bytes(path.read_bytes().replace(b"forvalue-segment/2", b"forvalue-segment/1"))
    with pytest.raises(StoredFileError, match=r"'forvalue-segment/1', expected 'forvalue-segment/2'.*ingest again"):
        Segment(tmp_path)


ARRAY_NAMES = [field.name for field in fields(SegmentArrays) if field.name != "factors"]
FACTOR_NAMES = [field.name for field in fields(QuantizedFactors)]


def value_of(arrays: SegmentArrays, name: str) -> np.ndarray:
    found: np.ndarray = getattr(arrays if name in ARRAY_NAMES else arrays.factors, name)
    return found


def with_array(arrays: SegmentArrays, name: str, array: object) -> SegmentArrays:
    if name in ARRAY_NAMES:
        return replace(arrays, **{name: array})
    return replace(arrays, factors=replace(arrays.factors, **{name: array}))


def broken(arrays: SegmentArrays, name: str, index: int, value: float) -> SegmentArrays:
    array = value_of(arrays, name).copy()
    array.reshape(-1)[index] = value
    return with_array(arrays, name, array)


@pytest.mark.parametrize(
    ("name", "index", "value"),
    [
        ("ids", 0, -1),
        ("ids", 1, 0),
        ("ids", 5, 100),
        ("norms", 0, -1.0),
        ("norms", 0, np.nan),
        ("sketches", 3, np.inf),
        ("steps", 0, np.nan),
        ("steps", 2, -0.5),
        ("labels", 0, 1 << 24),
        ("others", 0, 1 << 24),
        ("other_codes", 0, 0),
        ("counts", 0, 200),
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


def test_steps_are_those_of_the_sample_and_others_ascend(tmp_path: Path, arrays: SegmentArrays) -> None:
    last_of_pair = int(np.flatnonzero(np.diff(arrays.offsets) > 1)[0])
    columns = arrays.factors.steps.shape[1]
    with pytest.raises(ValueError, match="steps must be the same for all tokens of a sample"):
        write_segment(tmp_path, broken(arrays, "steps", int(arrays.offsets[last_of_pair] + 1) * columns, 0.77))
    ends = np.cumsum(arrays.factors.counts)
    pair = int(np.flatnonzero(arrays.factors.counts > 1)[0])
    with pytest.raises(ValueError, match="others must ascend within each token"):
        write_segment(tmp_path, broken(arrays, "others", int(ends[pair]) - 1, 0))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ARRAY_NAMES + FACTOR_NAMES)
def test_a_wrong_dtype_shape_or_length_of_any_array_is_refused(
    tmp_path: Path, arrays: SegmentArrays, name: str
) -> None:
    array = value_of(arrays, name)
    for wrong in (array.astype(np.float64), array[..., None], array[:-1], array.tolist()):
        with pytest.raises(ValueError, match="must"):
            write_segment(tmp_path, with_array(arrays, name, wrong))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("vocabulary", [300, 65_537, 1 << 24])
@pytest.mark.parametrize("factor_rank", [1, 2, 3, 64, 100])
def test_any_vocabulary_rank_and_length_come_back_as_they_were(
    tmp_path: Path, vocabulary: int, factor_rank: int
) -> None:
    counts = [0, 1, 400, 0, 2, 37, 0]
    factors = random_factors(np.random.default_rng(1), counts, factor_rank, vocabulary)
    offsets = np.cumsum([0, *counts])
    sketches = np.ones((7, 2), np.float32)
    arrays = SegmentArrays(np.arange(7), np.ones(7, np.float32), sketches, factors, offsets)
    write_segment(tmp_path, arrays)
    segment = Segment(tmp_path)
    for row, (start, stop) in enumerate(pairwise(offsets.tolist())):
        assert_equal_factors(segment.factors(row), factors[start:stop])


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
