"""The model over windows of samples: here, or on several devices by one worker process each.

A sample's representation does not depend on who computes it, so the number of devices changes no value.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TypeVar

import torch

from curator.errors import CuratorError
from curator.models import Checkpoint
from curator.types import EncodedSample
from curator.value import Forward, Representation
from index.projection import Projection

__all__ = ["Local", "Part", "Recipe", "Wait", "Workers", "represented"]

T = TypeVar("T")
Part = Representation | str  # or the reason why a sample has none
Wait = Callable[[], list[Part]]  # a part for each sample of a window, once they are there
OnPassed = Callable[[int, int], None]  # samples and tokens that have been through the model


def represented(
    samples: Sequence[EncodedSample],
    forward: Forward,
    projection: Projection,
    on_passed: OnPassed = lambda samples, tokens: None,
) -> list[Part]:
    """What the store keeps of each sample, or why nothing: in order, whatever the batches were."""
    found: dict[int, Part] = {}
    for positions, parts in forward.representations(samples, projection):
        for at, position in enumerate(positions):
            if parts is None:
                found[position] = f"out of memory: {samples[position].num_tokens:,} tokens do not fit alone"
            elif not parts[at].is_finite:
                found[position] = "not finite: the model gives NaN or infinity on this sample"
            else:
                found[position] = parts[at]
        on_passed(len(positions), sum(samples[position].num_tokens for position in positions))
    return [found[position] for position in range(len(samples))]


class Local:
    """The model in this process, which is busy until a window is done."""

    capacity = 1

    def __init__(self, forward: Forward, projection: Projection, on_passed: OnPassed):
        self._forward, self._projection, self._on_passed = forward, projection, on_passed

    def submit(self, samples: Sequence[EncodedSample]) -> Wait:
        """Computes the window at once."""
        parts = represented(samples, self._forward, self._projection, self._on_passed)
        return lambda: parts


@dataclass(frozen=True)
class Recipe:
    """What a worker needs to load; paths, so that no tensor travels between processes."""

    model: Checkpoint
    dtype: str
    projection: Path
    batch_tokens: int


class Workers:
    """One process for each device, each with a model of its own. Use as a context; raises what loading raises.

    At most `capacity` windows may be under way: one in each device's model, and one that waits for it.
    """

    def __init__(self, devices: Sequence[str], recipe: Recipe, on_passed: OnPassed):
        self.capacity = 2 * len(devices)
        self._devices, self._on_passed = devices, on_passed
        context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
        self._processes = [ProcessPoolExecutor(1, mp_context=context) for _ in devices]
        self._next = 0
        threads = max(1, (os.cpu_count() or 1) // len(devices))
        starts = [
            process.submit(_start, recipe, device, threads)
            for process, device in zip(self._processes, devices, strict=True)
        ]
        for device, start in zip(devices, starts, strict=True):
            self._result(device, start)

    def __enter__(self) -> "Workers":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.shutdown(wait=True, cancel_futures=True)

    def submit(self, samples: Sequence[EncodedSample]) -> Wait:
        """Gives the window to the next device in turn: windows hold about as many tokens each."""
        at, self._next = self._next, (self._next + 1) % len(self._devices)
        under_way = self._processes[at].submit(_work, list(samples))

        def wait() -> list[Part]:
            parts = self._result(self._devices[at], under_way)
            self._on_passed(len(samples), sum(sample.num_tokens for sample in samples))
            return parts

        return wait

    def _result(self, device: str, under_way: Future[T]) -> T:
        try:
            return under_way.result()
        except BrokenProcessPool as error:
            raise CuratorError(
                f"the worker process on {device} died (killed for memory?); what is committed is safe, "
                "the same command continues"
            ) from error


_loaded: tuple[Forward, Projection]  # of a worker process


def _start(recipe: Recipe, device: str, threads: int) -> None:
    global _loaded
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the ingest ends its workers itself
    torch.set_num_threads(threads)
    lm = recipe.model.load(device=device, dtype=recipe.dtype)
    projection = Projection.load(recipe.projection).to(lm.device)
    _loaded = (Forward(lm, recipe.batch_tokens), projection)


def _work(samples: list[EncodedSample]) -> list[Part]:
    return represented(samples, *_loaded)
