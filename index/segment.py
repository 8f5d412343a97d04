"""Segments: what ingest keeps of N samples and their K counted tokens, written once and never changed.

The format, "forvalue-segment/1". A segment is a directory that holds two safetensors files (little-endian, C order):

    sketches.safetensors                          factors.safetensors
      ids       I64 [N]     the samples' ids        offsets        I64 [N+1]       where samples' tokens start
      norms     F32 [N]     ||G||                   hidden         I8  [K, r]      h in r dimensions, quantized
      scales    F32 [N]     of the sketches         hidden_scales  F32 [K]         h = hidden_scales * hidden
      sketches  F16 [N, D]  quantized               error_tokens   U16|U32 [K, s]  where e is largest
                                                    error_values   I8  [K, s]      e there, quantized
                                                    error_scales   F32 [K]         e = error_scales * error_values
                                                  error_tokens[:, 0] are the labels, the tokens to predict

- The header's `__metadata__` MUST be {"format": "forvalue-segment/1"}: one key, since safetensors writes several in
  random order and equal segments must have equal bytes. Any other value MUST be refused.
- ids MUST be ascending without repeats and >= 0: -1 means "no result" in an answer.
- A sketch is scales[i] * sketches[i]. scales[i] MUST be positive; a writer takes max |sketch|, which brings every row
  into [-1, 1], where float16 can neither overflow nor lose a small row, and 1 for a row of zeros.
- norms and all scales MUST be finite, norms >= 0.
- The tokens of sample i are rows offsets[i]:offsets[i+1] of every factors tensor. offsets MUST start at 0, never
  fall, and end at K; a sample MAY have no tokens, a segment MAY have no samples.
- error_tokens MUST be U16 where the vocabulary has at most 65,536 entries, else U32.
- A writer MUST check all of this before it writes a byte, and fsync both files and the directory. Files MUST NOT be
  changed in place: readers map them. A reader MUST check the header against the file's size before it maps.
- Both files' sha256 and sizes belong in the database; flipped bits in tensors are found only by comparing these.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save

from index.errors import StoredFileError
from index.factors import QuantizedFactors
from index.stored import MappedTensors, StoredFile, fsync_directory, hash_file, verify_files, write_durably

__all__ = [
    "Segment",
    "SegmentArrays",
    "StoredFile",
    "hash_file",
    "token_dtype",
    "verify_files",
    "write_segment",
]

FORMAT = "forvalue-segment/1"
SKETCHES_FILE = "sketches.safetensors"
FACTORS_FILE = "factors.safetensors"
TOKEN_DTYPES = ("uint16", "uint32")

# name -> (dtypes, shape); equal letters are equal sizes: N samples, D sketch width, K tokens, r and s as above.
ARRAYS = {
    "ids": (("int64",), "N"),
    "norms": (("float32",), "N"),
    "sketches": (("float32",), "ND"),
    "hidden": (("int8",), "Kr"),
    "hidden_scales": (("float32",), "K"),
    "error_tokens": (TOKEN_DTYPES, "Ks"),
    "error_values": (("int8",), "Ks"),
    "error_scales": (("float32",), "K"),
    "offsets": (("int64",), "+"),
}


@dataclass
class SegmentArrays:
    """What `write_segment` takes: the tensors of the format, but for the sketches, float32, which it quantizes."""

    ids: np.ndarray  # [N] int64
    norms: np.ndarray  # [N] float32
    sketches: np.ndarray  # [N, D] float32
    hidden: np.ndarray  # [K, r] int8
    hidden_scales: np.ndarray  # [K] float32
    error_tokens: np.ndarray  # [K, s] uint16 or uint32
    error_values: np.ndarray  # [K, s] int8
    error_scales: np.ndarray  # [K] float32
    offsets: np.ndarray  # [N + 1] int64

    @classmethod
    def of_sketches(cls, ids: np.ndarray, sketches: np.ndarray) -> "SegmentArrays":
        """Vectors alone, ids int64 [N] and sketches float32 [N, D]: no factors, norms those of the sketches."""
        return cls(
            ids=ids,
            norms=np.linalg.norm(sketches, axis=1).astype(np.float32),
            sketches=sketches,
            hidden=np.empty((0, 1), np.int8),
            hidden_scales=np.empty(0, np.float32),
            error_tokens=np.empty((0, 1), np.uint16),
            error_values=np.empty((0, 1), np.int8),
            error_scales=np.empty(0, np.float32),
            offsets=np.zeros(len(ids) + 1, np.int64),
        )


def token_dtype(vocabulary: int) -> np.dtype:
    """Return the dtype in which segments hold token ids of a vocabulary of this many entries."""
    return np.dtype("uint16" if vocabulary <= 65_536 else "uint32")


def write_segment(directory: Path, arrays: SegmentArrays) -> list[StoredFile]:
    """Write a segment's two files into an existing directory, durably, and return what to record about them.

    Renaming the directory into place, and syncing its parent, is the caller's. Raises ValueError if an array breaks
    the format (nothing is written then) and FileExistsError if the directory holds a segment already.
    """
    _validate(arrays)
    paths = [directory / SKETCHES_FILE, directory / FACTORS_FILE]
    for path in paths:
        if path.exists():
            raise FileExistsError(f"{path} exists: a segment is never overwritten; write it to a fresh directory")
    quantized, scales = _quantize(arrays.sketches)
    sketches = {"ids": arrays.ids, "norms": arrays.norms, "scales": scales, "sketches": quantized}
    factors = {name: getattr(arrays, name) for name in ARRAYS if name not in sketches}
    files = []
    for path, tensors in zip(paths, (sketches, factors), strict=True):
        contiguous = {name: np.ascontiguousarray(array) for name, array in tensors.items()}
        files.append(write_durably(path, save(contiguous, {"format": FORMAT})))
    fsync_directory(directory)
    return files


def _quantize(sketches_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scales = np.abs(sketches_ND).max(axis=1, initial=0)
    scales[scales == 0] = 1
    return (sketches_ND / scales[:, None]).astype(np.float16), scales


def _validate(arrays: SegmentArrays) -> None:
    sizes: dict[str, int] = {}
    for name, (dtypes, dims) in ARRAYS.items():
        array = getattr(arrays, name)
        if not isinstance(array, np.ndarray) or array.dtype.name not in dtypes:
            raise ValueError(f"{name} must be an array of {' or '.join(dtypes)}, got {_describe(array)}")
        if array.ndim != len(dims):
            raise ValueError(f"{name} must have {len(dims)} dimension(s), got {_describe(array)}")
        for dim, size in zip(dims, array.shape, strict=True):
            if sizes.setdefault(dim, size) != size:
                raise ValueError(
                    f"{name} must have {dim} = {sizes[dim]} as the arrays before it, got {_describe(array)}"
                )
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f"{name} must be finite, got {int((~np.isfinite(array)).sum())} values that are not")
    if sizes["D"] == 0:
        raise ValueError("sketches must be at least 1 wide, got 0")
    for name in ("norms", "hidden_scales", "error_scales"):
        if (getattr(arrays, name) < 0).any():
            raise ValueError(f"{name} must not be negative, got {getattr(arrays, name).min()}")
    for problem in (_ids_problem(arrays.ids), _offsets_problem(arrays.offsets, sizes["N"], sizes["K"])):
        if problem:
            raise ValueError(problem)


def _describe(array: object) -> str:
    return f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__


def _ids_problem(ids_N: np.ndarray) -> str | None:
    if (ids_N < 0).any():
        return f"ids must not be negative, got {ids_N.min()}"
    falls = np.flatnonzero(np.diff(ids_N) <= 0)
    return f"ids must ascend without repeats, got {ids_N[falls[0] : falls[0] + 2].tolist()}" if len(falls) else None


def _offsets_problem(offsets: np.ndarray, num_samples: int, num_tokens: int) -> str | None:
    if len(offsets) != num_samples + 1:
        return f"offsets must have {num_samples + 1} entries for {num_samples} samples, got {len(offsets)}"
    if offsets[0] != 0 or offsets[-1] != num_tokens:
        return f"offsets must run from 0 to {num_tokens}, got {offsets[0]} to {offsets[-1]}"
    return "offsets must not fall" if (np.diff(offsets) < 0).any() else None


class Segment:
    """A segment opened for reading: ids and norms in memory, all else mapped and read where it is touched.

    Raises StoredFileError if a file is missing, truncated or breaks the format. Safe to share between threads.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._sketches = MappedTensors(directory / SKETCHES_FILE, FORMAT)
        self._factors = MappedTensors(directory / FACTORS_FILE, FORMAT)
        sizes: dict[str, int] = {}
        for name, (dtypes, dims) in ARRAYS.items():
            file = self._sketches if name in ("ids", "norms", "sketches") else self._factors
            shape = file.shape(name, ("float16",) if name == "sketches" else dtypes, len(dims))
            for dim, size in zip(dims, shape, strict=True):
                if sizes.setdefault(dim, size) != size:
                    raise StoredFileError(f"{file.path}: {name} has {dim} = {size}, other tensors have {sizes[dim]}")
        if self._sketches.shape("scales", ("float32",), 1) != (sizes["N"],) or sizes["D"] == 0:
            raise StoredFileError(f"{self._sketches.path}: scales or width do not fit {sizes['N']} samples")
        self.num_samples, self.width, self.num_tokens = sizes["N"], sizes["D"], sizes["K"]
        self.ids: np.ndarray = self._loaded("ids")  # [N] int64
        self.norms: np.ndarray = self._loaded("norms")  # [N] float32
        self._factors.array("offsets")  # maps the file: removed by a compaction, it stays readable here
        if problem := _ids_problem(self.ids):
            raise StoredFileError(f"{self._sketches.path}: {problem}; verify the store")

    def __repr__(self) -> str:
        return f"Segment({str(self.directory)!r}, {self.num_samples} samples, {self.num_tokens} tokens)"

    def _loaded(self, name: str) -> np.ndarray:
        array = self._sketches.array(name).copy()
        array.flags.writeable = False
        return array

    @cached_property
    def _offsets(self) -> np.ndarray:
        offsets = self._factors.array("offsets").copy()
        if problem := _offsets_problem(offsets, self.num_samples, self.num_tokens):
            raise StoredFileError(f"{self._factors.path}: {problem}; verify the store")
        return offsets

    def quantized(self, rows: slice | np.ndarray) -> tuple[torch.Tensor, np.ndarray]:
        """Return stored sketches [n, D], float16 in [-1, 1], and their scales [n], for products that apply these last.

        A slice gives a view of the mapped file, which must not be written to; an array of row numbers a copy.
        """
        scales = self._sketches.array("scales")[rows]
        stored = self._sketches.tensor("sketches")
        if isinstance(rows, slice):
            return stored[rows], scales
        return stored[torch.from_numpy(np.ascontiguousarray(rows, dtype=np.int64))], scales

    def sketches(self, start: int, stop: int) -> np.ndarray:
        """Return sketches start:stop (as Python slices do it) as float32 [n, D]."""
        return _dequantize(*self.quantized(slice(start, stop)))

    def sketch_rows(self, rows: np.ndarray) -> np.ndarray:
        """Return the sketches at these row numbers [n], in their order, as float32 [n, D]."""
        return _dequantize(*self.quantized(rows))

    def iter_blocks(self, block_rows: int = 1024) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (ids [n], sketches float32 [n, D]) in order, with n <= block_rows."""
        for start in range(0, self.num_samples, block_rows):
            yield self.ids[start : start + block_rows], self.sketches(start, start + block_rows)

    def factors(self, row: int) -> QuantizedFactors:
        """Return the factors of the sample at this row number. Raises IndexError beyond the last."""
        if not 0 <= row < self.num_samples:
            raise IndexError(f"row {row} of a segment of {self.num_samples} samples")
        tokens = slice(int(self._offsets[row]), int(self._offsets[row + 1]))
        return QuantizedFactors(**{f.name: self._factors.array(f.name)[tokens] for f in fields(QuantizedFactors)})


def _dequantize(quantized_ND: torch.Tensor, scales_N: np.ndarray) -> np.ndarray:
    return quantized_ND.float().numpy() * scales_N[:, None]
