"""Batches filled by tokens."""

from hypothesis import given
from hypothesis import strategies as st

from curator.models import make_batches

LENGTHS = st.lists(st.integers(0, 50), max_size=60)
BUDGET = st.integers(1, 200)


@given(LENGTHS, BUDGET)
def test_every_index_comes_once(lengths: list[int], budget: int) -> None:
    batches = list(make_batches(lengths, budget))
    assert sorted(i for batch in batches for i in batch) == list(range(len(lengths)))
    assert all(batches)


@given(LENGTHS, BUDGET)
def test_the_budget_holds_unless_a_batch_is_one_sample(lengths: list[int], budget: int) -> None:
    for batch in make_batches(lengths, budget):
        assert len(batch) == 1 or len(batch) * max(lengths[i] for i in batch) <= budget


@given(LENGTHS, BUDGET)
def test_long_samples_come_first(lengths: list[int], budget: int) -> None:
    in_order = [lengths[i] for batch in make_batches(lengths, budget) for i in batch]
    assert in_order == sorted(lengths, reverse=True)


@given(LENGTHS, BUDGET)
def test_no_batch_could_take_one_more(lengths: list[int], budget: int) -> None:
    for batch in list(make_batches(lengths, budget))[:-1]:
        assert (len(batch) + 1) * max(lengths[i] for i in batch) > budget or not lengths[batch[0]]
