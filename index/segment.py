"""Segments: what ingest keeps of N samples and their K counted tokens, written once and never changed.

The format, "forvalue-segment/2". A segment is a directory that holds two safetensors files (little-endian, C order):

    sketches.safetensors                          factors.safetensors
      ids       I64 [N]     the samples' ids        factor_rank  I64 [1]       F, hidden dimensions of a token
      norms     F32 [N]     ||G||                   offsets      I64 [N+1]     where samples' tokens start
      scales    F32 [N]     of the sketches         places       I64 [N+1]     where samples' packed bytes start
      sketches  F16 [N, D]  quantized               steps        F32 [N, 1+B]  of errors, and of hidden in B bands
                                                    packed       U8  [bytes]   one zstd frame a sample

- The header's `__metadata__` MUST be {"format": "forvalue-segment/2"}: one key, since safetensors writes several in
  random order and equal segments must have equal bytes. Any other value MUST be refused.
- ids MUST be ascending without repeats and >= 0: -1 means "no result" in an answer.
- A sketch is scales[i] * sketches[i]. scales[i] MUST be positive; a writer takes max |sketch|, which brings every row
  into [-1, 1], where float16 can neither overflow nor lose a small row, and 1 for a row of zeros.
- norms, scales and steps MUST be finite, norms and steps >= 0.
- Sample i has offsets[i+1] - offsets[i] counted tokens, packed in bytes places[i]:places[i+1]. Both MUST start at 0,
  never fall, and end at K and at the size of packed; a sample MAY have no tokens and then MUST have no bytes, a
  segment MAY have no samples.
- A frame, decompressed, MUST hold the planes of index/packing.py: hidden codes int8 [K_i, F], the label's code, the
  number of other tokens kept, ids of 24 bits (labels, then others), the others' codes. With the steps that is
      h = steps[i, 1 + b] * code, dimensions in bands [0], [1], [2, 3], [4..7], ..., B of them
      e = steps[i, 0] / 4 * code at the label, -steps[i, 0] * code at the others
  Others MUST ascend within a token, with codes of 1 or more. A frame MUST say its decompressed size and MAY be
  compressed at any level, in any blocks; the same release of zstd gives equal segments equal bytes.
- A third file, rare_tokens.safetensors, lists the labels that few samples have: index/rare_tokens.py. It follows from
  the other two. A writer SHOULD write it; a reader without it proposes fewer candidates.
- A writer MUST check all of this before it writes a byte, and fsync the files and the directory. Files MUST NOT be
  changed in place: readers map them. A reader MUST check the header against the file's size before it maps.
- The files' sha256 and sizes belong in the database; flipped bits in tensors are found only by comparing these.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save

from index.errors import StoredFileError
from index.factors import QuantizedFactors, band_edges
from index.packing import MAX_TOKEN_ID, Planes, pack, planes_of, unpack
from index.rare_tokens import RARE_TOKENS_FILE, RareTokens, rare_tokens
from index.stored import MappedTensors, StoredFile, fsync_directory, hash_file, verify_files, write_durably

__all__ = [
    "Segment",
    "SegmentArrays",
    "StoredFile",
    "gather_factors",
    "hash_file",
    "verify_files",
    "write_segment",
    "write_sketches",
]

FORMAT = "forvalue-segment/2"
SKETCHES_FILE = "sketches.safetensors"
FACTORS_FILE = "factors.safetensors"
MAX_FACTOR_RANK = 1 << 20  # a flipped bit must not make us ask for gigabytes

# What a writer takes: name -> (dtype, shape); equal letters are equal sizes: N samples, D sketch width, K tokens,
# F factor rank, B one more than its bands, n others. And what a reader finds, with P = N + 1, X bytes, 1 for one.
ARRAYS = {"ids": ("int64", "N"), "norms": ("float32", "N"), "sketches": ("float32", "ND"), "offsets": ("int64", "P")}
FACTORS = {
    "hidden": ("int8", "KF"),
    "steps": ("float32", "KB"),
    "labels": ("uint32", "K"),
    "label_codes": ("uint8", "K"),
    "counts": ("uint8", "K"),
    "others": ("uint32", "n"),
    "other_codes": ("uint8", "n"),
}
STORED_SKETCHES = {
    "ids": ("int64", "N"),
    "norms": ("float32", "N"),
    "scales": ("float32", "N"),
    "sketches": ("float16", "ND"),
}
STORED_FACTORS = {
    "factor_rank": ("int64", "1"),
    "offsets": ("int64", "P"),
    "places": ("int64", "P"),
    "steps": ("float32", "NB"),
    "packed": ("uint8", "X"),
}


@dataclass
class SegmentArrays:
    """What `write_segment` takes; it quantizes the sketches and packs the factors."""

    ids: np.ndarray  # [N] int64
    norms: np.ndarray  # [N] float32
    sketches: np.ndarray  # [N, D] float32
    factors: QuantizedFactors  # of all K tokens, sample after sample
    offsets: np.ndarray  # [N + 1] int64: where samples' tokens start

    @classmethod
    def of_sketches(cls, ids: np.ndarray, sketches: np.ndarray) -> "SegmentArrays":
        """Vectors alone, ids int64 [N] and sketches float32 [N, D]: no factors, norms those of the sketches."""
        return cls(
            ids=ids,
            norms=np.linalg.norm(sketches, axis=1).astype(np.float32),
            sketches=sketches,
            factors=QuantizedFactors.empty(),
            offsets=np.zeros(len(ids) + 1, np.int64),
        )


def write_segment(directory: Path, arrays: SegmentArrays) -> list[StoredFile]:
    """Write a segment's three files into an existing directory, durably, and return what to record about them.

    Renaming the directory into place, and syncing its parent, is the caller's. Raises ValueError if an array breaks
    the format (nothing is written then) and FileExistsError if the directory holds a segment already.
    """
    _validate(arrays)
    paths = [directory / name for name in (SKETCHES_FILE, FACTORS_FILE, RARE_TOKENS_FILE)]
    for path in paths:
        if path.exists():
            raise FileExistsError(f"{path} exists: a segment is never overwritten; write it to a fresh directory")
    quantized, scales = _quantize(arrays.sketches)
    sketches = {"ids": arrays.ids, "norms": arrays.norms, "scales": scales, "sketches": quantized}
    files = []
    contents = (sketches, _packed(arrays), rare_tokens(arrays.factors, arrays.offsets))
    for path, tensors in zip(paths, contents, strict=True):
        files.append(write_durably(path, save(_contiguous(tensors), {"format": FORMAT})))
    fsync_directory(directory)
    return files


def write_sketches(directory: Path, segment: "Segment", sketches: np.ndarray) -> StoredFile:
    """Write into an existing directory what an opened segment is with other sketches, float32 [N, D]: ids, norms and
    factors stay, and the other files are shared (hard links; copies where the file system has none).

    Returns what to record about the sketches' file; what is recorded of the others stays true. Raises ValueError and
    FileExistsError as `write_segment` does.
    """
    _validate(replace(SegmentArrays.of_sketches(segment.ids, sketches), norms=segment.norms))
    quantized, scales = _quantize(sketches)
    tensors = {"ids": segment.ids, "norms": segment.norms, "scales": scales, "sketches": quantized}
    _share(segment.directory / FACTORS_FILE, directory)
    if segment.rare_tokens is not None:
        _share(segment.directory / RARE_TOKENS_FILE, directory)
    stored = write_durably(directory / SKETCHES_FILE, save(_contiguous(tensors), {"format": FORMAT}))
    fsync_directory(directory)
    return stored


def _share(path: Path, directory: Path) -> None:
    try:
        os.link(path, directory / path.name)
    except FileExistsError:
        raise
    except OSError:
        shutil.copyfile(path, directory / path.name)


def _contiguous(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.ascontiguousarray(array) for name, array in tensors.items()}


def _quantize(sketches_ND: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scales = np.abs(sketches_ND).max(axis=1, initial=0)
    scales[scales == 0] = 1
    return (sketches_ND / scales[:, None]).astype(np.float16), scales


def _packed(arrays: SegmentArrays) -> dict[str, np.ndarray]:
    samples = arrays.factors.split(np.diff(arrays.offsets).tolist())
    packed = [pack(factors) for factors in samples]
    steps = np.zeros((len(samples), arrays.factors.steps.shape[1]), np.float32)
    for row, factors in enumerate(samples):
        steps[row] = factors.steps[0] if len(factors) else 0
    return {
        "factor_rank": np.array([arrays.factors.hidden.shape[1]], np.int64),
        "offsets": arrays.offsets,
        "places": np.cumsum([0] + [len(one) for one in packed], dtype=np.int64),
        "steps": steps,
        "packed": np.frombuffer(b"".join(packed), np.uint8),
    }


def _validate(arrays: SegmentArrays) -> None:
    sizes: dict[str, int] = {}
    for owner, expected in ((arrays, ARRAYS), (arrays.factors, FACTORS)):
        for name, (dtype, dims) in expected.items():
            _check_array(name, getattr(owner, name), dtype, dims, sizes)
    if sizes["D"] == 0:
        raise ValueError("sketches must be at least 1 wide, got 0")
    for name, sized in (("norms", arrays.norms), ("steps", arrays.factors.steps)):
        if (sized < 0).any():
            raise ValueError(f"{name} must not be negative, got {sized.min()}")
    problems = (
        _ids_problem(arrays.ids),
        _offsets_problem("offsets", arrays.offsets, sizes["N"], sizes["K"]),
        _factors_problem(arrays.factors, sizes),
    )
    for problem in problems:
        if problem:
            raise ValueError(problem)
    of_sample = np.repeat(arrays.offsets[:-1], np.diff(arrays.offsets))
    if (arrays.factors.steps != arrays.factors.steps[of_sample]).any():
        raise ValueError("steps must be the same for all tokens of a sample")


def _check_array(name: str, array: object, dtype: str, dims: str, sizes: dict[str, int]) -> None:
    if not isinstance(array, np.ndarray) or array.dtype != np.dtype(dtype):
        raise ValueError(f"{name} must be an array of {dtype}, got {_describe(array)}")
    if array.ndim != len(dims):
        raise ValueError(f"{name} must have {len(dims)} dimension(s), got {_describe(array)}")
    for dim, size in zip(dims, array.shape, strict=True):
        if sizes.setdefault(dim, size) != size:
            raise ValueError(f"{name} must have {dim} = {sizes[dim]} as the arrays before it, got {_describe(array)}")
    if array.dtype.kind == "f" and not np.isfinite(array).all():
        raise ValueError(f"{name} must be finite, got {int((~np.isfinite(array)).sum())} values that are not")


def _factors_problem(factors: QuantizedFactors, sizes: dict[str, int]) -> str | None:
    if sizes["B"] != len(band_edges(sizes["F"])):
        return f"steps must have {len(band_edges(sizes['F']))} columns for {sizes['F']} dimensions, got {sizes['B']}"
    ends = np.cumsum(factors.counts, dtype=np.int64)
    num_others = int(ends[-1]) if len(ends) else 0
    if num_others != sizes["n"]:
        return f"counts must add up to the {sizes['n']} others, got {num_others}"
    for name, ids in (("labels", factors.labels), ("others", factors.others)):
        if (ids > MAX_TOKEN_ID).any():
            return f"{name} must be at most {MAX_TOKEN_ID}, got {ids.max()}"
    if (factors.other_codes == 0).any():
        return "other_codes must be 1 or more: an error that rounds to zero is not kept"
    falls = np.diff(factors.others.astype(np.int64)) <= 0
    falls[ends[(ends > 0) & (ends < num_others)] - 1] = False  # from one token to the next
    return "others must ascend within each token" if falls.any() else None


def _describe(array: object) -> str:
    return f"{array.dtype} {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__


def _ids_problem(ids_N: np.ndarray) -> str | None:
    if (ids_N < 0).any():
        return f"ids must not be negative, got {ids_N.min()}"
    falls = np.flatnonzero(np.diff(ids_N) <= 0)
    return f"ids must ascend without repeats, got {ids_N[falls[0] : falls[0] + 2].tolist()}" if len(falls) else None


def _offsets_problem(name: str, offsets: np.ndarray, num_samples: int, end: int) -> str | None:
    if len(offsets) != num_samples + 1:
        return f"{name} must have {num_samples + 1} entries for {num_samples} samples, got {len(offsets)}"
    if offsets[0] != 0 or offsets[-1] != end:
        return f"{name} must run from 0 to {end}, got {offsets[0]} to {offsets[-1]}"
    return f"{name} must not fall" if (np.diff(offsets) < 0).any() else None


class Segment:
    """A segment opened for reading: ids and norms in memory, all else mapped and read where it is touched.

    Raises StoredFileError if a file is missing, truncated or breaks the format. Safe to share between threads.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._sketches = MappedTensors(directory / SKETCHES_FILE, FORMAT)
        self._factors = MappedTensors(directory / FACTORS_FILE, FORMAT)
        sizes: dict[str, int] = {"1": 1}
        for file, expected in ((self._sketches, STORED_SKETCHES), (self._factors, STORED_FACTORS)):
            for name, (dtype, dims) in expected.items():
                for dim, size in zip(dims, file.shape(name, dtype, len(dims)), strict=True):
                    if sizes.setdefault(dim, size) != size:
                        raise StoredFileError(
                            f"{file.path}: {name} has {dim} = {size}, other tensors have {sizes[dim]}"
                        )
        if sizes["P"] != sizes["N"] + 1 or sizes["D"] == 0:
            raise StoredFileError(f"{self._factors.path}: offsets or width do not fit {sizes['N']} samples")
        self.num_samples, self.width = sizes["N"], sizes["D"]
        self.ids: np.ndarray = self._loaded("ids")  # [N] int64
        self.norms: np.ndarray = self._loaded("norms")  # [N] float32
        # This maps the factors, too: a file that a compaction removes stays readable here.
        self.num_tokens = int(self._factors.array("offsets")[-1])
        self.factor_rank = int(self._factors.array("factor_rank")[0])
        if not 1 <= self.factor_rank <= MAX_FACTOR_RANK or sizes["B"] != len(band_edges(self.factor_rank)):
            raise StoredFileError(f"{self._factors.path}: steps do not fit factor_rank {self.factor_rank}")
        if problem := _ids_problem(self.ids):
            raise StoredFileError(f"{self._sketches.path}: {problem}; verify the store")
        lists = directory / RARE_TOKENS_FILE
        self.rare_tokens = RareTokens(lists, FORMAT, self.num_samples) if lists.exists() else None

    def __repr__(self) -> str:
        return f"Segment({str(self.directory)!r}, {self.num_samples} samples, {self.num_tokens} tokens)"

    def _loaded(self, name: str) -> np.ndarray:
        array = self._sketches.array(name).copy()
        array.flags.writeable = False
        return array

    @cached_property
    def num_tokens_of(self) -> np.ndarray:
        """Tokens of each sample: int64 [N]."""
        return np.diff(self._edges[0])

    @cached_property
    def _edges(self) -> tuple[np.ndarray, np.ndarray]:
        """Where samples' tokens start, and their packed bytes: int64 [N + 1] each."""
        edges = self._factors.array("offsets").copy(), self._factors.array("places").copy()
        ends = self.num_tokens, len(self._factors.array("packed"))
        for name, starts, end in zip(("offsets", "places"), edges, ends, strict=True):
            if problem := _offsets_problem(name, starts, self.num_samples, end):
                raise StoredFileError(f"{self._factors.path}: {problem}; verify the store")
        return edges

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
        """Return the factors of the sample at this row number: their bytes are read and unpacked, no others.

        Raises IndexError beyond the last, and StoredFileError where the bytes are damaged.
        """
        return gather_factors([(self, row)])

    @cached_property
    def _packed(self) -> memoryview:
        packed: memoryview = self._factors.array("packed").data
        return packed

    @cached_property
    def _steps(self) -> np.ndarray:
        steps: np.ndarray = self._factors.array("steps")
        return steps

    def _planes(self, row: int) -> Planes:
        if not 0 <= row < self.num_samples:
            raise IndexError(f"row {row} of a segment of {self.num_samples} samples")
        offsets, places = self._edges
        packed = self._packed[places[row] : places[row + 1]]
        try:
            return planes_of(packed, int(offsets[row + 1] - offsets[row]), self.factor_rank)
        except ValueError as error:
            raise StoredFileError(
                f"{self._factors.path}: the factors of sample {self.ids[row]} cannot be read ({error}); "
                "verify the store"
            ) from error


def gather_factors(places: Sequence[tuple[Segment, int]]) -> QuantizedFactors:
    """Return the factors of samples, each a row of a segment, one after the other in this order.

    The segments must have one factor rank, as those of a space do. Raises as `Segment.factors` does.
    """
    if not places:
        return QuantizedFactors.empty()
    planes = [segment._planes(row) for segment, row in places]
    steps = np.stack([segment._steps[row] for segment, row in places])
    return unpack(planes, places[0][0].factor_rank, steps)


def _dequantize(quantized_ND: torch.Tensor, scales_N: np.ndarray) -> np.ndarray:
    return quantized_ND.float().numpy() * scales_N[:, None]
