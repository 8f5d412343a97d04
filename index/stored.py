"""Files that are written once: how they are hashed, checked and mapped.

Everything that `index` reads from disk goes through `MappedTensors`, which checks a safetensors file's header against
the file's size before it maps a byte: reading past the end of a truncated mapping would kill the process (SIGBUS).
"""

import hashlib
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from index.errors import StoredFileError

__all__ = ["MappedTensors", "StoredFile", "fsync_directory", "hash_file", "verify_files", "write_durably"]

HASH_BLOCK_BYTES = 1 << 20
MAX_HEADER_BYTES = 1 << 20  # ours are below 1 KB; a flipped length must not make us read gigabytes

DTYPES: dict[str, np.dtype] = {
    "I8": np.dtype("int8"),
    "U8": np.dtype("uint8"),
    "U32": np.dtype("<u4"),
    "I64": np.dtype("<i8"),
    "F16": np.dtype("<f2"),
    "F32": np.dtype("<f4"),
}


@dataclass(frozen=True)
class StoredFile:
    """A written file as the database remembers it: name within its directory, sha256 in hex, size in bytes."""

    name: str
    sha256: str
    num_bytes: int


def hash_file(path: Path) -> str:
    """Return the sha256 of a file's bytes in hex, reading it in blocks. Raises OSError where it cannot be read."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def verify_files(directory: Path, files: Sequence[StoredFile]) -> list[str]:
    """Compare the files of a directory with what was recorded when they were written.

    Returns one line for each problem (missing or unreadable, wrong size, wrong hash); an empty list is a clean
    bill. Only the recorded files are looked at: what else lies in the directory is not judged.
    """
    problems = []
    for stored in files:
        path = directory / stored.name
        try:
            num_bytes = path.stat().st_size
            sha256 = hash_file(path) if num_bytes == stored.num_bytes else ""
        except OSError as error:
            problems.append(f"{path}: missing or unreadable ({error.strerror})")
            continue
        if num_bytes != stored.num_bytes:
            problems.append(f"{path}: {num_bytes} bytes, recorded {stored.num_bytes}")
        elif sha256 != stored.sha256:
            problems.append(f"{path}: sha256 {sha256[:12]}..., recorded {stored.sha256[:12]}...")
    return problems


def write_durably(path: Path, data: bytes) -> StoredFile:
    """Write a new file and wait until its bytes are on disk. Raises FileExistsError rather than overwrite one."""
    with path.open("xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return StoredFile(path.name, hashlib.sha256(data).hexdigest(), len(data))


def fsync_directory(directory: Path) -> None:
    """Make the names in a directory durable, as fsync makes a file's bytes durable."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@dataclass(frozen=True)
class _Tensor:
    """Where one tensor lies: byte range within the file, dtype and shape."""

    start: int
    stop: int
    dtype: np.dtype
    shape: tuple[int, ...]


class MappedTensors:
    """A safetensors file, mapped read-only.

    The header is read and checked when the object is made; the bytes are mapped on first use, without holding a file
    descriptor (a store of many segments would run out of them). Safe to share between threads.

    Raises StoredFileError if the file is missing, truncated, of another format, or its header does not add up. Bit
    flips inside the tensors' bytes are not seen here: `verify_files` is for that.
    """

    def __init__(self, path: Path, format_name: str) -> None:
        self.path = path
        self._mapped: torch.Tensor | None = None
        try:
            self._num_bytes = path.stat().st_size
            with path.open("rb") as file:
                header_bytes = int.from_bytes(file.read(8), "little")
                header = file.read(min(header_bytes, MAX_HEADER_BYTES))
        except OSError as error:
            raise self._error(f"missing or unreadable ({error.strerror})") from error
        if len(header) < 2 or header_bytes != len(header):
            raise self._error(f"truncated header: {len(header)} of {header_bytes} bytes")
        self._tensors = self._parse(header, format_name)

    def _error(self, problem: str) -> StoredFileError:
        return StoredFileError(f"{self.path}: {problem}; restore the file from a backup")

    def _parse(self, header: bytes, format_name: str) -> dict[str, _Tensor]:
        try:
            entries = json.loads(header)
            found = entries.pop("__metadata__", {}).get("format")
            if found != format_name:
                raise StoredFileError(
                    f"{self.path}: format is {found!r}, expected {format_name!r}; a store of another release is not "
                    "read: ingest again into a new one"
                )
            tensors = {name: self._parse_tensor(entry, 8 + len(header)) for name, entry in entries.items()}
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise self._error(f"unreadable header ({type(error).__name__}: {error})") from error
        stop = max((tensor.stop for tensor in tensors.values()), default=8 + len(header))
        if stop != self._num_bytes:
            raise self._error(f"{self._num_bytes} bytes, but its header promises {stop}")
        return tensors

    def _parse_tensor(self, entry: dict, data_start: int) -> _Tensor:
        dtype = DTYPES[entry["dtype"]]
        shape = tuple(int(size) for size in entry["shape"])
        start, stop = (data_start + int(offset) for offset in entry["data_offsets"])
        if min(shape, default=0) < 0 or start < data_start or start % dtype.itemsize:
            raise ValueError(f"shape {shape} at byte {start}")
        if stop - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{stop - start} bytes for shape {shape} of {dtype}")
        return _Tensor(start, stop, dtype, shape)

    def shape(self, name: str, dtype: str, num_dims: int) -> tuple[int, ...]:
        """Return a tensor's shape after checking that it is there, of this dtype and this many dimensions."""
        tensor = self._tensors.get(name)
        if tensor is None:
            raise self._error(f"no tensor {name!r} (it has {sorted(self._tensors)})")
        if tensor.dtype.name != dtype or len(tensor.shape) != num_dims:
            raise self._error(
                f"tensor {name!r} is {tensor.dtype.name} {tensor.shape}, expected {dtype} in {num_dims} dimension(s)"
            )
        return tensor.shape

    def _map(self) -> torch.Tensor:
        if self._mapped is None:
            try:  # torch refuses a file shorter than asked for, so one truncated since the check cannot fault either
                self._mapped = torch.from_file(str(self.path), False, self._num_bytes, dtype=torch.uint8)
            except RuntimeError as error:
                raise self._error(f"cannot be mapped ({error})") from error
        return self._mapped

    def array(self, name: str) -> np.ndarray:
        """Return a read-only view of one tensor in the mapped file; no byte is read until it is touched."""
        tensor = self._tensors[name]
        view = self._map().numpy()[tensor.start : tensor.stop].view(tensor.dtype).reshape(tensor.shape)
        view.flags.writeable = False
        return view

    def tensor(self, name: str) -> torch.Tensor:
        """Return the same bytes as a torch tensor of a float dtype. The mapping is private: never write into it."""
        tensor = self._tensors[name]
        dtype = {"float16": torch.float16, "float32": torch.float32}[tensor.dtype.name]
        return self._map()[tensor.start : tensor.stop].view(dtype).reshape(tensor.shape)
