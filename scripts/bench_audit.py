#!/usr/bin/env python
"""Measures the audits on real data, where what is wrong is known.

    scripts/bench_audit.py mislabeled --model M --train T --test Q --prompt-field prompt --response-field answer \
        --label-field variation                        # swaps a share of the answers, AUC of finding them
    scripts/bench_audit.py duplicates --model M --train T --prompt-field question --response-field answer
    scripts/bench_audit.py time --store S              # a large store: scripts/make_synthetic_store.py grow

Prints Markdown tables.
"""

import argparse
import gzip
import json
import random
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import rankdata

from curator import Curator
from curator.audit import AUDIT_METHODS

SHARE = 0.3
EVERYTHING = 10**9


def rows_of(path: Path, most: int = EVERYTHING) -> list[dict[str, Any]]:
    """The first rows of a JSON lines file, plain or .gz."""
    with gzip.open(path, "rt") if path.suffix == ".gz" else path.open() as file:
        return [json.loads(line) for _, line in zip(range(most), file, strict=False)]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Writes rows as JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def swapped(rows: list[dict[str, Any]], args: argparse.Namespace, random_: random.Random) -> list[dict[str, Any]]:
    """The rows with a share of the answers exchanged for one of another class, marked, and answers as text."""
    places = set(random_.sample(range(len(rows)), round(args.share * len(rows))))
    found = []
    for place, row in enumerate(rows):
        answer = row[args.response_field]
        if place in places:
            others = [other for other in rows if other[args.label_field] != row[args.label_field]]
            answer = random_.choice(others)[args.response_field]
        found.append(row | {args.response_field: f" {answer}", "is_swapped": place in places})
        found[-1].pop("text", None)
    return found


def area(scores: np.ndarray, is_wrong: np.ndarray) -> float:
    """AUC of low scores for what is wrong."""
    ranks, wrong = rankdata(-scores), int(is_wrong.sum())
    return (ranks[is_wrong].sum() - wrong * (wrong + 1) / 2) / (wrong * (len(scores) - wrong))


def mislabeled(args: argparse.Namespace, folder: Path) -> None:
    """AUC in the order of the audit, and of plain values, over seeds."""
    print(
        "| positions | reference | method | AUC | of values | precision of the worst 100 |\n|---|---|---|---|---|---|"
    )
    train, test = rows_of(args.train), rows_of(args.test)
    clean = [row | {args.response_field: f" {row[args.response_field]}"} for row in test]
    reference = write_rows(folder / "clean.jsonl", clean)
    fields = {"prompt_field": args.prompt_field, "response_field": args.response_field, "label_field": args.label_field}
    for positions in ("response", "all"):
        found: dict[tuple[str, ...], list[tuple[float, float, float]]] = {}
        for seed in range(args.seeds):
            data = write_rows(folder / f"{seed}.jsonl", swapped(train, args, random.Random(seed)))
            with Curator.open(folder / f"{positions}{seed}", device="cpu") as curator:
                curator.ingest(data, model=str(args.model), dataset="train", positions=positions, **fields)
                for kind, used in (("clean test rows", [reference]), ("none", [])):
                    for method in AUDIT_METHODS:
                        result = curator.audit_mislabeled(used, method=method, limit=EVERYTHING, **fields)
                        is_wrong = np.array([item.meta["is_swapped"] for item in result.items])
                        values = np.array([item.value for item in result.items])
                        scores = area(np.arange(len(values)), is_wrong), area(values, is_wrong), is_wrong[:100].mean()
                        found.setdefault((positions, kind, method), []).append(scores)
        for name, scores in found.items():
            cells = [f"{np.mean(column):.3f} ± {np.std(column):.3f}" for column in zip(*scores, strict=True)]
            print(f"| {' | '.join((*name, *cells))} |", flush=True)


EDITS: dict[str, Callable[[str, random.Random], str]] = {
    "a space more": lambda text, _: text.replace(" ", "  ", 1),
    "no capitals": lambda text, _: text.lower(),
    "no full stop": lambda text, _: text.replace(".", ""),
    "one letter": lambda text, random_: _one(list(text), random_, "x"),
    "one word": lambda text, random_: " ".join(_one(text.split(" "), random_, "thing", join=None)),
}


def _one(parts: list[str], random_: random.Random, new: str, join: str | None = "") -> Any:
    parts[random_.randrange(len(parts))] = new
    return parts if join is None else join.join(parts)


def duplicates(args: argparse.Namespace, folder: Path) -> None:
    """For each threshold, the share of edited copies that are found, and of other samples that are found too."""
    rows = rows_of(args.train, args.rows)
    random_ = random.Random(0)
    fields = [name for name in (args.prompt_field, args.response_field) if name]
    rows = [{name: str(row[name]) for name in fields} | {"edit": "original"} for row in rows]
    copies = []
    for place, row in enumerate(rows[: args.rows // 4]):
        name = list(EDITS)[place % len(EDITS)]
        copies.append({field: EDITS[name](row[field], random_) for field in fields} | {"edit": name, "of": place})
    data = write_rows(folder / "data.jsonl", [*rows, *copies])
    columns = dict(zip(("prompt_field", "response_field"), fields, strict=True))
    print(f"| threshold | {' | '.join(EDITS)} | originals found |\n|{'---|' * (len(EDITS) + 2)}")
    with Curator.open(folder / "store", device="cpu") as curator:
        curator.ingest(data, model=str(args.model), dataset="d", positions=args.positions, **columns)
        for threshold in (0.8, 0.9, 0.95, 0.97, 0.98, 0.99, 0.995):
            items = curator.audit_duplicates(threshold=threshold, limit=EVERYTHING).items
            found = [item.meta["edit"] for item in items]
            shares = [found.count(name) / sum(copy["edit"] == name for copy in copies) for name in EDITS]
            cells = [f"{share:.2f}" for share in shares] + [f"{found.count('original') / len(rows):.3f}"]
            print(f"| {threshold} | {' | '.join(cells)} |", flush=True)


def timed(args: argparse.Namespace, _: Path) -> None:
    """Seconds of each audit and of bulk changes on a large store."""
    print("| what | seconds | peak MB so far |\n|---|---|---|")
    with Curator.open(args.store, create=False, device="cpu") as curator:
        work: dict[str, Callable[[], Any]] = {
            "audit mislabeled, no reference": lambda: curator.audit_mislabeled(),
            "audit outliers": lambda: curator.audit_outliers(),
            "audit duplicates, exact": lambda: curator.audit_duplicates(exact=True),
            "audit duplicates": lambda: curator.audit_duplicates(),
            "tag everything": lambda: curator.tag("all", where="id > 0"),
            "tag half by label": lambda: curator.tag("half", where='label contains "5"'),
            "filter by tag": lambda: curator.notes('tag = "half"'),
            "untag everything": lambda: curator.untag("all", where='tag = "all"'),
            "undo": lambda: curator.undo(),
            "undo again": lambda: curator.undo(),
            "delete everything": lambda: curator.delete("id > 0"),
            "undo of that": lambda: curator.undo(),
        }
        for name, job in work.items():
            started = time.perf_counter()
            job()
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
            print(f"| {name} | {time.perf_counter() - started:.1f} | {peak:.0f} |", flush=True)


def main() -> None:
    """Parses the command line and runs one measurement."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["mislabeled", "duplicates", "time"])
    parser.add_argument("--model", type=Path)
    parser.add_argument("--train", type=Path, help="JSON lines, plain or .gz")
    parser.add_argument("--test", type=Path)
    parser.add_argument("--store", type=Path)
    parser.add_argument("--prompt-field")
    parser.add_argument("--response-field")
    parser.add_argument("--label-field")
    parser.add_argument("--positions", choices=["response", "all"], default="all")
    parser.add_argument("--share", type=float, default=SHARE)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=2000)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        {"mislabeled": mislabeled, "duplicates": duplicates, "time": timed}[args.what](args, Path(folder))


if __name__ == "__main__":
    main()
