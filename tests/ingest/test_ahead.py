"""Ahead: the same items in the same order, never further ahead than asked, its errors raised where it is consumed."""

import threading
import time
from collections.abc import Generator
from contextlib import closing

import pytest

from curator.ingest.ahead import ahead


def test_items_come_in_order_from_another_thread():
    def items() -> Generator[tuple[int, str], None, None]:
        for number in range(50):
            yield number, threading.current_thread().name

    found = list(ahead(items()))
    assert [number for number, _ in found] == list(range(50))
    assert {name for _, name in found} == {"ahead"}


def test_it_is_no_further_ahead_than_asked():
    made: list[int] = []

    def items() -> Generator[int, None, None]:
        for number in range(10):
            made.append(number)
            yield number

    with closing(ahead(items(), depth=2)) as found:
        assert next(found) == 0
        time.sleep(0.2)
        assert len(made) <= 1 + 2 + 1  # asked for, waiting, in hand


def test_an_error_is_raised_after_the_items_before_it():
    def items() -> Generator[int, None, None]:
        yield 1
        raise ValueError("broken")

    found = ahead(items())
    assert next(found) == 1
    with pytest.raises(ValueError, match="broken"):
        next(found)


@pytest.mark.parametrize("asked", [0, 3])
def test_closed_early_it_closes_the_items_and_ends_its_thread(asked: int):
    closed = []

    def items() -> Generator[int, None, None]:
        try:
            yield from range(1000)
        finally:
            closed.append(threading.current_thread().name)

    with closing(ahead(items())) as found:
        for _ in range(asked):
            next(found)
    assert closed == (["ahead"] if asked else [])
    assert all(thread.name != "ahead" for thread in threading.enumerate())
