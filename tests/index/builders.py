"""Small segments for the tests of index: random, seeded, clustered, with norms that vary as real ones do."""

from pathlib import Path

import numpy as np

from index.factors import QuantizedFactors, band_edges
from index.segment import Segment, SegmentArrays, write_segment


def clustered_sketches(rng: np.random.Generator, num_samples: int, width: int) -> np.ndarray:
    """Rows in a basis of principal components (variance falls), around shared centres, with lognormal norms."""
    deviations = 1 / np.arange(1, width + 1) ** 0.5
    centres = np.random.default_rng(7).standard_normal((20, width))
    rows = (centres[rng.integers(0, 20, num_samples)] + rng.standard_normal((num_samples, width))) * deviations
    return (rows * np.exp(rng.standard_normal((num_samples, 1)) * 0.8)).astype(np.float32)


def random_factors(
    rng: np.random.Generator, counts: list[int], factor_rank: int = 6, vocabulary: int = 50_000
) -> QuantizedFactors:
    """Valid factors of samples with so many tokens each: steps per sample, 0 to 4 others a token."""
    num_tokens = sum(counts)
    others = rng.integers(0, 5, num_tokens).astype(np.uint8)
    ids = [np.sort(rng.choice(vocabulary, size, replace=False)) for size in others]
    steps = rng.random((len(counts), len(band_edges(factor_rank))), np.float32)
    return QuantizedFactors(
        hidden=rng.integers(-127, 128, (num_tokens, factor_rank)).astype(np.int8),
        steps=np.repeat(steps, counts, axis=0),
        labels=rng.integers(0, vocabulary, num_tokens).astype(np.uint32),
        label_codes=rng.integers(0, 97, num_tokens).astype(np.uint8),
        counts=others,
        others=np.concatenate([np.empty(0, np.int64), *ids]).astype(np.uint32),
        other_codes=rng.integers(1, 25, int(others.sum())).astype(np.uint8),
    )


def segment_arrays(
    ids: np.ndarray, sketches: np.ndarray, rng: np.random.Generator | None = None, vocabulary: int = 50_000
) -> SegmentArrays:
    """A valid segment with these ids and sketches; norms are the sketches' own, tokens are random (0 to 4 a sample)."""
    rng = rng or np.random.default_rng(0)
    counts = rng.integers(0, 5, len(ids))
    return SegmentArrays(
        ids=np.asarray(ids, np.int64),
        norms=np.linalg.norm(sketches.astype(np.float64), axis=1).astype(np.float32),
        sketches=sketches,
        factors=random_factors(rng, counts.tolist(), vocabulary=vocabulary),
        offsets=np.concatenate([[0], np.cumsum(counts)]).astype(np.int64),
    )


def make_segment(directory: Path, ids: np.ndarray, sketches: np.ndarray) -> Segment:
    directory.mkdir(parents=True)
    write_segment(directory, segment_arrays(ids, sketches))
    return Segment(directory)


def make_segments(root: Path, sizes: list[int], width: int, seed: int = 0, first_id: int = 0) -> list[Segment]:
    """Segments of these sizes with ids that ascend in steps of 3 from one to the next."""
    rng = np.random.default_rng(seed)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
    return [
        make_segment(
            root / f"segment-{first_id}-{number}",
            first_id + 3 * np.arange(start, start + size),
            clustered_sketches(rng, size, width),
        )
        for number, (start, size) in enumerate(zip(starts, sizes, strict=True))
    ]
