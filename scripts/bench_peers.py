#!/usr/bin/env python
"""Side by side, same model, texts, dtype and threads: bare forward, ingest, bergson's build, a rescan, and a query.

    scripts/bench_peers.py --model M --train T --test Q --bergson VENV --plot scripts/results/peers.svg

T and Q are JSON lines (.gz too) whose rows become one text each: the prompt field, a line break, the response field.
Every token counts. VENV is an environment with bergson 2.5.1; without it, its rows are left out. Prints Markdown.
"""

import argparse
import gzip
import importlib.util
import json
import os
import random
import re
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peer_bergson import Bergson, run, seconds
from peer_rescan import Rescan
from transformers.utils import logging

from curator import Curator
from curator.query import Answering
from curator.query.percentiles import Corpus

FEW = 16  # rows of the run that shows what a command costs before its first row
STAGES = {
    "gradient": (Answering, "prepare"),
    "search": (Answering, "_search"),
    "rerank": (Answering, "_rerank"),
    "percentiles": (Corpus, "distribution"),
    "items": (Answering, "_items"),
}


def main() -> None:
    """Parses the command line and runs the parts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--train", required=True, type=Path)
    parser.add_argument("--test", required=True, type=Path)
    parser.add_argument("--prompt-field", default="question")
    parser.add_argument("--response-field", default="answer")
    parser.add_argument("--bergson", type=Path, help="the directory of bergson's virtual environment")
    parser.add_argument("--part", nargs="+", choices=["ingest", "growth", "long"], default=["ingest", "growth", "long"])
    parser.add_argument("--ingest-rows", type=int, default=400)
    parser.add_argument("--sizes", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--growth-tokens", type=int, default=32, help="samples of part growth are cut at this length")
    parser.add_argument("--long-rows", type=int, default=10_000, help="samples of part long, at full length")
    parser.add_argument("--queries", type=int, default=100, help="samples of the validation set")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args()
    if args.plot and importlib.util.find_spec("matplotlib") is None:
        parser.error("--plot needs matplotlib")
    # Threads that spin while they wait cost bergson most of all (4 times its time on a busy machine): for all alike.
    os.environ |= {"OMP_NUM_THREADS": str(args.threads), "OMP_WAIT_POLICY": "PASSIVE", "HF_HUB_OFFLINE": "1",
                   "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
    torch.set_num_threads(args.threads)
    logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(args, Path(folder))
        for part in args.part:
            getattr(bench, part)()


def texts_of(path: Path, args: argparse.Namespace) -> list[str]:
    """One text a row."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        rows = [json.loads(line) for line in file]
    return [f"{row[args.prompt_field]}\n{row[args.response_field]}" for row in rows]


def recombined(texts: list[str], count: int, seed: int = 0, most_characters: int | None = None) -> list[str]:
    """The texts, and further ones up to `count`: a real text with half of its sentences and lines exchanged.

    Each comes from the same place (first, second, ...) of another real text, so the words and lengths are those of
    real ones; what they say is not sensible. All are different, also where they are cut at `most_characters`.
    """
    generator = random.Random(seed)
    sentences = [re.split(r"(?<=[.?!] )|(?<=\n)", text) for text in texts]
    found = dict.fromkeys(text[:most_characters] for text in texts[:count])
    while len(found) < count:
        made = list(generator.choice(sentences))
        for place in range(generator.randrange(2), len(made), 2):
            other = generator.choice(sentences)
            made[place] = other[min(place, len(other) - 1)]
        found["".join(made)[:most_characters]] = None
    return list(found)


def write_texts(path: Path, texts: list[str]) -> Path:
    """Writes texts as JSON lines with one column."""
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


class Bench:
    """The parts; each prints its tables."""

    def __init__(self, args: argparse.Namespace, folder: Path):
        self.args, self.folder = args, folder
        self.rescan = Rescan(args.model)
        fits = self.rescan.limit
        train = texts_of(args.train, args)
        self.train = [t for t, ids in zip(train, self.rescan.encode(train, fits + 1), strict=True) if len(ids) <= fits]
        self.test = texts_of(args.test, args)[: args.queries]
        self.validation = write_texts(folder / "validation.jsonl", self.test)
        self.bergson = Bergson(args.bergson, args.model, folder) if args.bergson else None
        if self.bergson is None:
            print("bergson is left out: no --bergson\n")

    def ingest(self) -> None:
        """Whole commands, alternated, and what each costs beyond its start."""
        texts = self.train[: self.args.ingest_rows]
        samples = self.rescan.encode(texts, self.rescan.limit)
        tokens = sum(map(len, samples))
        many, few = write_texts(self.folder / "many.jsonl", texts), write_texts(self.folder / "few.jsonl", texts[:FEW])
        commands: dict[str, Callable[[Path], float]] = {
            "ingest, first (with calibration)": lambda data: self._ingest_command(data, is_new=True),
            "ingest into an existing space": lambda data: self._ingest_command(data, is_new=False),
        }
        if self.bergson:
            for size in dict.fromkeys((self.rescan.limit, self.bergson.largest_batch)):
                commands[f"bergson build, {size:,} tokens a batch"] = partial(self.bergson.build, token_batch=size)
        self._ingest_command(many, is_new=True, name="existing")  # the space of the second row
        starts = {name: command(few) for name, command in commands.items()}
        times: dict[str, list[float]] = {name: [] for name in ("bare forward", *commands)}
        for _ in range(self.args.repeats):
            times["bare forward"].append(seconds(lambda: self.rescan.forward(samples)))
            for name, command in commands.items():
                times[name].append(command(many))
                print(f"{name}: {times[name][-1]:.1f} s", file=sys.stderr, flush=True)
        self._print_ingest(times, starts, tokens, sum(map(len, samples[:FEW])), len(texts))

    def _ingest_command(self, data: Path, *, is_new: bool, name: str = "fresh") -> float:
        store = self.folder / (name if is_new else "existing")
        if is_new:
            shutil.rmtree(store, ignore_errors=True)
        dataset = f"d{time.time_ns()}"  # rows are new to their dataset
        took = run([sys.executable, "-m", "curator", "ingest", data, "--text-field", "text", "--model", self.args.model,
                    "--store", store, "--dataset", dataset, "--dtype", "float32", "--quiet"])  # fmt: skip
        if name == "fresh" and is_new and data.stem == "many":
            self.tiers = bytes_of(store)
        return took

    def _print_ingest(
        self, times: dict[str, list[float]], starts: dict[str, float], tokens: int, few_tokens: int, count: int
    ) -> None:
        print(f"### Ingest\n\n{count:,} samples, {tokens:,} tokens, every token counts, float32, ", end="")
        print(f"{self.args.threads} threads; medians of {self.args.repeats} alternated runs\n")
        print("| | whole command, s | of it before the first row, s | tokens/s beyond | bytes a sample |")
        print("|---|---|---|---|---|")
        for name, taken in times.items():
            whole, start = statistics.median(taken), starts.get(name, 0.0)
            rate = tokens / whole if name not in starts else (tokens - few_tokens) / (whole - start)
            size = "" if name == "bare forward" else self.tiers
            if name.startswith("bergson") and self.bergson:
                size = f"{self.bergson.num_bytes / count:,.0f}"
            print(f"| {name} | {whole:.1f} | {start:.1f} | {rate:,.0f} | {size} |")
        print(flush=True)

    def growth(self) -> None:
        """A new validation set against one store that grows, cold and warm, and against a rescan."""
        args = self.args
        print(f"### A new validation set of {len(self.test)} samples, as the corpus grows\n")
        print(f"Samples cut at {args.growth_tokens} tokens; the {len(self.train):,} real ones and recombined ones.\n")
        # What lies behind the cut is not even tokenised: a token has no more than 4 characters on average.
        texts = recombined(self.train, max(args.sizes), most_characters=4 * args.growth_tokens)
        lines = Lines()
        with Curator.open(self.folder / "growing", device="cpu") as curator:
            for size in sorted(args.sizes):
                self._compare(curator, texts[:size], args.growth_tokens, lines)
        if self.bergson:
            self._grow_bergson(texts, lines)
        lines.show(len(self.test))
        if args.plot:
            lines.plot(args.plot, len(self.test))

    def long(self) -> None:
        """One size at full length."""
        texts = recombined(self.train, self.args.long_rows)
        print(f"### The same at full length, {len(texts):,} samples of up to {self.rescan.limit} tokens\n")
        lines = Lines()
        with Curator.open(self.folder / "long", device="cpu") as curator:
            self._compare(curator, texts, self.rescan.limit, lines)
        lines.show(len(self.test))

    def _compare(self, curator: Curator, texts: list[str], max_length: int, lines: "Lines") -> None:
        size, args = len(texts), self.args
        data = write_texts(self.folder / "growing.jsonl", texts)
        before = curator.status()["spaces"][0]["samples"] if curator.status()["spaces"] else 0
        took = seconds(lambda: curator.ingest(data, dataset="train", model=str(args.model), text_field="text",
                                              max_length=max_length, dtype="float32"))  # fmt: skip
        samples, asked = (self.rescan.encode(list(each), max_length) for each in (texts, self.test))
        print(f"{size:,} samples: {size - before:,} ingested in {took:.0f} s", end="")
        lines.add("query, command, index built first", size, self._query_command(curator.path))
        whole, warm, stages = [], [], []
        values = np.empty(0)
        for repeat in range(args.repeats if size <= 10_000 and max_length == args.growth_tokens else 1):
            started = time.perf_counter()
            gradient = self.rescan.gradient(asked)
            lines.floor.append(time.perf_counter() - started)
            values = self.rescan.values(samples, gradient)
            whole.append(time.perf_counter() - started)
            if not repeat:
                curator.query(data=self.validation, text_field="text")
            for _ in range(args.repeats):
                with stopwatch() as parts:
                    warm.append(seconds(lambda: curator.query(data=self.validation, text_field="text")))
                stages.append(parts)
        lines.add("rescan", size, statistics.median(whole))
        cold = [self._query_command(curator.path) for _ in range(args.repeats if size <= 10_000 else 1)]
        lines.add("query, command", size, statistics.median(cold))
        lines.add("query, warm", size, statistics.median(warm))
        lines.stages[size] = {name: statistics.median(part[name] for part in stages) for name in stages[0]}
        print(f"; {self._agreement(curator, values)}\n", flush=True)

    def _query_command(self, store: Path) -> float:
        return run([sys.executable, "-m", "curator", "query", "--data", self.validation, "--text-field", "text",
                    "--store", store, "--json"])  # fmt: skip

    def _agreement(self, curator: Curator, values: np.ndarray) -> str:
        """How far the exact tier is from the rescan, and how many of the ten at each end the default answer shares."""
        exact = curator.query(data=self.validation, text_field="text", exact=True)
        items = exact.helpful + exact.harmful
        apart = max(abs(item.value - values[row_of(item.key)]) for item in items) / np.abs(values).max()
        answer = curator.query(data=self.validation, text_field="text")
        # By value, since texts that differ only beyond the cut are one and the same sample to the model.
        tie = 1e-6 * np.abs(values).max()
        ends = ((answer.helpful, values), (answer.harmful, -values))
        shared = [
            sum(of_end[row_of(item.key)] >= np.partition(of_end, -10)[-10] - tie for item in items)
            for items, of_end in ends
        ]
        assert apart < 1e-3, f"the rescan and the exact tier disagree: {apart:.1e}"
        return (
            f"exact tier and rescan differ by {apart:.0e} of the largest value; of the rescan's top and bottom 10 the "
            f"default answer has {shared[0]} and {shared[1]}"
        )

    def _grow_bergson(self, texts: list[str], lines: "Lines") -> None:
        """bergson's index of the smallest corpus, measured; larger ones are its rows repeated, for the search alone."""
        assert self.bergson is not None
        smallest = min(self.args.sizes)
        encoded = self.rescan.encode(texts[:smallest], self.args.growth_tokens - 1)
        cut = self.rescan.tokenizer.batch_decode([ids.tolist() for ids in encoded], skip_special_tokens=True)
        data = write_texts(self.folder / "cut.jsonl", cut)
        self.bergson.build(data, self.bergson.largest_batch)
        lines.add("bergson score: gradients of the corpus again", smallest, self.bergson.score(data, self.validation))
        for size in sorted(self.args.sizes):
            stages = self.bergson.query(self.validation, size // smallest)
            lines.add("bergson, warm, on its index: gradient, read, search", size, sum(stages.values()))
            lines.add("bergson, search alone", size, stages["search"])


class Lines:
    """Seconds by way of answering and corpus size."""

    def __init__(self) -> None:
        self.seconds: dict[str, dict[int, float]] = {}
        self.stages: dict[int, dict[str, float]] = {}
        self.floor: list[float] = []  # the validation set's own gradient, which the rescan needs too

    def add(self, name: str, size: int, took: float) -> None:
        """One point, told at once: a run takes minutes."""
        self.seconds.setdefault(name, {})[size] = took
        print(f"{name}, {size:,}: {took:.3f} s", file=sys.stderr, flush=True)

    def show(self, num_queries: int) -> None:
        """The tables: seconds, stages, and how many times a rescan."""
        sizes = sorted(self.stages)
        print("| seconds | " + " | ".join(f"{size:,}" for size in sizes) + " |")
        print("|---" * (len(sizes) + 1) + "|")
        for name, points in self.seconds.items():
            print(f"| {name} | " + " | ".join(f"{points[s]:.3f}" if s in points else "" for s in sizes) + " |")
        for name in next(iter(self.stages.values())):
            print(f"| of a warm query: {name} | " + " | ".join(f"{self.stages[s][name]:.3f}" for s in sizes) + " |")
        gradient = statistics.median(self.floor)
        print(f"\nThe gradient of the {num_queries} samples, which both need, takes the rescan {gradient:.3f} s.\n")
        print("| rescan over warm query | " + " | ".join(f"{size:,}" for size in sizes) + " |")
        print("|---" * (len(sizes) + 1) + "|")
        rescan, warm = self.seconds["rescan"], self.seconds["query, warm"]
        rest = {s: warm[s] - self.stages[s]["gradient"] for s in sizes}
        print("| all of it | " + " | ".join(f"{rescan[s] / warm[s]:,.0f}" for s in sizes) + " |")
        print(
            "| without the gradient | " + " | ".join(f"{(rescan[s] - gradient) / rest[s]:,.0f}" for s in sizes) + " |"
        )
        print(flush=True)

    def plot(self, path: Path, num_queries: int) -> None:
        """Seconds over corpus size, both logarithmic, as SVG."""
        import matplotlib  # a development dependency: only the plot needs it

        matplotlib.use("svg")
        from matplotlib import pyplot

        figure, axes = pyplot.subplots(figsize=(7, 4.5))
        for name, points in self.seconds.items():
            axes.plot(list(points), list(points.values()), marker="o", label=name)
        axes.axhline(statistics.median(self.floor), color="grey", linestyle=":", label="gradient of the validation set")
        axes.set(xscale="log", yscale="log", xlabel="samples in the corpus", ylabel="seconds")
        axes.set_title(f"A new validation set of {num_queries} samples")
        axes.legend(fontsize=8)
        figure.savefig(path, metadata={"Date": None})


@contextmanager
def stopwatch() -> Iterator[dict[str, float]]:
    """Seconds that queries spend in each stage; a rerank is part of no search."""
    found = dict.fromkeys(STAGES, 0.0)
    kept = {stage: getattr(owner, name) for stage, (owner, name) in STAGES.items()}

    def timed(stage: str, work: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            started = time.perf_counter()
            result = work(*arguments, **named)
            found[stage] += time.perf_counter() - started
            return result

        return call

    for stage, (owner, name) in STAGES.items():
        setattr(owner, name, timed(stage, kept[stage]))
    try:
        yield found
    finally:
        for stage, (owner, name) in STAGES.items():
            setattr(owner, name, kept[stage])
        found["search"] -= found["rerank"]


def bytes_of(store: Path) -> str:
    """Bytes a sample, by tier."""
    with Curator.open(store, create=False, device="cpu") as curator:
        space = curator.status()["spaces"][0]
    tiers = {name: size / space["samples"] for name, size in space["bytes"].items() if name in ("sketches", "factors")}
    return ", ".join(f"{name} {size:,.0f}" for name, size in tiers.items())


def row_of(key: str) -> int:
    """The row of a sample without a key of its own: dataset:row."""
    return int(key.rsplit(":", 1)[1])


if __name__ == "__main__":
    main()
