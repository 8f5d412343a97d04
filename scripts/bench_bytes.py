#!/usr/bin/env python
"""Measures what bytes buy: fidelity of the sketch and of the rerank against the size of what is kept.

    scripts/bench_bytes.py --model M --train T --test Q --prompt-field question --response-field answer --plots DIR

Prints Markdown tables and writes SVG plots (needs matplotlib). Exact values come from the definition: G of
every sample, inner products. `err` is the size of what a rerank adds wrongly over the size of what it should add; an
overlap is the share of the exact top / bottom 10 that is found; `pre` is the preconditioned value, damping 10.
"""

import argparse
import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from bench_engine import DAMPING, encode, rows_of
from scipy.stats import rankdata

import index.factors
from curator.models import CausalLM
from curator.types import EncodedSample
from curator.value import Forward, Method, QueryRepresentation, Ranks, calibrate, prepare
from index.factors import ERROR_STEP, KeptErrors, QuantizedFactors, keep_errors, quantize, token_values
from index.packing import pack, planes_of, unpack
from index.projection import Projection

CHUNK = 50  # samples whose gradients exist at once
SHOWN: dict[str, Method] = {"raw": "raw", "pre": "preconditioned"}
WIDTHS = (128, 256, 512, 1024, 2048, 4096)
Rounded = tuple[torch.Tensor, torch.Tensor]  # errors [K, V] and hidden states [K, F] as they come back from storage


def main() -> None:
    """Parses the command line, measures, prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--train", required=True, type=Path, help="JSON lines, plain or .gz")
    parser.add_argument("--test", required=True, type=Path)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--prompt-field")
    parser.add_argument("--response-field")
    parser.add_argument("--positions", choices=["response", "all"], default="all")
    parser.add_argument("--rerank", type=int, default=100)
    parser.add_argument(
        "--tables", nargs="+", choices=["sketch", "factors", "cost"], default=["sketch", "factors", "cost"]
    )
    parser.add_argument("--plots", type=Path, help="write SVG plots here")
    args = parser.parse_args()
    with torch.inference_mode():
        corpus = Corpus.load(args)
        tables = {"sketch": sketch_table, "factors": factor_table, "cost": cost_table}
        points = {name: tables[name](corpus) for name in args.tables}
        if args.plots:
            for name in ("sketch", "factors"):
                if name in points:
                    plot(
                        args.plots / f"bytes_{name}.svg",
                        points[name],
                        "bytes of a sketch" if name == "sketch" else "bytes of factors, a counted token",
                    )


@dataclass
class Corpus:
    """Training tokens on the hidden basis, queries as gradients, exact raw values."""

    errors: torch.Tensor  # [K, V]
    hidden: torch.Tensor  # [K, F]
    labels: torch.Tensor  # [K]
    counts: list[int]  # tokens of each of N samples
    queries: torch.Tensor  # G of each query [Q, V, H]
    raw: np.ndarray  # [N, Q]
    sketches: torch.Tensor  # [N, widest]
    cores: torch.Tensor  # [N, M * R]
    query_sketches: torch.Tensor  # [Q, widest]
    projection: Projection  # the widest; its first D columns are the one of width D
    rerank: int

    @classmethod
    def load(cls, args: argparse.Namespace) -> "Corpus":
        """Runs the model over both sets and fits the projection as an ingest does."""
        lm = CausalLM.load(args.model, device="cpu", dtype="float32")
        train = encode(args, lm, _rows(args, args.train, args.rows))
        test = encode(args, lm, _rows(args, args.test, args.queries))
        drawn = random.Random(0).sample(train, min(len(train), max(256, len(train) // 8)))
        projection = calibrate(Forward(lm).hidden(drawn), lm.head, ranks=Ranks(width=max(WIDTHS)), seed=0)
        queries = torch.stack([errors.T @ hidden for errors, hidden, _ in _tokens(lm, test)])
        parts = list(_tokens(lm, train))
        raw, sketches, cores = [], [], []
        hidden_basis = projection.hidden_basis[:, : projection.hidden_rank]
        for errors, hidden, _ in parts:
            gradient = (errors.double().T @ hidden.double()).float()
            raw.append(queries.flatten(1) @ gradient.flatten())
            sketches.append(projection.sketch_gradient(gradient))
            cores.append((projection.error_basis.T @ gradient @ hidden_basis).flatten())
        return cls(
            torch.cat([errors for errors, _, _ in parts]),
            torch.cat([hidden @ projection.hidden_basis for _, hidden, _ in parts]),
            torch.cat([labels for _, _, labels in parts]),
            [len(labels) for _, _, labels in parts],
            queries,
            torch.stack(raw).double().numpy(),
            torch.stack(sketches),
            torch.stack(cores),
            torch.stack([projection.sketch_gradient(query) for query in queries]),
            projection,
            args.rerank,
        )

    def narrowed(self, width: int) -> "View":
        """The same corpus seen through a projection of D = width."""
        full = self.projection
        width = min(width, full.width)
        rotation, moment = full.rotation[:, :width].contiguous(), full.second_moment[:width]
        projection = Projection(full.error_basis, full.hidden_basis, rotation, moment)
        weights = projection.damped_weights(DAMPING)
        represented = [QueryRepresentation.of(query, projection) for query in self.queries]
        taken = torch.stack([(weights * query.core(projection)).flatten() for query in represented])
        exact = {"raw": self.raw, "pre": self.raw - (self.cores.double() @ taken.double().T).numpy()}
        prepared = {
            name: [prepare(query, projection, method, DAMPING) for query in represented]
            for name, method in SHOWN.items()
        }
        search = {
            name: torch.from_numpy(np.stack([one.search for one in asked])).double() for name, asked in prepared.items()
        }
        rest = {name: torch.stack([one.outside for one in asked]) for name, asked in prepared.items()}
        return View(width, self.sketches[:, :width], search, exact, rest, self.rerank)

    def added(
        self, view: "View", rounded: Callable[[slice, list[int]], Rounded] | None = None
    ) -> dict[str, np.ndarray]:
        """What a rerank adds to the sketch's values by method, [N, Q], from factors, rounded or in float32."""
        found, start = [], 0
        matrices = torch.cat(list(view.outside.values())).flatten(1).T.contiguous()
        for first in range(0, len(self.counts), CHUNK):
            counts = self.counts[first : first + CHUNK]
            part = slice(start, start := start + sum(counts))
            errors, hidden = rounded(part, counts) if rounded else (self.errors[part], self.hidden[part])
            pairs = zip(errors.split(counts), hidden.split(counts), strict=True)
            found.append(torch.stack([(e.T @ h).flatten() for e, h in pairs]) @ matrices)
        parts = torch.cat(found).double().numpy()
        return dict(zip(view.outside, np.split(parts, len(view.outside), axis=1), strict=True))


@dataclass
class View:
    """A corpus through one projection."""

    width: int
    sketches: torch.Tensor  # float32 [N, D]
    search: dict[str, torch.Tensor]  # by method: float64 [Q, D]
    exact: dict[str, np.ndarray]  # by method: [N, Q]
    outside: dict[str, torch.Tensor]  # by method: [Q, V, F]
    rerank: int

    def values(self, stored: torch.Tensor) -> dict[str, np.ndarray]:
        """Values of sketches as they come back from storage."""
        return {method: (stored.double() @ search.T).numpy() for method, search in self.search.items()}

    def overlaps(
        self, values: dict[str, np.ndarray], added: dict[str, np.ndarray] | None
    ) -> dict[str, tuple[float, float]]:
        """Share of the exact 10 at each end, by method: (top, bottom), by the sketch or of reranked candidates."""
        return {
            method: self._overlap(values[method], added and added[method], exact)
            for method, exact in self.exact.items()
        }

    def _overlap(self, values: np.ndarray, added: np.ndarray | None, exact: np.ndarray) -> tuple[float, float]:
        shares = []
        for query in range(exact.shape[1]):
            order = np.argsort(-values[:, query])
            if added is not None:
                order = np.unique(np.concatenate([order[: self.rerank], order[-self.rerank :]]))
                order = order[np.argsort(-(values[order, query] + added[order, query]))]
            best = np.argsort(-exact[:, query])
            shares.append([len({*order[end]} & {*best[end]}) / 10 for end in (slice(10), slice(-10, None))])
        top, bottom = np.mean(shares, axis=0)
        return float(top), float(bottom)


def _rows(args: argparse.Namespace, path: Path, most: int) -> list[dict[str, str]]:
    fields = (args.prompt_field, args.response_field)
    rows = rows_of(path, 10**9)
    spread = rows[:: max(1, len(rows) // most)] if path == args.test else rows  # classes follow one another
    return [{field: str(row[field]) for field in fields} for row in spread[:most]]


def _tokens(lm: CausalLM, samples: list[EncodedSample]) -> Iterator[tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    for sample in samples:
        batch = lm.hidden([sample])
        yield lm.head.errors(batch.hidden, batch.labels)[0], batch.hidden.float(), batch.labels


def spearman(found: np.ndarray, exact: np.ndarray) -> float:
    """Mean over the queries."""
    ranks = [(rankdata(found[:, q]), rankdata(exact[:, q])) for q in range(exact.shape[1])]
    return float(np.mean([np.corrcoef(*pair)[0, 1] for pair in ranks]))


def _int8(rows: torch.Tensor, dim: int) -> torch.Tensor:
    steps = (rows.abs().amax(dim, keepdim=True) / 127).clamp_min(1e-30)
    return (rows / steps).round() * steps


def _float16(rows: torch.Tensor) -> torch.Tensor:
    scales = rows.abs().amax(1, keepdim=True).clamp_min(1e-30)
    return (rows / scales).half().float() * scales


SKETCH_FORMATS: dict[str, tuple[int, Callable[[torch.Tensor], torch.Tensor]]] = {
    "float16, scale a row": (2, _float16),
    "bfloat16": (2, lambda rows: rows.bfloat16().float()),
    "int8, scale a row": (1, lambda rows: _int8(rows, 1)),
    "int8, scale a column": (1, lambda rows: _int8(rows, 0)),
}
Point = tuple[str, float, float]  # series, bytes, overlap


def sketch_table(corpus: Corpus) -> list[Point]:
    """Prints fidelity against width and dtype, before and after a rerank by the factors that are stored."""
    print("| D | stored as | bytes | Spearman raw, pre | sketch: raw, pre | reranked: raw, pre |")
    print("|---|---|---|---|---|---|")
    points = []
    for width in WIDTHS:
        view = corpus.narrowed(width)
        if view.width < width:
            break
        added = corpus.added(view, lambda part, counts: shipped(corpus, part, counts))
        for name, (size, store) in SKETCH_FORMATS.items():
            values = view.values(store(view.sketches))
            before, after = view.overlaps(values, None), view.overlaps(values, added)
            correlations = [spearman(values[method], view.exact[method]) for method in ("raw", "pre")]
            print(
                f"| {width:,} | {name} | {size * width + 4:,} | {correlations[0]:.4f}, {correlations[1]:.4f} "
                f"| {_ends(before)} | {_ends(after)} |",
                flush=True,
            )
            points.append((name, float(size * width), float(np.mean(before["pre"]))))
    return points


def _ends(overlaps: dict[str, tuple[float, float]]) -> str:
    return ", ".join(f"{top:.3f} / {bottom:.3f}" for top, bottom in overlaps.values())


def shipped(
    corpus: Corpus, part: slice, counts: list[int], step: float = ERROR_STEP, finest: float | None = None
) -> Rounded:
    """Errors and hidden states as a segment gives them back."""
    kept, samples = _quantized(corpus, part, counts, step, finest)
    errors = torch.zeros(len(kept.labels), corpus.errors.shape[1])
    errors[torch.repeat_interleave(torch.arange(len(errors)), kept.counts), kept.others] = -step * kept.other_codes
    errors.scatter_(1, kept.labels[:, None], kept.label_codes[:, None] * (step / 4))
    return errors, torch.from_numpy(np.concatenate([sample.hidden_states() for sample in samples]))


def _quantized(
    corpus: Corpus, part: slice, counts: list[int], step: float, finest: float | None
) -> tuple[KeptErrors, list[QuantizedFactors]]:
    labels = corpus.labels[part]
    kept = keep_errors(corpus.errors[part], labels, torch.ones(len(labels), dtype=torch.bool), step)
    before = index.factors.FINEST_STEP
    index.factors.FINEST_STEP = before if finest is None else finest
    try:
        return kept, quantize(corpus.hidden[part], kept, counts)
    finally:
        index.factors.FINEST_STEP = before


def fixed(corpus: Corpus, part: slice, num_kept: int, rank: int) -> Rounded:
    """The layout of forvalue-segment/1: s errors and r hidden dimensions in int8 with a scale a token each."""
    errors, labels = corpus.errors[part], corpus.labels[part][:, None]
    others = errors.topk(num_kept - 1, dim=1, largest=False)
    tokens = torch.cat([labels, others.indices], dim=1)
    values = _int8(torch.cat([errors.gather(1, labels), others.values], dim=1), 1)
    hidden = _int8(corpus.hidden[part], 1)
    hidden[:, rank:] = 0
    return torch.zeros_like(errors).scatter_(1, tokens, values), hidden


def factor_table(corpus: Corpus) -> list[Point]:
    """Prints fidelity of the rerank against bytes a counted token, at the default width."""
    view = corpus.narrowed(Ranks().width)
    values = view.values(_float16(view.sketches))
    truth = view.exact["raw"] - view.values(view.sketches)["raw"]
    print("\n| factors | bytes a token | err | overlap raw | overlap pre |\n|---|---|---|---|---|")
    points = []

    def show(series: str, name: str, size: float, added: dict[str, np.ndarray]) -> None:
        wrong = np.sqrt(np.square(added["raw"] - truth).sum() / np.square(truth).sum())
        raw, pre = (_ends({"": ends}) for ends in view.overlaps(values, added).values())
        print(f"| {series}{name} | {size:.1f} | {wrong:.3f} | {raw} | {pre} |", flush=True)
        points.append((series, size, float(np.mean(view.overlaps(values, added)["pre"]))))

    show(
        "float32, nothing cut off", "", 4.0 * sum(corpus.errors.shape[1:] + corpus.hidden.shape[1:]), corpus.added(view)
    )
    full = corpus.hidden.shape[1]
    for num_kept, rank in [(s, full) for s in (8, 16, 32, 64)] + [(16, full // 2), (16, 3 * full // 4)]:
        added = corpus.added(view, lambda part, _, s=num_kept, r=rank: fixed(corpus, part, s, r))
        show("int8, fixed ", f"s = {num_kept}, r = {rank}", rank + 8 + 3 * num_kept, added)
    for inverse, finest in [(i, None) for i in (8, 12, 16, 24, 32, 48)] + [(24, f) for f in (0.022, 0.03, 0.06, 0.088)]:
        size = packed_size(corpus, 1 / inverse, finest)
        added = corpus.added(view, lambda part, counts, i=inverse, f=finest: shipped(corpus, part, counts, 1 / i, f))
        series = "steps of errors " if finest is None else "steps of hidden "
        name = f"1/{inverse}, hidden {index.factors.FINEST_STEP if finest is None else finest}"
        show(series, name, size, added)
    return points


def packed_size(corpus: Corpus, step: float, finest: float | None) -> float:
    """Bytes of a counted token in a segment, offsets and steps counted too, over a tenth of the corpus."""
    total = tokens = start = 0
    for number, count in enumerate(corpus.counts):
        part = slice(start, start := start + count)
        if number % 10 == 0:
            [sample] = _quantized(corpus, part, [count], step, finest)[1]
            total += len(pack(sample)) + 16 + 4 * sample.steps.shape[1]
            tokens += count
    return total / tokens


def cost_table(corpus: Corpus) -> list[Point]:
    """Prints what writing costs a sample, and reading costs a rerank."""
    counts = corpus.counts[:200]
    part = slice(0, sum(counts))
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], object]) -> object:
        work()
        times = []
        for _ in range(5):
            started = time.perf_counter()
            result = work()
            times.append(time.perf_counter() - started)
        seconds[name] = float(np.median(times))
        return result

    errors, labels = corpus.errors[part], corpus.labels[part]
    counted = torch.ones(len(labels), dtype=torch.bool)
    timed("topk of 15 errors, as before", lambda: errors.topk(15, dim=1, largest=False))
    kept = timed("keep_errors", lambda: keep_errors(errors, labels, counted, ERROR_STEP))
    samples = timed("quantize", lambda: quantize(corpus.hidden[part], kept, counts))  # type: ignore[arg-type]
    packed = timed("pack", lambda: [pack(sample) for sample in samples])  # type: ignore[attr-defined]
    rank = corpus.hidden.shape[1]
    steps = np.stack([one.steps[0] for one in samples])  # type: ignore[attr-defined]
    frames = [(data, len(one), rank) for data, one in zip(packed, samples, strict=True)]  # type: ignore[call-overload]
    read = timed("unpack", lambda: unpack([planes_of(*frame) for frame in frames], rank, steps))
    matrix = corpus.narrowed(Ranks().width).outside["raw"][0].contiguous()
    timed("token_values", lambda: token_values(read, matrix))  # type: ignore[arg-type]
    print(f"\n{len(counts)} samples, {len(labels):,} counted tokens, {torch.get_num_threads()} thread(s)\n")
    print("| | ms |\n|---|---|")
    for name, taken in seconds.items():
        print(f"| {name} | {1e3 * taken:.1f} |")
    return []


def plot(path: Path, points: list[Point], unit: str) -> None:
    """Writes a curve as SVG: overlap of the preconditioned value, mean of both ends, against bytes."""
    import matplotlib  # only here: the tables do without

    matplotlib.use("svg")
    matplotlib.rcParams.update({"svg.hashsalt": path.stem, "font.size": 9})
    from matplotlib import pyplot

    path.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(figsize=(6, 3.6))
    for series in dict.fromkeys(series for series, _, _ in points):
        own = sorted((size, share) for other, size, share in points if other == series)
        axes.plot(*zip(*own, strict=True), marker="o", label=series)
    axes.set(xlabel=unit, ylabel="overlap of 10 at each end, preconditioned", xscale="log")
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
