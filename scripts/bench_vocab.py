#!/usr/bin/env python
"""Measures what a sketch misses with a large vocabulary, and what the lists of rare tokens win back.

    scripts/bench_vocab.py --model M                          # M from scripts/train_vocab_model.py
    scripts/bench_vocab.py --model M --ranks 512 32 64 2048   # a larger sketch instead
    scripts/bench_vocab.py --model M --sweep                  # other settings of the lists

Ingests pieces of the text that was held back from the model and asks others of them. Exact values come from the
definition: a full forward pass, G of every sample, inner products. Prints Markdown: how many of the exact 10 highest
and lowest are among the candidates, and among the 10 of the answer, with `--rerank` candidates at each end: those of
the sketch, more of these, those of a sketch with a hashed block of the labels beside it, and those of sketch and lists.
"""

import argparse
import json
import math
import random
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from safetensors.numpy import save_file

from curator import Curator
from curator.models import CausalLM, Encoder, load_tokenizer
from curator.query import Answering, Query, QueryOptions
from curator.types import EncodedSample, Sample
from curator.value import METHODS, Method, PreparedQuery, Ranks, calibrate
from index.factors import QuantizedFactors
from index.projection import Projection
from index.rare_scan import POOL, query_tokens
from index.rare_tokens import RareTokens, rare_tokens
from index.scan import row_factors
from index.segment import FORMAT

DAMPING = 10.0
TOP = 10
GROUP = 8  # samples whose gradients are held at once
Values = dict[int, float]  # of candidates, by id
Way = Callable[[Method, PreparedQuery], Values]


def main() -> None:
    """Parses the command line, ingests, and compares."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--queries", type=int, default=48)
    parser.add_argument("--rerank", type=int, default=100)
    parser.add_argument("--ranks", type=int, nargs=4, default=[256, 32, 64, 1024], help="error hidden factor width")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sweep", action="store_true", help="other settings of the lists instead of other ways")
    parser.add_argument("--folder", type=Path, help="keep the store and the exact values here, for the next run")
    args = parser.parse_args()
    rows = [json.loads(line)["text"] for line in (args.model / "held.jsonl").open()]
    random.Random(args.seed).shuffle(rows)
    asked, stored = rows[: args.queries], rows[args.queries : args.queries + args.rows]

    def ranked(*given: Any, ranks: Ranks, **options: Any) -> Any:
        return calibrate(*given, ranks=Ranks(*args.ranks), **options)

    with tempfile.TemporaryDirectory() as name, Curator.open((args.folder or Path(name)) / "store") as curator:
        data = Path(name) / "data.jsonl"
        data.write_text("".join(json.dumps({"text": text}) + "\n" for text in stored))
        started = time.perf_counter()
        with patch("curator.ingest.run.calibrate", ranked):
            curator.ingest(data, model=str(args.model), dataset="held", positions="all", text_field="text")
        print(f"ingest: {time.perf_counter() - started:.0f} s", flush=True)
        keys = {row["id"]: int(row["key"].split(":")[1]) for row in curator.values(text=asked[0])}
        assert curator._opened is not None
        assert curator._opened.answering is not None
        describe(curator)
        bench = Bench(args, curator._opened.answering, asked, [stored[keys[id_]] for id_ in sorted(keys)])
        sweep(bench, Path(name)) if args.sweep else ways(bench)


class Bench:
    """The space, what it stores, and exact values of it."""

    def __init__(self, args: argparse.Namespace, answering: Answering, asked: list[str], stored: list[str]) -> None:
        self.args, self.answering, self.asked = args, answering, asked
        self.ids = np.concatenate([segment.ids for segment in answering.segments])
        self.norms = np.concatenate([segment.norms for segment in answering.segments])
        self.sketches = np.concatenate([segment.sketches(0, segment.num_samples) for segment in answering.segments])
        self.raw, self.exact_norms, self.cores, self.asked_cores = kept_values(args, answering, asked, stored)

    def table(self, ways: dict[str, Way], methods: Sequence[Method] = METHODS) -> None:
        """Prints the recall of ways to find candidates with their values, and the median time each takes a query."""
        print(f"\n| method | way | candidates | top {TOP}: within, in the answer | bottom {TOP} | ms a query |")
        print("|---|---|---|---|---|---|")
        for method in methods:
            shares: dict[str, list[list[float]]] = {name: [] for name in ways}
            seconds: dict[str, list[float]] = {name: [] for name in ways}
            for number, text in enumerate(self.asked):
                prepared, _ = self.answering.prepare(Query({}, [Sample(text=text)]), method, DAMPING)
                order = self.ids[np.argsort(-self.exact(method, prepared, number))].tolist()
                for name, find in ways.items():
                    started = time.perf_counter()
                    values = find(method, prepared)
                    seconds[name].append(time.perf_counter() - started)
                    shares[name].append([len(values), *recalls(order, values)])
            for name, found in shares.items():
                num, top, answered, bottom, answered_bottom = np.mean(found, axis=0)
                cells = (
                    f"{method} | {name} | {num:.0f} | {top:.3f}, {answered:.3f} | {bottom:.3f}, {answered_bottom:.3f}"
                )
                print(f"| {cells} | {1e3 * np.median(seconds[name]):.1f} |", flush=True)

    def exact(self, method: Method, prepared: PreparedQuery, number: int) -> np.ndarray:
        """The exact value of every sample for a query."""
        if prepared.is_cosine:
            return self.raw[:, number] / self.exact_norms / prepared.norm
        if method == "raw":
            return self.raw[:, number]
        weights = self.answering.projection.damped_weights(DAMPING).flatten().numpy()
        return self.raw[:, number] - self.cores @ (weights * self.asked_cores[number])

    def rescored(self, prepared: PreparedQuery, gains: np.ndarray, num: int) -> Values:
        """The num candidates at each end with the highest and the lowest sums of sketch value and gain [N]."""
        scale = row_factors(self.norms, "inverse_norm" if prepared.is_cosine else "none")
        values = (self.sketches @ prepared.search) * scale
        order = np.argsort(values + gains * scale)
        chosen = np.union1d(order[:num], order[-num:])
        found = dict(zip(self.ids[chosen].tolist(), values[chosen].tolist(), strict=True))
        return self.answering._rerank(prepared, found)

    def engine(self, share: float, rerank: int, lists: list[RareTokens] | None = None, **settings: Any) -> Way:
        """What the engine finds, with lists for a share of `rerank`: its own, or others."""

        def find(method: Method, prepared: PreparedQuery) -> Values:
            for segment, other in zip(self.answering.segments, lists or [], strict=bool(lists)):
                segment.rare_tokens = other
            options = QueryOptions(method=method, damping=DAMPING, rerank=rerank)
            with (
                patch.multiple("index.rare_scan", **({"POOL": POOL} | settings)),
                patch("curator.query.answer.RARE_SHARE", share),
            ):
                return self.answering._search(prepared, options, None).values

        return find


def recalls(order: list[int], values: Values) -> Iterator[float]:
    """Of the first and of the last TOP of an order: how many have values, and how many are at that end of these."""
    ranked = sorted(values, key=values.__getitem__)
    for best, answer in ((order[:TOP], ranked[-TOP:]), (order[-TOP:], ranked[:TOP])):
        yield len(set(best) & set(values)) / TOP
        yield len(set(best) & set(answer)) / TOP


def ways(bench: Bench) -> None:
    """The sketch alone, more of its candidates, hashed blocks, lists."""
    rerank = bench.args.rerank
    more = rerank + math.ceil(rerank / 4)
    compared = {"sketch": bench.engine(0, rerank), "sketch, more candidates": bench.engine(0, more)}
    for buckets, rank in ((128, 8), (1024, 8)):
        compared[f"sketch and {buckets} x {rank} hashed"] = HashedBlock(bench, buckets, rank).find
    compared["sums of sketch and lists"] = sums(bench, rerank)
    compared["sums of sketch and lists, more candidates"] = sums(bench, more)
    bench.table(compared | {"sketch and lists": bench.engine(0.25, rerank)})


def sums(bench: Bench, num: int) -> Way:
    """The alternative to a share for the lists: the gains are added to the sketch's values, and num sums are taken."""

    def find(_: Method, prepared: PreparedQuery) -> Values:
        tokens = query_tokens(prepared.outside)
        matrix, gains = prepared.outside[torch.from_numpy(tokens)].numpy(), []
        for segment in bench.answering.segments:
            gains.append(np.zeros(segment.num_samples))
            if segment.rare_tokens is not None:
                rows, found = segment.rare_tokens.lookup(tokens, matrix)
                gains[-1][rows] = found
        return bench.rescored(prepared, np.concatenate(gains), num)

    return find


def sweep(bench: Bench, folder: Path) -> None:
    """Lists with more and fewer dimensions, labels, tokens looked up, sketches read and candidates."""
    rerank = bench.args.rerank
    compared = {"sketch": bench.engine(0, rerank)}
    for rank in (1, 4, 8, 16, 32):
        lists, size = other_lists(bench, folder / f"{rank}", rank)
        compared[f"{rank} dimensions, {size:.0f} bytes"] = bench.engine(0.25, rerank, lists)
    for share, limit in ((0.01, 16), (0.03, 16), (0.3, 16)):
        with patch("index.rare_tokens.RARE_SHARE", share), patch("index.rare_tokens.RARE_SAMPLES", limit):
            lists, size = other_lists(bench, folder / f"{share}-{limit}", 8)
        compared[f"labels of {share:.0%} or {limit} samples, {size:.0f} bytes"] = bench.engine(0.25, rerank, lists)
    lists, _ = other_lists(bench, folder / "again", 8)
    for name, values in (("QUERY_TOKENS", (64, 1024)), ("POOL", (1, 16))):
        for value in values:
            compared[f"{name} = {value}"] = bench.engine(0.25, rerank, lists, **{name: value})
    for share in (0.1, 0.5, 1.0):
        compared[f"{math.ceil(share * rerank)} of the lists"] = bench.engine(share, rerank, lists)
    bench.table(compared)


def other_lists(bench: Bench, folder: Path, rank: int) -> tuple[list[RareTokens], float]:
    """Other lists of the segments than the engine's, and their bytes a sample."""
    folder.mkdir()
    lists, size = [], 0
    for segment in bench.answering.segments:
        parts = [segment.factors(row) for row in range(segment.num_samples)]
        offsets = np.cumsum([0, *map(len, parts)], dtype=np.int64)
        path = folder / segment.directory.name
        save_file(rare_tokens(QuantizedFactors.concatenate(parts), offsets, rank), path, {"format": FORMAT})
        lists.append(RareTokens(path, FORMAT, segment.num_samples))
        size += path.stat().st_size
    return lists, size / len(bench.ids)


class HashedBlock:
    """The alternative to lists: sum of e_y h over labels, hashed into buckets with signs, beside every sketch."""

    def __init__(self, bench: Bench, buckets: int, rank: int) -> None:
        self.bench, self.rank = bench, rank
        vocab_size = bench.answering.projection.vocab_size
        generator = np.random.default_rng(0)
        self.bucket = generator.integers(0, buckets, vocab_size)
        self.sign = generator.choice(np.array([-1.0, 1.0], np.float32), vocab_size)
        self.blocks = np.zeros((len(bench.ids), buckets, rank), np.float32)
        parts = (segment.factors(row) for segment in bench.answering.segments for row in range(segment.num_samples))
        for block, factors in zip(self.blocks, parts, strict=True):
            weights = factors.label_errors() * self.sign[factors.labels]
            np.add.at(block, self.bucket[factors.labels], weights[:, None] * factors.hidden_states(rank))

    def find(self, _: Method, prepared: PreparedQuery) -> Values:
        """The candidates with the highest and the lowest sums of both parts, rescored."""
        query = np.zeros(self.blocks.shape[1:], np.float32)
        np.add.at(query, self.bucket, self.sign[:, None] * prepared.outside[:, : self.rank].numpy())
        gains = self.blocks.reshape(len(self.blocks), -1) @ query.ravel()
        return self.bench.rescored(prepared, gains, self.bench.args.rerank)


def describe(curator: Curator) -> None:
    """What was measured on, and bytes."""
    space = curator.status()["spaces"][0]
    num, tiers = space["samples"], space["bytes"]
    print(f"{num:,} samples, {space['counted_tokens'] / num:.0f} counted tokens each, loss {space['loss']:.2f}")
    print(f"sketch {space['projection']}, captured {space['captured']:.3f}")
    print(f"bytes a sample: {', '.join(f'{name} {size / num:,.0f}' for name, size in tiers.items())}", flush=True)


def kept_values(
    args: argparse.Namespace, answering: Answering, asked: list[str], stored: list[str]
) -> tuple[np.ndarray, ...]:
    """`exact_values`, from the file where they have been kept."""
    path = args.folder / "exact.npz" if args.folder else None
    if path and path.exists():
        found = np.load(path)
        return found["raw"], found["norms"], found["cores"], found["asked_cores"]
    started = time.perf_counter()
    lm = CausalLM.load(args.model, device="cpu", dtype="float32")
    found = exact_values(lm, answering.projection, encode(args, lm, stored), encode(args, lm, asked))
    print(f"exact values: {time.perf_counter() - started:.0f} s", flush=True)
    if path:
        np.savez(path, **dict(zip(("raw", "norms", "cores", "asked_cores"), found, strict=True)))
    return found


def encode(args: argparse.Namespace, lm: CausalLM, texts: list[str]) -> list[EncodedSample]:
    """Texts as the engine encodes them."""
    encoder = Encoder(
        load_tokenizer(args.model), max_length=lm.context or 2048, vocab_size=lm.vocab_size, positions="all"
    )
    encoded = encoder.encode([Sample(text=text) for text in texts])
    return [item for item in encoded if isinstance(item, EncodedSample)]


def exact_gradients(lm: CausalLM, samples: list[EncodedSample]) -> Iterator[torch.Tensor]:
    """G [V, H] of each sample, from the full forward pass of the sample alone."""
    for sample in samples:
        ids = torch.from_numpy(sample.input_ids)
        hidden = lm._model.base_model(ids[None]).last_hidden_state[0, :-1]
        errors = -torch.softmax(hidden @ lm._model.get_output_embeddings().weight.T, -1)
        errors[torch.arange(len(ids) - 1), ids[1:]] += 1
        counted = torch.from_numpy(sample.counted)[1:]
        yield errors[counted].T @ hidden[counted]


def exact_values(
    lm: CausalLM, projection: Projection, stored: list[EncodedSample], asked: list[EncodedSample]
) -> tuple[np.ndarray, ...]:
    """<G_i, G_q> of every stored sample for every query, float64 [N, Q], and ||G_i|| [N]; the cores of both."""
    hidden_basis = projection.hidden_basis[:, : projection.hidden_rank]

    def cores(gradients: torch.Tensor) -> torch.Tensor:
        return (projection.error_basis.T @ (gradients @ hidden_basis)).flatten(1)

    queries = torch.stack(list(exact_gradients(lm, asked)))
    raw, norms, of_stored = [], [], []
    gradients = exact_gradients(lm, stored)
    for start in range(0, len(stored), GROUP):
        group = torch.stack([next(gradients) for _ in range(min(GROUP, len(stored) - start))])
        raw.append(group.flatten(1) @ queries.flatten(1).T)
        norms.append(torch.linalg.vector_norm(torch.linalg.vector_norm(group, dim=2).double(), dim=1))
        of_stored.append(cores(group))
    return (
        torch.cat(raw).double().numpy(),
        torch.cat(norms).numpy(),
        torch.cat(of_stored).numpy(),
        cores(queries).numpy(),
    )


if __name__ == "__main__":
    main()
