#!/usr/bin/env python
"""Measures diverse selection over many sketches: how long it takes, how well it follows, against the most helpful.

    scripts/bench_select.py CORPUS --counts 1000 10000 100000
    scripts/bench_select.py CORPUS --rows 8192 --counts 100 400 --reference

CORPUS is a directory of segments with queries.npz (scripts/make_synthetic_store.py). `--reference` looks at every row
in every step too. Cost is what greedy matching minimizes, || t q/||q|| - sum s ||^2 / t^2. Prints a Markdown table.
"""

import argparse
import time
from pathlib import Path

import numpy as np

from index import Segment
from index.matching import EPSILON, match
from index.scan import StoredRows, scan

NUM_QUERIES = 3


def main() -> None:
    """Parses the command line and measures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", type=Path)
    parser.add_argument("--rows", type=int, help="of the first segments only")
    parser.add_argument("--counts", type=int, nargs="+", default=[1_000, 10_000, 100_000])
    parser.add_argument("--reference", action="store_true")
    args = parser.parse_args()
    segments = [Segment(path) for path in sorted((args.corpus / "segments").iterdir())]
    if args.rows is not None:
        segments = segments[: max(1, args.rows // segments[0].num_samples)]
    started = time.perf_counter()
    stored = StoredRows(segments)
    opened = time.perf_counter() - started
    queries = np.load(args.corpus / "queries.npz")["raw"][:NUM_QUERIES]
    print(
        f"{len(stored):,} samples x {queries.shape[1]}, means of {NUM_QUERIES} queries; rows opened in {opened:.1f} s\n"
    )
    print("| taken | most helpful: seconds, cosine, cost | diverse: seconds, cosine, cost | every row in every step |")
    print("|---|---|---|---|")
    for count in args.counts:
        cells = [_top(segments, stored, queries, count), _matched(segments, stored, queries, count, EPSILON)]
        cells.append(_matched(segments, stored, queries, count, 0.0) if args.reference else "")
        print(f"| {count:,} | {' | '.join(cells)} |", flush=True)


def _values(segments: list[Segment], query: np.ndarray) -> np.ndarray:
    return np.concatenate([values[:, 0] for _, values, _ in scan(segments, query[None])])


def _top(segments: list[Segment], stored: StoredRows, queries: np.ndarray, count: int) -> str:
    found = []
    for query in queries:
        started = time.perf_counter()
        values = _values(segments, query)
        rows = np.argsort(-values)[:count]
        seconds = time.perf_counter() - started
        found.append((seconds, *_followed(stored, query, np.sort(rows), values, count)))
    return _shown(found)


def _matched(segments: list[Segment], stored: StoredRows, queries: np.ndarray, count: int, epsilon: float) -> str:
    found = []
    for query in queries:
        started = time.perf_counter()
        values = _values(segments, query)
        matched = match(stored, query, np.arange(len(stored)), values, count, epsilon=epsilon)
        seconds = time.perf_counter() - started
        found.append((seconds, *_followed(stored, query, np.sort(matched.rows), values, count)))
    return _shown(found)


def _followed(
    stored: StoredRows, query: np.ndarray, rows: np.ndarray, values: np.ndarray, count: int
) -> tuple[float, float]:
    """Cosine of the summed sketches with the query, and the cost."""
    unit = query.astype(np.float64) / np.linalg.norm(query)
    target = np.partition(values, len(values) - count)[len(values) - count :].astype(np.float64).sum()
    target /= np.linalg.norm(query)
    total = np.zeros(len(query))
    for part in np.array_split(rows, max(1, len(rows) // 16_384)):
        total += stored.gather(part).float().numpy().T.astype(np.float64) @ stored.factors(part)
    cost = np.square(target * unit - total).sum() / target**2
    return float(total @ unit / np.linalg.norm(total)), float(cost)


def _shown(found: list[tuple[float, float, float]]) -> str:
    seconds, cosine, cost = np.mean(found, axis=0)
    return f"{seconds:.1f} s, {cosine:.3f}, {cost:.3f}"


if __name__ == "__main__":
    main()
