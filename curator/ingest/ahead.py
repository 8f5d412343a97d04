"""Runs an iterator ahead of its consumer, in a thread of its own."""

import contextlib
from collections.abc import Generator
from queue import Empty, Full, Queue
from threading import Event, Thread
from typing import TypeVar

__all__ = ["ahead"]

T = TypeVar("T")
_POLL_SECONDS = 0.05


def ahead(items: Generator[T, None, None], depth: int = 1) -> Generator[T, None, None]:
    """The items, made up to `depth` of them before they are asked for; an error of theirs is raised here.

    Close it (contextlib.closing) to stop early: `items` is then closed too, in its own thread.
    """
    queue: Queue[tuple[T | None, BaseException | None]] = Queue(depth)
    is_stopped = Event()

    def put(item: T | None, error: BaseException | None) -> None:
        while not is_stopped.is_set():
            with contextlib.suppress(Full):
                queue.put((item, error), timeout=_POLL_SECONDS)
                return

    def work() -> None:
        end: BaseException = StopIteration()
        with contextlib.closing(items):
            try:
                for item in items:
                    put(item, None)
                    if is_stopped.is_set():
                        return
            except BaseException as error:  # noqa: BLE001 (raised again where the items are asked for)
                end = error
        put(None, end)

    thread = Thread(target=work, name="ahead", daemon=True)
    thread.start()
    try:
        while True:
            item, error = _get(queue)
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]
    finally:
        is_stopped.set()
        thread.join()


def _get(queue: Queue[tuple[T | None, BaseException | None]]) -> tuple[T | None, BaseException | None]:
    while True:  # in short waits: Ctrl-C must get through on every platform
        with contextlib.suppress(Empty):
            return queue.get(timeout=_POLL_SECONDS)
