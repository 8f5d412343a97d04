"""Packed factors come back bit for bit, small, and damage is refused or stays within its sample."""

from dataclasses import fields, replace

import numpy as np
import pytest
import zstandard

from index.factors import QuantizedFactors
from index.packing import pack, planes_of, unpack
from tests.index.builders import random_factors
from tests.index.test_segment import assert_equal_factors

FACTORS = random_factors(np.random.default_rng(0), [40], 12, 70_000)


def unpacked(data: bytes | memoryview, num_tokens: int = 40) -> QuantizedFactors:
    return unpack([planes_of(data, num_tokens, 12)], 12, FACTORS.steps[:1])


def test_a_sample_comes_back_as_it_was_whatever_was_packed_before() -> None:
    first = pack(FACTORS)
    assert pack(random_factors(np.random.default_rng(1), [7], 3)) != first
    assert pack(FACTORS) == first
    assert_equal_factors(unpacked(first), FACTORS)
    assert_equal_factors(unpacked(memoryview(first)), FACTORS)


def test_a_sample_without_tokens_has_no_bytes() -> None:
    assert pack(FACTORS[:0]) == b""
    assert len(unpacked(b"", 0)) == 0


def test_several_samples_come_back_one_after_the_other() -> None:
    counts = [3, 0, 1, 17, 0]
    factors = random_factors(np.random.default_rng(3), counts, 12, 70_000)
    parts = factors.split(counts)
    planes = [planes_of(pack(part), len(part), 12) for part in parts]
    steps = np.stack([part.steps[0] if len(part) else FACTORS.steps[0] for part in parts])
    assert_equal_factors(unpack(planes, 12, steps), factors)


def test_tokens_without_others_are_kept() -> None:
    alone = replace(FACTORS, counts=FACTORS.counts * 0, others=FACTORS.others[:0], other_codes=FACTORS.other_codes[:0])
    assert_equal_factors(unpacked(pack(alone)), alone)


def test_codes_of_falling_size_take_fewer_bytes_than_codes_have() -> None:
    """Trailing dimensions are mostly 0, 1 and -1: less than 2 bits each."""
    rng = np.random.default_rng(0)
    codes = np.rint(rng.standard_normal((300, 64)) * np.linspace(4, 0.4, 64)).astype(np.int8)
    factors = replace(random_factors(rng, [300], 64), hidden=codes)
    rest = replace(factors, hidden=codes[:, :1] * 0)
    assert len(pack(factors)) - len(pack(rest)) < 0.45 * codes.size


@pytest.mark.parametrize("level", [-5, 3, 19])
def test_any_frame_of_these_planes_is_read(level: int) -> None:
    planes = zstandard.decompress(pack(FACTORS))
    assert_equal_factors(unpacked(zstandard.compress(planes, level)), FACTORS)


def test_damage_is_refused_or_gives_factors_of_the_same_shape() -> None:
    data = pack(FACTORS)
    rng = np.random.default_rng(2)
    refused = 0
    for _ in range(2000):
        damaged = bytearray(data)
        damaged[rng.integers(0, len(data))] ^= 1 << rng.integers(0, 8)
        try:
            found = unpacked(bytes(damaged))
        except ValueError:
            refused += 1
            continue
        assert found.hidden.shape == (40, 12)
        assert len(found.others) == len(found.other_codes) == found.counts.sum()
    assert refused > 100
    for length in range(len(data)):
        with pytest.raises(ValueError, match=r".+"):
            unpacked(data[:length])


@pytest.mark.parametrize("num_tokens", [0, 1, 39, 41, 10_000])
def test_bytes_of_other_tokens_are_refused(num_tokens: int) -> None:
    if num_tokens:
        with pytest.raises(ValueError, match="bytes"):
            unpacked(pack(FACTORS), num_tokens)
    with pytest.raises(ValueError, match="bytes"):
        unpacked(zstandard.compress(bytes(10)))


def test_a_frame_that_promises_gigabytes_is_refused_before_they_are_asked_for() -> None:
    huge = zstandard.compress(bytes(1 << 20)).replace((1 << 20).to_bytes(4, "little"), (1 << 31).to_bytes(4, "little"))
    assert zstandard.frame_content_size(huge) == 1 << 31
    with pytest.raises(ValueError, match=r"2147483648 bytes for 40 tokens"):
        unpacked(huge)


def test_every_plane_is_stored() -> None:
    for field in fields(QuantizedFactors):
        if field.name != "steps":
            array = getattr(FACTORS, field.name).copy()
            array.reshape(-1)[3] += 1 if field.name != "counts" else 0
            same = np.array_equal(array, getattr(FACTORS, field.name))
            assert (pack(replace(FACTORS, **{field.name: array})) == pack(FACTORS)) == same
