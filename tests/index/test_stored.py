import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from index.errors import StoredFileError
from index.stored import MappedTensors, StoredFile, hash_file, verify_files, write_durably


def test_the_hash_of_a_file_is_the_sha256_of_its_bytes_beyond_one_block(tmp_path: Path) -> None:
    data = bytes(range(256)) * 10_000
    (tmp_path / "a").write_bytes(data)
    assert hash_file(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_a_file_is_never_overwritten(tmp_path: Path) -> None:
    stored = write_durably(tmp_path / "a", b"first")
    assert stored == StoredFile("a", hashlib.sha256(b"first").hexdigest(), 5)
    with pytest.raises(FileExistsError):
        write_durably(tmp_path / "a", b"second")
    assert (tmp_path / "a").read_bytes() == b"first"


def test_verify_names_each_problem_and_only_those(tmp_path: Path) -> None:
    files = [write_durably(tmp_path / name, b"some bytes") for name in ("good", "short", "flipped", "gone")]
    assert verify_files(tmp_path, files) == []
    (tmp_path / "short").write_bytes(b"some")
    (tmp_path / "flipped").write_bytes(b"some bytez")
    (tmp_path / "gone").unlink()
    problems = verify_files(tmp_path, files)
    assert [Path(problem.split(":")[0]).name for problem in problems] == ["short", "flipped", "gone"]
    assert "4 bytes, recorded 10" in problems[0]
    assert "sha256" in problems[1]
    assert "missing" in problems[2]


def test_mapped_tensors_are_what_safetensors_wrote_and_cannot_be_written_to(tmp_path: Path) -> None:
    tensors = {"a": np.arange(6, dtype=np.int64).reshape(2, 3), "b": np.zeros((0, 4), np.float16)}
    (tmp_path / "x").write_bytes(save(tensors, {"format": "test/1"}))
    mapped = MappedTensors(tmp_path / "x", "test/1")
    np.testing.assert_array_equal(mapped.array("a"), tensors["a"])
    assert mapped.array("b").shape == (0, 4)
    with pytest.raises(ValueError, match="read-only"):
        mapped.array("a")[0, 0] = 1


def test_a_file_truncated_after_the_check_raises_instead_of_faulting(tmp_path: Path) -> None:
    data = save({"a": np.arange(6)}, {"format": "test/1"})
    (tmp_path / "x").write_bytes(data)
    mapped = MappedTensors(tmp_path / "x", "test/1")
    (tmp_path / "x").write_bytes(data[:-1])
    with pytest.raises(StoredFileError, match="cannot be mapped"):
        mapped.array("a")


@pytest.mark.parametrize(
    "header",
    [
        "[]",
        "{",
        "[" * 100_000,
        '{"a": 1}',
        '{"__metadata__": {"format": "other/1"}}',
        '{"__metadata__": {"format": "test/1"}, "a": {"dtype": "F64", "shape": [1], "data_offsets": [0, 8]}}',
        '{"__metadata__": {"format": "test/1"}, "a": {"dtype": "I64", "shape": [1], "data_offsets": [0, 4]}}',
        '{"__metadata__": {"format": "test/1"}, "a": {"dtype": "I64", "shape": [2], "data_offsets": [0, 16]}}',
        '{"__metadata__": {"format": "test/1"}, "a": {"dtype": "I64", "shape": [-1], "data_offsets": [8, 0]}}',
        '{"__metadata__": {"format": "test/1"}, "a": {"dtype": "I8", "shape": [8], "data_offsets": [-8, 0]}}',
        '{"__metadata__": {"format": "test/1"}, "a": {"dtype": "I8", "shape": [Infinity], "data_offsets": [0, 8]}}',
    ],
)
def test_a_header_that_does_not_add_up_is_refused(tmp_path: Path, header: str) -> None:
    data = header.encode()
    (tmp_path / "x").write_bytes(len(data).to_bytes(8, "little") + data + bytes(8))
    with pytest.raises(StoredFileError, match="x: "):
        MappedTensors(tmp_path / "x", "test/1")


def test_a_missing_or_empty_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    for name in ("empty", "none"):
        with pytest.raises(StoredFileError):
            MappedTensors(tmp_path / name, "test/1")


def test_a_header_length_beyond_reason_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes((1 << 60).to_bytes(8, "little") + json.dumps({}).encode())
    with pytest.raises(StoredFileError, match="truncated header"):
        MappedTensors(tmp_path / "x", "test/1")
