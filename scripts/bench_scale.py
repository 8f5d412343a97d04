#!/usr/bin/env python
"""Measures search over many synthetic samples (scripts/make_synthetic_store.py): the index in use, and its rivals.

    scripts/bench_scale.py index  CORPUS        # build, open, append, memory, latency, recall, filters, full scan
    scripts/bench_scale.py types  CORPUS --rows 131072 [--plot scripts/results/scale.svg]
    scripts/bench_scale.py store  STORE --queries Q --prompt-field P --response-field R     # whole queries, `values`

CORPUS is a directory of segments with queries.npz. A query is asked at both ends, k = 100, so each search is for two
rows; 16 queries are 32 rows. Recall is that of the exact scan (scan.top_k). Prints Markdown tables.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from index import FaissIndex, Segment, top_k
from index.rabitq import load_faiss, rotation
from index.scan import StoredRows, rank

K = 100
METHODS = ("raw", "preconditioned")
BLOCK_ROWS = 8_192


def both_ends(queries_QD: np.ndarray) -> np.ndarray:
    """Each query and its negative, float32 [2 Q, D]: even rows are helpful ends."""
    return np.stack([queries_QD, -queries_QD], axis=1).reshape(-1, queries_QD.shape[1])


def seconds(work: Callable[[], Any]) -> float:
    """Wall time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def latency(work: Callable[[np.ndarray], Any], queries_QD: np.ndarray, size: int, most: int = 60) -> str:
    """p50 / p95 in ms of searches for this many queries at both ends, after a warm-up of a quarter."""
    batches = [both_ends(queries_QD[at : at + size]) for at in range(0, len(queries_QD) - size + 1, size)][:most]
    times = [seconds(lambda b=batch: work(b)) for batch in batches]
    times = times[len(times) // 4 :]
    return f"{1e3 * np.percentile(times, 50):.0f} / {1e3 * np.percentile(times, 95):.0f}"


def private_bytes() -> int:
    """Memory of this process that is no mapped file."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) * 1024


class Corpus:
    """Segments, queries, and what the exact scan finds for them."""

    def __init__(self, root: Path, rows: int | None, num_queries: int):
        self.root = root
        paths = sorted((root / "segments").iterdir())
        self.opening = seconds(lambda: [Segment(path) for path in paths])
        self.segments = [Segment(path) for path in paths]
        if rows is not None:
            self.segments = self.segments[: max(1, rows // self.segments[0].num_samples)]
        self.num_rows = sum(segment.num_samples for segment in self.segments)
        self.width = self.segments[0].width
        stored = np.load(root / "queries.npz")
        self.queries = {method: stored[method][:num_queries] for method in METHODS}
        path = root / f"truth-{self.num_rows}-{num_queries}.npy"
        if not path.exists():
            searched = np.concatenate([both_ends(self.queries[method]) for method in METHODS])
            np.save(path, top_k(self.segments, searched, K)[0])
        truth = np.load(path)
        self.truth = dict(zip(METHODS, (truth[: 2 * num_queries], truth[2 * num_queries :]), strict=True))

    @property
    def mixed(self) -> np.ndarray:
        """Queries of both methods in turn."""
        return np.stack([self.queries[method] for method in METHODS], axis=1).reshape(-1, self.width)

    def recall(self, search: Callable[[np.ndarray, int], np.ndarray]) -> dict[str, list[float]]:
        """Method -> recall at 10 and at 100 of the helpful end, then of the harmful one; search gives ids."""
        found = {}
        for method in METHODS:
            ids_QK = np.concatenate([search(both_ends(q[None]), K) for q in self.queries[method]])
            found[method] = [
                float(
                    np.mean(
                        [
                            np.isin(self.truth[method][at, :k], ids_QK[at, :k]).mean()
                            for at in range(end, len(ids_QK), 2)
                        ]
                    )
                )
                for end in (0, 1)
                for k in (10, 100)
            ]
        return found


def measure_index(args: argparse.Namespace) -> None:
    """The table of the index in use."""
    corpus = Corpus(args.corpus, args.rows, args.num_queries)
    segments, names = corpus.segments, [segment.directory.name for segment in corpus.segments]
    directory = corpus.root / f"index-{corpus.num_rows}"
    held_back = len(segments) - -(-10_000 // segments[0].num_samples)
    load_faiss().IndexFlatIP(1)
    rotation(corpus.width)
    print(f"{corpus.num_rows:,} samples x {corpus.width}, {len(segments)} segments\n\n| | |\n|---|---|")
    if not directory.exists():
        built = seconds(lambda: FaissIndex.open(directory, segments[:held_back], names=names[:held_back]))
        print(f"| build, all but the last 10,000 | {built:.0f} s |")
        appended = seconds(lambda: FaissIndex.open(directory, segments, names=names))
        print(f"| open again with 10,000 more | {appended:.2f} s |", flush=True)
    before = private_bytes()
    opened = time.perf_counter()
    index = FaissIndex.open(directory, segments, names=names)
    opened = time.perf_counter() - opened
    index.search(both_ends(corpus.mixed[:1]), K)
    print(f"| open: segments, index | {corpus.opening:.2f} s, {opened:.2f} s |")
    print(f"| memory of the index | {(private_bytes() - before) / corpus.num_rows:.0f} bytes a sample |")
    print(f"| and of open segments (ids, norms) | 12 bytes a sample |\n| how.index | {index.describe()} |")
    print(f"| 1 query, both ends: p50 / p95 | {latency(lambda q: index.search(q, K), corpus.mixed, 1)} ms |")
    for method in METHODS:
        print(f"| of these {method} | {latency(lambda q: index.search(q, K), corpus.queries[method], 1)} ms |")
    print(
        f"| 16 queries, both ends: p50 / p95 | {latency(lambda q: index.search(q, K), corpus.mixed, 16)} ms |",
        flush=True,
    )
    for method, recalls in corpus.recall(lambda q, k: index.search(q, k)[0]).items():
        print(f"| {method}: recall@10, @100 helpful, @10, @100 harmful | {', '.join(f'{r:.4f}' for r in recalls)} |")
    scanned = seconds(lambda: top_k(segments, both_ends(corpus.mixed[:1]), K))
    print(f"| exact scan of all, 1 query at both ends | {scanned:.2f} s |")
    _filters(corpus, index)


def _filters(corpus: Corpus, index: FaissIndex) -> None:
    print(
        "\n| filter admits | recall@100, both ends | not admitted | p50 / p95, 1 query, both ends |\n|---|---|---|---|"
    )
    stored = np.concatenate([segment.ids for segment in corpus.segments])
    queries = corpus.mixed[:24]
    for share in (0.001, 0.1, 0.9):
        allowed = stored[np.random.default_rng(1).random(len(stored)) < share]
        expected = top_k(corpus.segments, both_ends(queries[:8]), K, allowed=allowed)[0]
        found = np.concatenate([index.search(both_ends(q[None]), K, allowed=allowed)[0] for q in queries[:8]])
        recall = np.mean([np.isin(row, got).mean() for row, got in zip(expected, found, strict=True)])
        wrong = int((~np.isin(found, allowed)).sum())
        times = latency(lambda q, a=allowed: index.search(q, K, allowed=a), queries, 1)
        print(f"| {share:.1%} | {recall:.4f} | {wrong} | {times} ms |", flush=True)


def measure_types(args: argparse.Namespace) -> None:
    """One table of index types over the same rows, balanced and rotated, with rescoring of their candidates."""
    corpus = Corpus(args.corpus, args.rows, args.num_queries)
    stored = StoredRows(corpus.segments)
    sample_ND = stored.gather(np.arange(0, len(stored), max(1, len(stored) // 16_384))).float().numpy()
    variance_D = np.square(sample_ND, dtype=np.float64).mean(0)
    points: dict[str, list[tuple[float, float]]] = {}
    print(f"{corpus.num_rows:,} samples x {corpus.width}, one thread a search\n")
    print("| type | candidates | build | bytes a sample | both ends, p50 | recall@100: raw +, -, preconditioned +, - |")
    print("|---|---|---|---|---|---|")
    for name, make in _types(corpus.width).items():
        if args.only and name not in args.only:
            continue
        exponent = 0.0 if "HNSW" in name or "IVF" in name or "Flat" in name else 3 / 16
        w_D = ((variance_D / variance_D.mean() + 1e-6) ** exponent).astype(np.float32)
        turn_DD = rotation(corpus.width) if exponent else np.eye(corpus.width, dtype=np.float32)
        start = time.perf_counter()
        index = make(_blocks(corpus, turn_DD / w_D))
        built = time.perf_counter() - start
        size = load_faiss().serialize_index(index).nbytes / corpus.num_rows
        load_faiss().omp_set_num_threads(1)
        points[name] = []
        for num, parameters in _settings(name):
            work = _searcher(index, stored, w_D, turn_DD, num, parameters)
            p50 = float(np.median(_times(work, corpus.mixed[:30])))
            recalls = [r for found in corpus.recall(work).values() for r in (found[1], found[3])]
            points[name].append((1e3 * p50, float(np.mean(recalls))))
            shown = ", ".join(f"{r:.3f}" for r in recalls)
            print(
                f"| {name} | {num} {parameters or ''} | {built:.0f} s | {size:.0f} | {1e3 * p50:.1f} ms | {shown} |",
                flush=True,
            )
        load_faiss().omp_set_num_threads(2)
        del index
    if args.plot:
        _plot(points, args.plot, f"{corpus.num_rows:,} samples x {corpus.width}, one thread")


def _times(work: Callable[[np.ndarray, int], Any], queries_QD: np.ndarray) -> list[float]:
    return [seconds(lambda q=query_D: work(both_ends(q[None]), K)) for query_D in queries_QD]


def _blocks(corpus: Corpus, turn_DD: np.ndarray) -> Callable[[], Iterator[np.ndarray]]:
    turn = torch.from_numpy(turn_DD.T.copy())

    def blocks() -> Iterator[np.ndarray]:
        for segment in corpus.segments:
            for start in range(0, segment.num_samples, BLOCK_ROWS):
                yield (torch.from_numpy(segment.sketches(start, start + BLOCK_ROWS)) @ turn).numpy()

    return blocks


def _types(width: int) -> dict[str, Callable[[Any], Any]]:
    faiss = load_faiss()
    product = faiss.METRIC_INNER_PRODUCT
    kept: list[Any] = []

    def filled(index: Any, blocks: Callable[[], Iterator[np.ndarray]]) -> Any:
        if not index.is_trained:
            index.train(np.concatenate([block for block, _ in zip(blocks(), range(8), strict=False)])[:32_768])
        for block in blocks():
            index.add(block)
        return index

    def fast(bits: int, blocks: Any) -> Any:
        zero = faiss.IndexFlatIP(width)
        zero.add(np.zeros((1, width), np.float32))
        kept.append(zero)  # the index does not own it
        return filled(faiss.IndexIVFRaBitQFastScan(zero, width, 1, product, 32, True, bits), blocks)

    def made(recipe: str) -> Callable[[Any], Any]:
        return lambda blocks: filled(faiss.index_factory(width, recipe, product), blocks)

    return {
        "Flat fp32": made("Flat"),
        "SQ8": made("SQ8"),
        "RaBitQ 1 bit": lambda blocks: filled(faiss.IndexRaBitQ(width, product), blocks),
        "RaBitQ 4 bits": lambda blocks: filled(faiss.IndexRaBitQ(width, product, 4), blocks),
        "RaBitQ fast scan, 1 bit": lambda blocks: fast(1, blocks),
        "RaBitQ fast scan, 2 bits": lambda blocks: fast(2, blocks),
        "PQ fast scan, 1 bit": made(f"PQ{width // 4}x4fs"),
        "IVF256, RaBitQ fast scan": made("IVF256,RaBitQfs"),
        "IVF256, SQ8": made("IVF256,SQ8"),
        "HNSW32": made("HNSW32"),
    }


def _settings(name: str) -> list[tuple[int, dict[str, int]]]:
    if "HNSW" in name:
        return [(K, {"efSearch": ef}) for ef in (200, 800)]
    if "IVF" in name:
        return [(1_000, {"nprobe": nprobe}) for nprobe in (16, 64, 256)]
    return [(num, {}) for num in ((K,) if name == "Flat fp32" else (K, 400) if name == "SQ8" else (300, 1_000, 2_000))]


def _searcher(
    index: Any, stored: StoredRows, w_D: np.ndarray, turn_DD: np.ndarray, num: int, parameters: dict[str, int]
) -> Callable[[np.ndarray, int], np.ndarray]:
    for name, value in parameters.items():
        setattr(index.hnsw if name == "efSearch" else index, name, value)

    def search(queries_QD: np.ndarray, k: int) -> np.ndarray:
        rows_QC = index.search(np.ascontiguousarray((queries_QD * w_D) @ turn_DD.T), num)[1]
        best = []
        for query_D, found in zip(queries_QD, rows_QC, strict=True):
            ids, values = stored.best(query_D, np.sort(found[found >= 0]), k)
            ids, _ = rank(ids[None], values[None], k)
            best.append(np.pad(ids[0], (0, k - ids.shape[1]), constant_values=-1))
        return np.stack(best)

    return search


def _plot(points: dict[str, list[tuple[float, float]]], path: Path, title: str) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "scale"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5))
    for name, line in points.items():
        axes.plot(*zip(*line, strict=True), marker="o", label=name)
    axes.set(
        xscale="log", xlabel="ms for a query at both ends", ylabel="recall@100, mean of methods and ends", title=title
    )
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(path, metadata={"Date": None})


def measure_store(args: argparse.Namespace) -> None:
    """Whole queries and `values` of a real store, through the Python API."""
    from curator import Curator

    fields = {"prompt_field": args.prompt_field, "response_field": args.response_field}
    with Curator.open(args.corpus, create=False, device="cpu") as curator:
        ask = {"data": args.queries, "each": True, "rerank": 0, "top": 100, "harmful": 100, **fields}
        answers = curator.queries(**ask)
        first = seconds(lambda: next(answers))
        assert curator._opened is not None
        assert curator._opened.answering is not None
        index = curator._opened.answering.indexes
        waited = seconds(index.wait)
        index._indexes.clear()
        times = [seconds(lambda: next(answers)) for _ in range(args.num_queries)][5:]
        result = next(answers)
        print(f"| | |\n|---|---|\n| samples | {result.how.num_samples:,} |\n| how.index | {result.how.index} |")
        print(f"| how.percentiles | {result.how.percentiles} |")
        print(f"| first query of a process, model and store opened | {first:.2f} s |")
        print(f"| index built beside it | {waited:.1f} s |")
        p50, p95 = (1e3 * np.percentile(times, q) for q in (50, 95))
        print(f"| warm query, 100 items at each end: p50 / p95 | {p50:.0f} / {p95:.0f} ms |", flush=True)
        question = {"prompt": "How many?", "response": " 12"}
        count = 0

        def stream() -> None:
            nonlocal count
            for _ in curator.values(**question):
                count += 1

        print(f"| values, streamed | {seconds(stream):.1f} s for {count:,} |")


def main() -> None:
    """Parses the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["index", "types", "store"])
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--num-queries", type=int, default=48)
    parser.add_argument("--only", action="append")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--queries", type=Path, action="append")
    parser.add_argument("--prompt-field")
    parser.add_argument("--response-field")
    args = parser.parse_args()
    {"index": measure_index, "types": measure_types, "store": measure_store}[args.what](args)


if __name__ == "__main__":
    main()
