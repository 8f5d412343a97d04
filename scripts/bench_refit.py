"""What calibration costs and what a refit brings.

    python scripts/bench_refit.py cost --vocab 151936 --hidden 1536
    python scripts/bench_refit.py tokens --model M --data gsm8k.jsonl maths.jsonl ...
    python scripts/bench_refit.py drift --model M --data gsm8k.jsonl maths.jsonl ... --test q.jsonl ...

Data are JSON lines with a field `text`. `cost` times a calibration on random weights and anisotropic hidden states.
`tokens` compares ways to choose U_e by the energy they capture of held-out samples. `drift` calibrates on the first
file, grows the store by the others, refits it, and compares sketches with exact values before and after.
"""

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr

from curator import Curator
from curator.ingest import IngestOptions, ingest
from curator.metadata.spaces import find_space
from curator.models import CausalLM, CountedHidden, Encoder, Head, load_tokenizer
from curator.refit import RefitOptions, refit
from curator.store import Store
from curator.types import EncodedSample, Fields, Sample
from curator.value import Ranks, calibrate
from curator.value.calibrate import affordable_tokens
from index.fit import RangeFinder, fit_cores
from index.projection import Projection

CPU = torch.device("cpu")


def main() -> None:
    """Parses the command line and runs one measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["cost", "tokens", "drift"])
    parser.add_argument("--vocab", type=int, default=151_936)
    parser.add_argument("--hidden", type=int, default=1536)
    parser.add_argument("--samples", type=int, default=1024)
    parser.add_argument("--length", type=int, default=200)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--data", type=Path, nargs="+")
    parser.add_argument("--test", type=Path, nargs="+")
    parser.add_argument("--rows", type=int, default=500, help="of each file")
    parser.add_argument("--queries", type=int, default=10, help="of each file")
    parser.add_argument("--ranks", type=int, nargs=4, default=[256, 32, 64, 1024], help="error hidden factor width")
    args = parser.parse_args()
    {"cost": cost, "tokens": tokens, "drift": drift}[args.what](args)


@torch.inference_mode()
def cost(args: argparse.Namespace) -> None:
    """Wall time and peak memory of `calibrate`, the forward passes apart."""
    generator = torch.Generator().manual_seed(0)
    head = Head(torch.randn(args.vocab, args.hidden, generator=generator) * args.hidden**-0.5, None)
    # As real ones: deviations fall along the directions, and all states share a mean.
    deviations = torch.arange(1, args.hidden + 1) ** -0.5
    num_samples = min(args.samples, max(1, affordable_tokens(head) // args.length))
    batches = []
    for _ in range(num_samples):
        hidden = torch.randn(args.length, args.hidden, generator=generator) * deviations + deviations.flip(0)
        hidden *= args.hidden**0.5 / hidden.norm(dim=1, keepdim=True)
        labels = torch.randint(args.vocab, (args.length,), generator=generator)
        batches.append(CountedHidden(hidden, labels, [args.length]))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    projection = calibrate(batches, head, ranks=Ranks(*args.ranks), seed=0)
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print("| V | d | samples | tokens | seconds | memory beyond model and hidden states |")
    print("|---|---|---|---|---|---|")
    print(
        f"| {args.vocab:,} | {args.hidden:,} | {num_samples:,} | {num_samples * args.length:,} | {seconds:.0f} "
        f"| {(peak - before) / 2**20:.1f} GiB |"
    )
    print(f"\nU_e {projection.error_rank} x U_h {projection.hidden_rank} to {projection.width}")


def encoded(args: argparse.Namespace, lm: CausalLM, paths: list[Path], most: int) -> dict[str, list[EncodedSample]]:
    """The samples of each file."""
    encoder = Encoder(load_tokenizer(args.model), max_length=lm.context or 2048, vocab_size=lm.vocab_size)
    found = {}
    for path in paths:
        rows = [json.loads(line) for line in path.read_text().splitlines()[:most]]
        results = encoder.encode([Sample(text=row["text"]) for row in rows])
        found[path.stem] = [item for item in results if isinstance(item, EncodedSample)]
    return found


@torch.inference_mode()
def gradients(lm: CausalLM, samples: list[EncodedSample]) -> torch.Tensor:
    """G of each sample, float32 [N, V, H]."""
    found = []
    for sample in samples:
        batch = lm.hidden([sample])
        found.append(lm.head.errors(batch.hidden, batch.labels)[0].T @ batch.hidden.float())
    return torch.stack(found)


@torch.inference_mode()
def tokens(args: argparse.Namespace) -> None:
    """Mean captured share (error side alone) of held-out samples by tokens read, passes, and who chooses U_e."""
    lm = CausalLM.load(args.model, device="cpu", dtype="float32")
    samples = [one for of_file in encoded(args, lm, args.data, args.rows).values() for one in of_file]
    order = np.random.default_rng(0).permutation(len(samples))
    states = [lm.hidden([samples[i]]) for i in order]
    errors = torch.cat([lm.head.errors(one.hidden, one.labels)[0] for one in states[:400]])
    every = gradients(lm, [samples[i] for i in order[:700]])
    norms = every.flatten(1).norm(dim=1)
    moment = sum(one.hidden.T @ one.hidden for one in states[:400])
    hidden_basis = torch.linalg.eigh(moment)[1].flip(1)[:, : args.ranks[1]]
    reduced = every @ hidden_basis
    held_out, held_norms = reduced[400:], norms[400:]

    def captured(basis: torch.Tensor) -> float:
        seen = torch.einsum("vm,nvr->nmr", basis, held_out).flatten(1).square().sum(1)
        return float((seen / held_norms**2).mean())

    rank = args.ranks[0]
    print("| tokens | passes | leading errors | chosen by 100 samples of twice as many | chosen by 400 |")
    print("|---|---|---|---|---|")
    for count in (1024, 2048, 4096, 8192, 16384):
        some = errors[torch.randperm(len(errors), generator=torch.Generator().manual_seed(0))[:count]]
        for passes in (2, 3):
            row = []
            for width in (rank, 2 * rank):
                finder = RangeFinder(lm.vocab_size, width, seed=0, device=CPU, num_passes=passes)
                basis, values = finder.fit(lambda some=some: iter(some.split(512)))
                if width == rank:
                    row.append(captured(basis))
                    continue
                for num in (100, 400):
                    cores = torch.einsum("vm,nvr->nmr", basis, reduced[:num])
                    fitted = fit_cores(cores, norms[:num], values, error_rank=rank, width=1)
                    row.append(captured(basis @ fitted.errors))
            print(f"| {count:,} | {passes} | {row[0]:.3f} | {row[1]:.3f} | {row[2]:.3f} |", flush=True)


def drift(args: argparse.Namespace) -> None:
    """Sketches against exact values of every sample before and after a refit, by the file that queries come from."""
    ranks = Ranks(*args.ranks)
    lm = CausalLM.load(args.model, device="cpu", dtype="float32")
    with tempfile.TemporaryDirectory() as folder:
        store = Store.create(Path(folder) / "store")
        train, questions = [], {}
        for path in args.data:
            rows = path.read_text().splitlines(keepends=True)[: args.rows]
            (Path(folder) / path.name).write_text("".join(rows))
            options = IngestOptions(ranks=ranks, device="cpu")
            ingest(store, [Path(folder) / path.name], dataset=path.stem, model=str(args.model),
                   fields=Fields("text"), options=options)  # fmt: skip
            train += [path.stem] * len(rows)
        store.close()
        for name, samples in encoded(args, lm, args.test, args.queries).items():
            questions[name] = gradients(lm, samples)
        texts = _texts(folder)
        exact = _exact(args, lm, texts, torch.cat(list(questions.values())))
        print("| | captured energy by dataset | queries from | Spearman mean (worst) | top 10 | bottom 10 |")
        print("|---|---|---|---|---|---|")
        _report("calibrated on the first", folder, questions, exact)
        store = Store(Path(folder) / "store")
        with store.writing(), store.session() as session:
            done = refit(store, session, find_space(session), RefitOptions(force=True, ranks=ranks))
        store.close()
        _report("refitted", folder, questions, exact)
        print(f"\nheld out: {done['captured']}, better: {done['is_better']}, {done['seconds']:.1f} s")


def _texts(folder: str) -> list[str]:
    with Curator.open(Path(folder) / "store", device="cpu") as curator, curator._store.session() as session:
        from curator.metadata.tables import Sample as Row

        return [row.text or "" for row in session.query(Row).order_by(Row.id)]


@torch.inference_mode()
def _exact(args: argparse.Namespace, lm: CausalLM, texts: list[str], queries: torch.Tensor) -> np.ndarray:
    encoder = Encoder(load_tokenizer(args.model), max_length=lm.context or 2048, vocab_size=lm.vocab_size)
    samples: Any = encoder.encode([Sample(text=text) for text in texts])
    values = [queries.flatten(1) @ gradients(lm, [sample])[0].flatten() for sample in samples]
    return torch.stack(values).double().numpy()


def _report(title: str, folder: str, questions: dict[str, torch.Tensor], exact: np.ndarray) -> None:
    store = Store(Path(folder) / "store")
    with store.session() as session:
        space = find_space(session)
        projection: Projection = store.projection(space)
        sketches = np.concatenate([s.sketches(0, s.num_samples) for s in store.segments(session, space.id)])
    store.close()
    with Curator.open(Path(folder) / "store") as curator:
        shares = ", ".join(f"{row['dataset']} {row['captured']:.3f}" for row in curator.status()["datasets"])
    column = 0
    for name, gradients_of in questions.items():
        found, tops, bottoms = [], [], []
        for gradient in gradients_of:
            values, truth = sketches @ projection.sketch_gradient(gradient).numpy(), exact[:, column]
            column += 1
            found.append(spearmanr(values, truth).statistic)
            order, ours = np.argsort(-truth), np.argsort(-values)
            tops.append(len(set(order[:10]) & set(ours[:10])) / 10)
            bottoms.append(len(set(order[-10:]) & set(ours[-10:])) / 10)
        print(
            f"| {title} | {shares} | {name} | {np.mean(found):.4f} ({np.min(found):.4f}) | {np.mean(tops):.2f} "
            f"| {np.mean(bottoms):.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
