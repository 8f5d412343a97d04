"""A query is the mean of its samples' G, however they arrive."""

import numpy as np
import pytest
import torch

from curator.models import CountedHidden, Head
from curator.value import QueryGradient
from tests.value.test_reference import KINDS, dense_gradients, each, random_counted, random_head

COUNTS = [4, 1, 17, 9]


def query_gradient(batches: list[CountedHidden], head: Head, max_elements: int = 1 << 25) -> np.ndarray:
    query = QueryGradient(head, max_elements=max_elements)
    for batch in batches:
        query.add(batch)
    assert query.num_samples == sum(len(batch.counts) for batch in batches)
    assert query.num_tokens == sum(sum(batch.counts) for batch in batches)
    return query.mean().numpy()


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_it_is_the_mean_of_the_samples_gradients(kind: str, bias: bool) -> None:
    """Over samples, not tokens: each counts alike, however long it is."""
    head = random_head(40, 8, bias=bias, **KINDS[kind])
    batch = random_counted(COUNTS, head)
    expected = dense_gradients(batch, head).mean(0)
    np.testing.assert_allclose(query_gradient([batch], head), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("max_elements", [1, 40, 200, 1 << 25])
@pytest.mark.parametrize("apart", [False, True])
def test_batches_and_blocks_do_not_change_it(apart: bool, max_elements: int) -> None:
    """Blocks of tokens cut through samples, and may be a single token."""
    head = random_head(40, 8)
    batch = random_counted(COUNTS, head)
    found = query_gradient(each(batch)[::-1] if apart else [batch], head, max_elements)
    np.testing.assert_allclose(found, query_gradient([batch], head), rtol=1e-4, atol=1e-5)


def test_the_gradients_of_two_sets_add_up() -> None:
    """n_A mean(A) + n_B mean(B) = (n_A + n_B) mean(A and B), and the mean of the singles is that of the set."""
    head = random_head(40, 8)
    first, second = random_counted(COUNTS, head), random_counted([3, 30], head, seed=5)
    both = (4 * query_gradient([first], head) + 2 * query_gradient([second], head)) / 6
    np.testing.assert_allclose(query_gradient([first, second], head), both, rtol=1e-4, atol=1e-5)
    singles = [query_gradient([one], head) for one in each(first)]
    np.testing.assert_allclose(query_gradient([first], head), np.mean(singles, axis=0), rtol=1e-4, atol=1e-5)


def test_reading_the_mean_does_not_disturb_the_sum() -> None:
    head = random_head(40, 8)
    query = QueryGradient(head)
    assert not query.mean().any()
    batch = random_counted(COUNTS, head)
    query.add(batch)
    first = query.mean()
    query.add(batch)
    torch.testing.assert_close(query.mean(), first)


def test_a_bfloat16_model_is_summed_in_float32() -> None:
    head = Head(random_head(40, 8).weight.bfloat16(), None)
    batch = random_counted([300], head)
    errors, _ = head.errors(batch.hidden, batch.labels)
    expected = errors.double().T @ batch.hidden.double()
    np.testing.assert_allclose(query_gradient([batch], head), expected, rtol=1e-4, atol=1e-4)
