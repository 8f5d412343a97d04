#!/usr/bin/env python
"""Makes large corpora of synthetic sketches that look like the real ones of a store, to measure search at scale.

    curator ingest T --model M --store S ...                          # a real store, 2,000 samples or more
    scripts/make_synthetic_store.py segments --like S --queries Q --prompt-field P --response-field R \
        --samples 1000000 --width 1024 --out DIR                      # DIR/segments/*, DIR/queries.npz
    scripts/make_synthetic_store.py grow --like S --samples 1000000   # adds samples to S itself, texts and all
    scripts/make_synthetic_store.py check --like S --queries Q ...    # real and synthetic sketches side by side

Without --like the bundled demo is ingested through the bundled model and its validation rows are the queries.

A synthetic sketch lies between three real ones of one neighbourhood, plus noise: random weights on a real sample and
two of its 32 nearest (by cosine), and of every coordinate's variance the share NOISE is normal noise. Norms are real
ones, given to the rows of a block in the order of the norms that they came out with. Queries are real ones, of rows
that no corpus holds, under each method.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from curator import Curator, demo
from curator.metadata.commits import commit_segment, next_sample_id
from curator.metadata.row_numbers import RowNumbers
from curator.metadata.spaces import find_space
from curator.metadata.tables import Dataset
from curator.metadata.tables import Segment as SegmentRow
from curator.query import parts_of, read_queries
from curator.value import METHODS
from index import Segment, SegmentArrays, top_k, write_segment
from index.rabitq import build_shard, read_shard, turned

NOISE = 0.3
NEIGHBOURS = 32
DAMPING = 10.0
NUM_QUERIES = 200


@dataclass
class Real:
    """The sketches that synthetic ones are made of."""

    sketches_ND: np.ndarray
    norms_N: np.ndarray  # of the gradients
    neighbours: np.ndarray  # [N, NEIGHBOURS]


def real_sketches(curator: Curator, width: int | None = None) -> Real:
    """Sketches of the newest space, cut to their first coordinates."""
    with curator._asking(None, None) as answering:
        sketches_ND = np.concatenate([segment.sketches(0, segment.num_samples) for segment in answering.segments])
        norms_N = np.concatenate([segment.norms for segment in answering.segments])
    sketches_ND = np.ascontiguousarray(sketches_ND[:, :width])
    centred = torch.from_numpy(sketches_ND - sketches_ND.mean(0))
    centred = torch.nn.functional.normalize(centred)
    near = [(part @ centred.T).topk(min(NEIGHBOURS + 1, len(centred))).indices[:, 1:] for part in centred.split(1024)]
    return Real(sketches_ND, norms_N, torch.cat(near).numpy())


def real_queries(curator: Curator, args: argparse.Namespace, width: int | None = None) -> dict[str, np.ndarray]:
    """Method -> what is searched for, float32 [Q, width], of the first rows of the query files."""
    given, _, _ = parts_of(
        {
            "data": args.queries,
            "each": True,
            "text_field": args.text_field,
            "prompt_field": args.prompt_field,
            "response_field": args.response_field,
        }
    )
    found: dict[str, list[np.ndarray]] = {method: [] for method in METHODS}
    with curator._asking(None, None) as answering:
        for query, _ in zip(read_queries(given), range(NUM_QUERIES), strict=False):
            for method in METHODS:
                found[method].append(answering.prepare(query, method, DAMPING)[0].search[:width])
    return {method: np.stack(rows).astype(np.float32) for method, rows in found.items()}


def blocks(real: Real, num_samples: int, block_rows: int, seed: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (sketches float32 [n, D], norms float32 [n])."""
    generator = torch.Generator().manual_seed(seed)
    sketches_ND = torch.from_numpy(real.sketches_ND)
    mean_D = sketches_ND.mean(0)
    spread_D = sketches_ND.std(0)
    lengths_N = sketches_ND.norm(dim=1)
    outside_N = torch.from_numpy(real.norms_N).square().sub(lengths_N.square()).clamp(min=0).sqrt()
    neighbours = torch.from_numpy(real.neighbours)
    for start in range(0, num_samples, block_rows):
        n = min(block_rows, num_samples - start)
        first = torch.randint(len(sketches_ND), (n,), generator=generator)
        near = torch.randint(neighbours.shape[1], (n, 2), generator=generator)
        places = torch.cat([first[:, None], neighbours[first[:, None], near]], dim=1)
        weights = torch.empty(n, 3).exponential_(generator=generator)
        weights /= weights.sum(1, keepdim=True)
        between = torch.einsum("nk,nkd->nd", weights, sketches_ND[places]) - mean_D
        between *= (1 - NOISE) ** 0.5 * spread_D / between.std(0)
        rows = torch.randn(between.shape, generator=generator) * (NOISE**0.5 * spread_D) + between + mean_D
        order = rows.norm(dim=1).argsort()
        drawn = torch.randint(len(lengths_N), (n,), generator=generator)
        drawn = drawn[lengths_N[drawn].argsort()]
        wanted = lengths_N[drawn]
        rows[order] *= (wanted / rows[order].norm(dim=1))[:, None]
        norms = torch.empty(n)
        norms[order] = (wanted.square() + outside_N[drawn].square()).sqrt()
        yield rows.numpy(), norms.numpy()


def arrays_of(first_id: int, sketches_nD: np.ndarray, norms_n: np.ndarray) -> SegmentArrays:
    """A segment's arrays without factors."""
    arrays = SegmentArrays.of_sketches(np.arange(first_id, first_id + len(sketches_nD)), sketches_nD)
    arrays.norms = norms_n
    return arrays


def segments(curator: Curator, args: argparse.Namespace) -> None:
    """Writes segments without a database, and the queries beside them."""
    args.out.mkdir(parents=True)
    queries = real_queries(curator, args, args.width)
    np.savez(args.out / "queries.npz", **queries)
    real = real_sketches(curator, args.width)
    for number, (sketches_nD, norms_n) in enumerate(blocks(real, args.samples, args.segment_samples, args.seed)):
        directory = args.out / "segments" / f"{number:06d}"
        directory.mkdir(parents=True)
        write_segment(directory, arrays_of(number * args.segment_samples, sketches_nD, norms_n))


def grow(curator: Curator, args: argparse.Namespace) -> None:
    """Adds synthetic samples to the store itself, committed as an ingest commits them; they have no factors."""
    real = real_sketches(curator)
    store = curator._store
    with store.writing(), store.session() as session:
        space = find_space(session, None)
        dataset = Dataset(name="synthetic", created_at=datetime.now(UTC))
        session.add(dataset)
        session.flush()
        numbers = RowNumbers.load(session, space.id, dataset)
        for sketches_nD, norms_n in blocks(real, args.samples, args.segment_samples, args.seed):
            first_id = next_sample_id(session)
            name = f"{first_id:012d}-{len(norms_n)}"
            with store.publishing("segments", name) as directory:
                files = write_segment(directory, arrays_of(first_id, sketches_nD, norms_n))
            row = SegmentRow(
                space_id=space.id,
                name=name,
                first_sample_id=first_id,
                num_samples=len(norms_n),
                num_tokens=0,
                files=[{"name": file.name, "sha256": file.sha256, "num_bytes": file.num_bytes} for file in files],
                created_at=datetime.now(UTC),
            )
            samples = [_sample(space.id, dataset.id, first_id + at, float(norm)) for at, norm in enumerate(norms_n)]
            commit_segment(session, numbers.take(), row, samples)


def _sample(space_id: int, dataset_id: int, sample_id: int, norm: float) -> dict[str, Any]:
    return {
        "id": sample_id,
        "space_id": space_id,
        "dataset_id": dataset_id,
        "content_hash": sample_id.to_bytes(16, "big"),
        "row": sample_id,
        "key": f"synthetic:{sample_id}",
        "has_own_key": False,
        "label": f"label {sample_id % 1000}",
        "text": f"Synthetic sample {sample_id}. " + "Nobody reads this text, but a row of a database has one. " * 8,
        "meta": {},
        "num_tokens": 100,
        "num_counted": 99,
        "is_truncated": False,
        "norm": norm,
        "captured": 0.9,
        "loss": 1.0,
    }


def check(curator: Curator, args: argparse.Namespace) -> None:
    """Prints what real and as many synthetic sketches have in common."""
    real = real_sketches(curator)
    queries = real_queries(curator, args)
    num = len(real.sketches_ND)
    made = next(blocks(real, num, num))
    columns = [_looks(sketches, norms, queries) for sketches, norms in ((real.sketches_ND, real.norms_N), made)]
    print(f"{num:,} samples each\n\n| | real | synthetic |\n|---|---|---|")
    for name in columns[0]:
        print(f"| {name} | {' | '.join(column[name] for column in columns)} |")


def _looks(sketches_ND: np.ndarray, norms_N: np.ndarray, queries: dict[str, np.ndarray]) -> dict[str, str]:
    moment = np.square(sketches_ND).mean(0)
    shares = np.cumsum(moment)[[min(at, len(moment)) - 1 for at in (1, 16, 64, 256, 512)]] / moment.sum()
    looks = {
        "energy in the first 1, 16, 64, 256, 512 coordinates": _plain(shares, ".3f"),
        "norm ‖G‖: quantiles 0, .1, .5, .9, 1": _plain(np.quantile(norms_N, [0, 0.1, 0.5, 0.9, 1]), ".0f"),
    }
    centred = sketches_ND - sketches_ND.mean(0)
    kurtosis = np.mean((centred / centred.std(0)) ** 4, axis=0)
    looks["kurtosis of the first 256 coordinates: quartiles"] = _plain(
        np.quantile(kurtosis[:256], [0.25, 0.5, 0.75]), ".1f"
    )
    for method, queries_QD in queries.items():
        if method == "cosine":
            continue
        values = np.sort(queries_QD @ sketches_ND.T, axis=1)
        away = (values - values.mean(1, keepdims=True)) / values.std(1, keepdims=True)
        looks[f"{method}: standard deviations from the mean, ranks 1, 10, 100, 100 from below, 10, 1"] = _plain(
            np.median(away[:, [-1, -10, -100, 99, 9, 0]], axis=0), ".1f"
        )
        looks[f"{method}: recall@10 of one bit a coordinate among 100 candidates"] = _one_bit(sketches_ND, queries_QD)
    return looks


def _one_bit(sketches_ND: np.ndarray, queries_QD: np.ndarray) -> str:
    with tempfile.TemporaryDirectory() as folder:
        write_segment(Path(folder), SegmentArrays.of_sketches(np.arange(len(sketches_ND)), sketches_ND))
        stored = [Segment(Path(folder))]
        shard = read_shard("all", build_shard(stored, "none"), stored[0].width)
        found, _ = shard.search(turned([shard], queries_QD)[0], 100, None)
        expected = top_k(stored, queries_QD, 10)[0]
    return f"{np.mean([np.isin(row, near).mean() for row, near in zip(expected, found, strict=True)]):.3f}"


def _plain(numbers: np.ndarray, how: str) -> str:
    return ", ".join(format(number, how) for number in numbers)


def main() -> None:
    """Parses the command line and makes what was asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["segments", "grow", "check"])
    parser.add_argument("--like", type=Path, help="a store; the bundled demo's where left out")
    parser.add_argument("--queries", type=Path, action="append", help="files of rows that the store does not hold")
    parser.add_argument("--text-field")
    parser.add_argument("--prompt-field")
    parser.add_argument("--response-field")
    parser.add_argument("--samples", type=int, default=1_000_000)
    parser.add_argument("--width", type=int, help="of the sketches; the store's")
    parser.add_argument("--segment-samples", type=int, default=4096)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    if args.what == "segments" and args.out is None:
        parser.error("segments needs --out")
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        if args.like is None:
            args.like, args.queries = Path(folder) / "store", list(demo.VALIDATION.values())
            args.prompt_field, args.response_field = "prompt", "response"
            _ingest_demo(args.like)
        with Curator.open(args.like, create=False, device="cpu") as curator:
            {"segments": segments, "grow": grow, "check": check}[args.what](curator, args)
    print(f"{args.what}: {time.perf_counter() - started:.0f} s", file=sys.stderr)


def _ingest_demo(root: Path) -> None:
    with Curator.open(root, device="cpu") as curator:
        curator.ingest(
            demo.CORPUS, model=str(demo.MODEL), dataset="demo", prompt_field="prompt", response_field="response"
        )


if __name__ == "__main__":
    main()
