"""The lists of rare tokens: what a lookup adds is what a loop over all tokens adds, and damage is named."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save

from index import rare_scan, rare_tokens
from index.errors import StoredFileError
from index.rare_scan import rare_candidates
from index.rare_tokens import RARE_RANK, RARE_TOKENS_FILE
from index.scan import exact_values, row_factors
from index.segment import FORMAT, Segment, SegmentArrays, write_segment, write_sketches
from tests.index.builders import clustered_sketches, random_factors

VOCABULARY, RANK, WIDTH = 60, 12, 8


def arrays(first_id: int, num_samples: int, seed: int = 0) -> SegmentArrays:
    """Samples of 0 to 6 tokens out of few, so that many share a label and some have it twice."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 7, num_samples)
    sketches = clustered_sketches(rng, num_samples, WIDTH)
    return SegmentArrays(
        ids=np.arange(first_id, first_id + 2 * num_samples, 2),
        norms=np.linalg.norm(sketches, axis=1).astype(np.float32),
        sketches=sketches,
        factors=random_factors(rng, counts.tolist(), factor_rank=RANK, vocabulary=VOCABULARY),
        offsets=np.cumsum([0, *counts]).astype(np.int64),
    )


@pytest.fixture
def segments(tmp_path: Path) -> list[Segment]:
    """Three segments of 40 samples, and an empty one."""
    found = []
    for number, size in enumerate((40, 0, 40, 40)):
        (directory := tmp_path / str(number)).mkdir()
        write_segment(directory, arrays(100 * number, size, seed=number))
        found.append(Segment(directory))
    return found


def sets_of_labels(segment: Segment) -> list[set[int]]:
    return [set(segment.factors(row).labels.tolist()) for row in range(segment.num_samples)]


def gains(segment: Segment, matrix: np.ndarray, tokens: set[int]) -> Iterator[tuple[int, float]]:
    """By the definition: every token of every sample, where its label is rare and asked for."""
    labels = sets_of_labels(segment)
    limit = max(rare_tokens.RARE_SAMPLES, rare_tokens.RARE_SHARE * segment.num_samples)
    rare = {token for token in tokens if 0 < sum(token in one for one in labels) <= limit}
    for row in range(segment.num_samples):
        factors = segment.factors(row)
        hidden, errors = factors.hidden_states(RARE_RANK), factors.label_errors()
        parts = [
            errors[k] * float(hidden[k] @ matrix[label, :RARE_RANK])
            for k, label in enumerate(factors.labels.tolist())
            if label in rare
        ]
        if parts:
            yield row, sum(parts)


def random_query(seed: int = 3) -> tuple[np.ndarray, torch.Tensor]:
    rng = np.random.default_rng(seed)
    query = rng.standard_normal(WIDTH).astype(np.float32)
    return query, torch.from_numpy(rng.standard_normal((VOCABULARY, RANK)).astype(np.float32))


@pytest.mark.parametrize("limit", [1, 4, 16])
def test_a_lookup_adds_what_all_tokens_add(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: int):
    monkeypatch.setattr(rare_tokens, "RARE_SAMPLES", limit)
    write_segment(tmp_path, arrays(0, 90))
    segment = Segment(tmp_path)
    assert segment.rare_tokens is not None
    matrix = random_query()[1].numpy()
    for tokens in ({3}, {0, 7, 8, 59}, set(range(VOCABULARY))):
        expected = dict(gains(segment, matrix, tokens))
        asked = np.array(sorted(tokens))
        rows, found = segment.rare_tokens.lookup(asked, matrix[asked])
        assert rows.tolist() == sorted(expected)
        scale = max(map(abs, expected.values()), default=1.0)
        np.testing.assert_allclose(found, [expected[row] for row in sorted(expected)], rtol=0.03, atol=0.03 * scale)


def test_a_label_is_listed_up_to_the_limit_and_no_further(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(rare_tokens, "RARE_SAMPLES", 3)
    monkeypatch.setattr(rare_tokens, "RARE_SHARE", 0.06)
    write_segment(tmp_path, arrays(0, 90))  # so 5 samples, a share of which is more than 3
    labels = sets_of_labels(Segment(tmp_path))
    having = {token: [row for row, one in enumerate(labels) if token in one] for token in range(VOCABULARY)}
    tensors = load_file(tmp_path / RARE_TOKENS_FILE)
    assert tensors["tokens"].tolist() == [token for token, rows in having.items() if 0 < len(rows) <= 5]
    assert any(len(rows) == 5 for rows in having.values())
    assert any(len(rows) > 5 for rows in having.values())
    for token, start, stop in zip(tensors["tokens"], tensors["starts"], tensors["starts"][1:], strict=False):
        assert tensors["rows"][start:stop].tolist() == having[int(token)]


@pytest.mark.parametrize("row_scale", ["none", "inverse_norm"])
@pytest.mark.parametrize("k", [1, 5, 1000])
def test_candidates_are_those_with_the_highest_and_lowest_sums(segments: list[Segment], row_scale, k: int, monkeypatch):
    monkeypatch.setattr(rare_scan, "POOL", 1000)
    query, outside = random_query()
    sums, values = {}, {}
    for segment in segments:
        for row, gain in gains(segment, outside.numpy(), set(range(VOCABULARY))):
            id_ = int(segment.ids[row])
            values[id_] = exact_values(segments, query[None], np.array([[id_]]), row_scale=row_scale)[0, 0]
            sums[id_] = values[id_] + gain * row_factors(segment.norms[row : row + 1], row_scale)[0]
    ranked = sorted(sums, key=sums.__getitem__)
    ids, found = rare_candidates(segments, query, outside, k, row_scale=row_scale)
    expected = set(ranked[:k]) | set(ranked[-k:])
    assert len(ids) == len(set(ids.tolist())) == len(expected)
    assert len(expected - set(ids.tolist())) <= len(expected) // 5  # vectors are rounded to bytes
    np.testing.assert_allclose(found, [values[id_] for id_ in ids.tolist()], rtol=1e-6)


def test_filters_hold(segments: list[Segment]):
    query, outside = random_query()
    everything = set(rare_candidates(segments, query, outside, 1000)[0].tolist())
    allowed = np.array(sorted(everything))[::3]
    excluded = allowed[::2]
    found = rare_candidates(segments, query, outside, 1000, allowed=allowed, excluded=excluded)[0]
    assert set(found.tolist()) == set(allowed.tolist()) - set(excluded.tolist())
    none = np.empty(0, np.int64)
    assert len(rare_candidates(segments, query, outside, 1000, allowed=none)[0]) == 0
    assert set(rare_candidates(segments, query, outside, 1000, excluded=none)[0].tolist()) == everything


def test_nothing_rare_and_nothing_at_all(segments: list[Segment], tmp_path: Path):
    query, outside = random_query()
    assert len(rare_candidates([], query, outside, 5)[0]) == 0
    assert len(rare_candidates(segments[1:2], query, outside, 5)[0]) == 0
    assert len(rare_candidates(segments, query, torch.zeros_like(outside), 5)[0]) == 0
    assert len(rare_candidates(segments, query, outside, 0)[0]) == 0
    (tmp_path / "plain").mkdir()
    write_segment(tmp_path / "plain", SegmentArrays.of_sketches(np.arange(3), np.ones((3, WIDTH), np.float32)))
    assert len(rare_candidates([Segment(tmp_path / "plain")], query, outside, 5)[0]) == 0


def test_a_segment_without_the_file_is_read_without_it(segments: list[Segment]):
    query, outside = random_query()
    (segments[0].directory / RARE_TOKENS_FILE).unlink()
    without = [Segment(segments[0].directory), *segments[1:]]
    found = rare_candidates(without, query, outside, 1000)[0]
    assert len(found)
    assert not set(found.tolist()) & set(segments[0].ids.tolist())


def test_equal_segments_have_equal_lists(tmp_path: Path):
    files = []
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
        files.append(write_segment(tmp_path / name, arrays(0, 50)))
    assert files[0] == files[1]


def test_new_sketches_keep_the_lists(segments: list[Segment], tmp_path: Path):
    for number, opened in enumerate((segments[0], segments[1])):
        (directory := tmp_path / f"new{number}").mkdir()
        write_sketches(directory, opened, np.ones((opened.num_samples, 3), np.float32))
        assert (directory / RARE_TOKENS_FILE).read_bytes() == (opened.directory / RARE_TOKENS_FILE).read_bytes()
    (segments[2].directory / RARE_TOKENS_FILE).unlink()
    (directory := tmp_path / "without").mkdir()
    write_sketches(directory, Segment(segments[2].directory), np.ones((40, 3), np.float32))
    assert Segment(directory).rare_tokens is None


@pytest.mark.parametrize("cut", [1, 20, 400])
def test_a_truncated_file_is_named(segments: list[Segment], cut: int):
    path = segments[0].directory / RARE_TOKENS_FILE
    path.write_bytes(path.read_bytes()[:-cut])
    with pytest.raises(StoredFileError, match=RARE_TOKENS_FILE):
        Segment(segments[0].directory)


@pytest.mark.parametrize(
    ("name", "value"), [("starts", -1), ("starts", 10**9), ("rows", 40), ("rows", 2**32 - 1), ("starts", -(10**18))]
)
def test_a_damaged_entry_is_named_and_reads_nothing_beyond_the_file(segments: list[Segment], name: str, value: int):
    path = segments[0].directory / RARE_TOKENS_FILE
    tensors = load_file(path)
    tensors[name][1] = value
    path.write_bytes(save(tensors, {"format": FORMAT}))
    with pytest.raises(StoredFileError, match=f"{RARE_TOKENS_FILE}: {name}"):
        rare_candidates([Segment(segments[0].directory)], *random_query(), 5)


@pytest.mark.parametrize("name", ["tokens", "starts", "rows", "scales", "vectors"])
def test_sizes_that_do_not_fit_are_named(segments: list[Segment], name: str):
    path = segments[0].directory / RARE_TOKENS_FILE
    tensors = load_file(path)
    for wrong in (tensors | {name: tensors[name][:-1]}, {k: v for k, v in tensors.items() if k != name}):
        path.write_bytes(save(wrong, {"format": FORMAT}))
        with pytest.raises(StoredFileError, match=RARE_TOKENS_FILE):
            Segment(segments[0].directory)


def test_flipped_bits_never_crash(segments: list[Segment]):
    path = segments[0].directory / RARE_TOKENS_FILE
    whole, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(60):
        damaged = bytearray(whole)
        for at in rng.integers(0, len(whole), 3):
            damaged[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(damaged)
        try:
            ids, _ = rare_candidates([Segment(segments[0].directory)], *random_query(), 5)
            assert set(ids.tolist()) <= set(segments[0].ids.tolist())
        except StoredFileError:
            pass
