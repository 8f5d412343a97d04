#!/usr/bin/env python
"""Measures the engine on real data: fidelity, bytes, latency, ingest against plain forwards, retrieval, and kills.

    scripts/bench_engine.py fidelity  --model M --train T --test Q --prompt-field question --response-field answer
    scripts/bench_engine.py ingest    --model M --train T ...
    scripts/bench_engine.py compute   --model M --train T --rows 6 --batch-tokens 1024 ...
    scripts/bench_engine.py retrieval --model M --train T --test Q --label-field variation ...
    scripts/bench_engine.py kills     --model M --train T ...

Prints Markdown tables. Exact values come from the definition: a full forward pass, G of every sample, inner products.
"""

import argparse
import gzip
import json
import random
import resource
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import rankdata, spearmanr

from curator import Curator
from curator.models import CausalLM, Encoder, load_tokenizer, make_batches
from curator.types import EncodedSample, Sample
from curator.value import METHODS, Forward
from index import Projection

DAMPING = 10.0


def main() -> None:
    """Parses the command line and runs one measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["fidelity", "ingest", "compute", "retrieval", "kills"])
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--train", required=True, type=Path, help="JSON lines, plain or .gz")
    parser.add_argument("--test", type=Path)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--queries", type=int, default=50)
    parser.add_argument("--prompt-field")
    parser.add_argument("--response-field")
    parser.add_argument("--label-field")
    parser.add_argument("--positions", choices=["response", "all"], default="all")
    parser.add_argument("--rerank", type=int, default=100)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--batch-tokens", type=int, default=8192)
    parser.add_argument("--few", type=int, default=256, help="rows that make the space before ingest is timed")
    parser.add_argument("--first", action="store_true", help="time ingests that begin with calibration too")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        work = {"fidelity": fidelity, "ingest": ingest, "compute": compute, "retrieval": retrieval, "kills": kills}
        work[args.what](args, Path(folder))


def rows_of(path: Path, most: int) -> list[dict[str, Any]]:
    """The first rows of a JSON lines file."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return [json.loads(line) for _, line in zip(range(most), file, strict=False)]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def fields(args: argparse.Namespace) -> dict[str, str]:
    """The column options, as the API takes them."""
    return {"prompt_field": args.prompt_field, "response_field": args.response_field}


def encode(args: argparse.Namespace, lm: CausalLM, rows: list[dict[str, Any]]) -> list[EncodedSample]:
    """Rows as the engine encodes them."""
    context = lm.context or 2048
    encoder = Encoder(
        load_tokenizer(args.model), max_length=context, vocab_size=lm.vocab_size, positions=args.positions
    )
    samples = [Sample(prompt=row[args.prompt_field], response=row[args.response_field]) for row in rows]
    return [item for item in encoder.encode(samples) if isinstance(item, EncodedSample)]


def exact_gradients(lm: CausalLM, samples: list[EncodedSample]) -> Iterator[torch.Tensor]:
    """G of each sample, flat float32 [V * H], from the full forward pass of the sample alone."""
    for sample in samples:
        logits = lm.forward([sample])[0, :-1].double()
        hidden = lm._model.base_model(torch.from_numpy(sample.input_ids)[None]).last_hidden_state[0, :-1].double()
        labels = torch.from_numpy(sample.input_ids)[1:]
        errors = torch.nn.functional.one_hot(labels, logits.shape[1]).double() - torch.softmax(logits, -1)
        counted = torch.from_numpy(sample.counted)[1:]
        yield (errors[counted].T @ hidden[counted]).float().flatten()


def exact_values(
    lm: CausalLM, projection: Projection, train: list[EncodedSample], test: list[EncodedSample]
) -> dict[str, np.ndarray]:
    """The exact value of every training sample for every query, by method: float64 [N, Q]."""
    queries = torch.stack(list(exact_gradients(lm, test)))
    weights = projection.damped_weights(DAMPING).double()
    hidden_basis = projection.hidden_basis[:, : projection.hidden_rank].double()

    def core(gradient: torch.Tensor) -> torch.Tensor:
        whole = gradient.double().reshape(projection.vocab_size, projection.hidden_size)
        return projection.error_basis.T.double() @ (whole @ hidden_basis)

    query_cores = torch.stack([core(query) for query in queries])
    raw, taken, norms = [], [], []
    for gradient in exact_gradients(lm, train):
        raw.append((queries @ gradient).double())
        norms.append(gradient.norm().double())
        taken.append((query_cores * weights * core(gradient)).sum((1, 2)))
    values, lengths = torch.stack(raw), torch.stack(norms)
    return {
        "raw": values.numpy(),
        "cosine": (values / lengths[:, None] / queries.norm(dim=1).double()).numpy(),
        "preconditioned": (values - torch.stack(taken)).numpy(),
    }


@torch.inference_mode()
def fidelity(args: argparse.Namespace, folder: Path) -> None:
    """Sketch and reranked answers against the exact value; bytes; latency."""
    train, test = rows_of(args.train, args.rows), rows_of(args.test, args.queries)
    data, asked = write_rows(folder / "train.jsonl", train), write_rows(folder / "test.jsonl", test)
    with Curator.open(folder / "store", device="cpu") as curator:
        curator.ingest(data, model=str(args.model), dataset="train", positions=args.positions, **fields(args))
        space = curator.status()["spaces"][0]
        projection = Projection.load(folder / "store" / "spaces" / space["fingerprint"] / "projection.safetensors")
        lm = CausalLM.load(args.model, device="cpu", dtype="float32")
        exact = exact_values(lm, projection, encode(args, lm, train), encode(args, lm, test))
        print("| method | Spearman of the sketch: mean (min) | top-10 overlap: sketch, reranked | bottom-10 |")
        print("|---|---|---|---|")
        for method in METHODS:
            print(f"| {method} | {_fidelity_of(curator, asked, exact[method], method, args)} |")
        tiers = {name: size / space["samples"] for name, size in space["bytes"].items()}
        print(f"\nbytes a sample: sketch {tiers['sketches']:,.0f}, factors {tiers['factors']:,.0f}, ", end="")
        print(f"{space['counted_tokens'] / space['samples']:,.0f} counted tokens a sample")
        print(f"sketch: {space['projection']}, captured {space['captured']:.3f}")
        _latency(curator, test, args)


def _fidelity_of(curator: Curator, asked: Path, exact: np.ndarray, method: str, args: argparse.Namespace) -> str:
    correlations, overlaps = [], {key: [] for key in ("top", "top reranked", "bottom", "bottom reranked")}
    common = {"method": method, "damping": DAMPING, **fields(args)}
    results = {
        name: list(curator.queries(data=asked, each=True, rerank=rerank, **common))
        for name, rerank in (("", 0), (" reranked", args.rerank))
    }
    with asked.open() as file:
        prompts = [json.loads(line) for line in file]
    for number, row in enumerate(prompts):
        question = {"prompt": row[args.prompt_field], "response": row[args.response_field]}
        values = list(curator.values(**question, method=method, damping=DAMPING))
        kept = [int(value["key"].split(":")[1]) for value in values]
        truth = exact[kept, number]
        correlations.append(spearmanr([value["value"] for value in values], truth).statistic)
        order = [kept[position] for position in np.argsort(-truth)]
        for name, answers in results.items():
            found = answers[number]
            for end, items, best in (("top", found.helpful, order[:10]), ("bottom", found.harmful, order[-10:])):
                rows = {int(item.key.split(":")[1]) for item in items}
                overlaps[end + name].append(len(rows & set(best)) / 10)
    mean = {name: statistics.mean(found) for name, found in overlaps.items()}
    return (
        f"{np.mean(correlations):.4f} ({np.min(correlations):.4f}) | {mean['top']:.3f}, {mean['top reranked']:.3f} "
        f"| {mean['bottom']:.3f}, {mean['bottom reranked']:.3f}"
    )


def _latency(curator: Curator, test: list[dict[str, Any]], args: argparse.Namespace) -> None:
    print("\n| warm query, model loaded | p50 | p95 |\n|---|---|---|")
    cases: dict[str, dict[str, Any]] = {
        "sketch only": {"rerank": 0},
        f"rerank {args.rerank} at each end": {"rerank": args.rerank},
        "exact, 20 candidates at each end": {"rerank": 20, "exact": True},
    }
    for name, options in cases.items():
        seconds = []
        for row in test[:20]:
            start = time.perf_counter()
            curator.query(prompt=row[args.prompt_field], response=row[args.response_field], **options)
            seconds.append(time.perf_counter() - start)
        print(f"| {name} | {1e3 * np.median(seconds):.0f} ms | {1e3 * np.percentile(seconds, 95):.0f} ms |")


def ingest(args: argparse.Namespace, folder: Path) -> None:
    """Wall time of a whole ingest over that of `model(**batch)` on the same batches, alternated; medians.

    The space is made first, by an ingest of `--few` rows; each timed ingest fills another dataset of it.
    """
    rows = rows_of(args.train, args.rows + args.few)
    data = write_rows(folder / "train.jsonl", rows[args.few :])
    few = write_rows(folder / "few.jsonl", rows[: args.few])
    options = {
        "model": str(args.model),
        "positions": args.positions,
        "batch_tokens": args.batch_tokens,
        **fields(args),
    }
    with Curator.open(folder / "store", device="cpu") as curator:
        made = curator.ingest(few, dataset="few", **options)
    lm = CausalLM.load(args.model, device="cpu", dtype="float32")
    samples = encode(args, lm, rows[args.few :])
    counts: dict[str, list[float]] = {"plain forward": [], "ingest": [], "ingest, beginning with calibration": []}
    for repeat in range(args.repeats):
        counts["plain forward"].append(_seconds(lambda: _forward_all(lm, samples, args.batch_tokens)))
        with Curator.open(folder / "store", device="cpu") as curator:
            work = lambda c=curator, n=repeat: c.ingest(data, dataset=f"train{n}", **options)  # noqa: E731
            counts["ingest"].append(_seconds(work))
        if args.first:
            with Curator.open(folder / f"fresh{repeat}", device="cpu") as curator:
                work = lambda c=curator: c.ingest(data, dataset="train", **options)  # noqa: E731
                counts["ingest, beginning with calibration"].append(_seconds(work))
    tokens, counted = (sum(getattr(sample, name) for sample in samples) for name in ("num_tokens", "num_counted"))
    print(f"{len(samples):,} samples, {tokens:,} tokens, {counted:,} counted, positions {args.positions}, ", end="")
    print(f"calibration on {args.few} samples {made.calibration_seconds:.1f} s, median of {args.repeats}\n")
    print("| | seconds | tokens/s | over plain forward |\n|---|---|---|---|")
    for name, times in counts.items():
        if times:
            taken = statistics.median(times)
            ratio = statistics.median([a / b for a, b in zip(times, counts["plain forward"], strict=True)])
            print(f"| {name} | {taken:.1f} | {tokens / taken:,.0f} | {ratio:.2f} |")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\npeak resident memory of both, the model twice: {peak:.2f} GiB")


@torch.inference_mode()
def compute(args: argparse.Namespace, folder: Path) -> None:
    """What the model and the representation take over `model(**batch)`, in one process and without start or files.

    For models so large that loading them and calibrating on few rows would drown what is asked for.
    """
    lm = CausalLM.load(args.model, device="cpu", dtype="float32")
    samples = encode(args, lm, rows_of(args.train, args.rows))
    vocab_size, hidden_size = lm.head.weight.shape
    shapes = ((vocab_size, 256), (hidden_size, min(64, hidden_size)), (256 * 32, 1024))  # of a full-rank projection
    bases = [torch.linalg.qr(torch.randn(*shape, generator=torch.Generator().manual_seed(0)))[0] for shape in shapes]
    error_basis, hidden_basis, turn = bases
    forward, projection = Forward(lm, args.batch_tokens), Projection(error_basis, hidden_basis, turn, torch.ones(1024))
    times: dict[str, list[float]] = {
        "plain forward": [],
        "last hidden states alone": [],
        "all that ingest computes": [],
    }
    for _ in range(args.repeats + 1):
        times["plain forward"].append(_seconds(lambda: _forward_all(lm, samples, args.batch_tokens)))
        times["last hidden states alone"].append(_seconds(lambda: list(forward.hidden(samples))))
        times["all that ingest computes"].append(_seconds(lambda: list(forward.representations(samples, projection))))
    tokens, counted = (sum(getattr(sample, name) for sample in samples) for name in ("num_tokens", "num_counted"))
    print(
        f"{len(samples):,} samples, {tokens:,} tokens, {counted:,} counted, V = {vocab_size:,}, d = {hidden_size:,}, "
    )
    print(f"positions {args.positions}, median of {args.repeats} after a first one\n")
    print("| | seconds | tokens/s | over plain forward |\n|---|---|---|---|")
    for name, taken in times.items():
        median = statistics.median(taken[1:])
        ratio = statistics.median([a / b for a, b in zip(taken[1:], times["plain forward"][1:], strict=True)])
        print(f"| {name} | {median:.2f} | {tokens / median:,.0f} | {ratio:.2f} |")


@torch.inference_mode()
def _forward_all(lm: CausalLM, samples: list[EncodedSample], batch_tokens: int) -> None:
    # The batches of an ingest: segments of 250,000 tokens, sorted inside.
    start = size = 0
    for stop, sample in enumerate(samples, start=1):
        size += sample.num_tokens
        if size >= 250_000 or stop == len(samples):
            segment, start, size = samples[start:stop], stop, 0
            for batch in make_batches([item.num_tokens for item in segment], batch_tokens):
                lm.forward([segment[i] for i in batch])


def _seconds(work: Callable[[], Any]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def retrieval(args: argparse.Namespace, folder: Path) -> None:
    """Same-class retrieval: recall at the class's size and AUC, mean and standard deviation over the queries."""
    train, test = rows_of(args.train, 10**9), rows_of(args.test, 10**9)
    data = write_rows(folder / "train.jsonl", train)
    print("| positions | method | recall at class size | AUC |\n|---|---|---|---|")
    for positions in ("all", "response"):
        with Curator.open(folder / positions, device="cpu") as curator:
            options = {"positions": positions, "label_field": args.label_field, **fields(args)}
            curator.ingest(data, model=str(args.model), dataset="train", **options)
            for method in METHODS:
                recalls, areas = zip(*_retrieve(curator, train, test, method, args), strict=True)
                print(
                    f"| {positions} | {method} | {np.mean(recalls):.3f} ± {np.std(recalls):.3f} "
                    f"| {np.mean(areas):.3f} ± {np.std(areas):.3f} |"
                )


def _retrieve(
    curator: Curator, train: list[dict[str, Any]], test: list[dict[str, Any]], method: Any, args: argparse.Namespace
) -> Iterator[tuple[float, float]]:
    for row in test:
        question = {"prompt": row[args.prompt_field], "response": row[args.response_field]}
        found = list(curator.values(**question, method=method, damping=DAMPING))
        values = np.array([item["value"] for item in found])
        same = np.array(
            [train[int(item["key"].split(":")[1])][args.label_field] == row[args.label_field] for item in found]
        )
        top = np.argsort(-values)[: same.sum()]
        ranks = rankdata(values)
        area = (ranks[same].sum() - same.sum() * (same.sum() + 1) / 2) / (same.sum() * (~same).sum())
        yield float(same[top].mean()), float(area)


def kills(args: argparse.Namespace, folder: Path) -> None:
    """kill -9 at random moments of an ingest, resumed by the same command, against an uninterrupted one."""
    data = write_rows(folder / "train.jsonl", rows_of(args.train, args.rows))

    def command(store: str) -> list[str]:
        options = ["--prompt-field", args.prompt_field, "--response-field", args.response_field]
        return [sys.executable, "-m", "curator", "ingest", str(data), "--model", str(args.model), "--dataset", "train",
                "--store", str(folder / store), "--positions", args.positions, "--segment-tokens", "20000", "--quiet",
                *options]  # fmt: skip

    seconds = _seconds(lambda: subprocess.run(command("whole"), check=True, stdout=subprocess.DEVNULL))
    expected = _contents(folder / "whole")
    generator, num_killed, num_stores, is_equal = random.Random(0), 0, 0, True
    while num_killed < args.kills:
        store = f"killed{num_stores}"
        num_here = _kill_until_done(command(store), generator, min(seconds, 15.0), args.kills - num_killed)
        num_killed, num_stores = num_killed + num_here, num_stores + 1
        found = _contents(folder / store)
        is_equal &= found[0] == expected[0] and np.array_equal(found[1], expected[1])
    print(f"{num_killed} kills of {num_stores} ingests of {len(expected[0]):,} samples; ", end="")
    print(f"ids, keys and values (bit for bit) as without: {is_equal}; every store sound")


def _kill_until_done(command: list[str], generator: random.Random, seconds: float, most: int) -> int:
    """Runs a command to its end, killed at most so often at random moments within `seconds`: the number of kills."""
    for killed in range(most):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        try:
            code = process.wait(timeout=generator.uniform(0.1, 0.9) * seconds)
            assert code == 0, f"ingest ended with {code}"
            return killed
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return most


def _contents(store: Path) -> tuple[list[tuple[int, str]], np.ndarray]:
    """Ids with keys, and values, of a store that is sound."""
    with Curator.open(store, device="cpu") as curator:
        assert not curator.verify()["problems"], f"{store} is not sound"
        found = list(curator.values(text="How many apples are left?"))
        return [(v["id"], v["key"]) for v in found], np.array([v["value"] for v in found])


if __name__ == "__main__":
    main()
