"""One corpus of questions and answers as conversations, as prompts with responses, and as text: three spaces compared.

    scripts/bench_chat.py --model M --train train.jsonl --test test.jsonl --rows 2000 --queries 30

Needs rows with `question` and `answer`. The chat template is ChatML, whatever the model has. Prints a Markdown page.
"""

import argparse
import itertools
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from curator import Curator
from curator.sources import read_rows
from curator.types import Row

CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SHAPES = ("chat", "prompt", "text")
METHODS = ("raw", "preconditioned")
TOP = 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--train", type=Path, required=True)
    parser.add_argument("--test", type=Path, required=True)
    parser.add_argument("--rows", type=int, default=2000)
    parser.add_argument("--queries", type=int, default=30)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        train = _head(options.train, Path(folder, "train.jsonl"), options.rows)
        test = _head(options.test, Path(folder, "test.jsonl"), options.queries)
        template = Path(folder, "chatml.jinja")
        template.write_text(CHATML, "utf-8")
        rows, tops = [], {}
        for shape in SHAPES:
            row, tops[shape] = _space(Path(folder, shape), shape, options.model, train, test, template)
            rows.append(row)
    print(
        f"# One corpus in three shapes\n\n{options.rows:,} rows; {options.queries} queries, each in its space's shape\n"
    )
    _table(rows)
    print(f"\nOverlap of the {TOP} most helpful samples between two spaces, mean ± standard deviation over the queries "
          f"(by chance {TOP / options.rows:.3f}):\n")  # fmt: skip
    _table(
        [
            {"spaces": f"{one} and {other}", **{m: _overlap(tops[one][m], tops[other][m]) for m in METHODS}}
            for one, other in itertools.combinations(SHAPES, 2)
        ]
    )


def _head(source: Path, target: Path, count: int) -> Path:
    rows = [row for row in itertools.islice(read_rows(source), count) if isinstance(row, Row)]
    target.write_text("".join(json.dumps(row.columns, ensure_ascii=False) + "\n" for row in rows), "utf-8")
    return target


def _space(
    store: Path, shape: str, model: str, train: Path, test: Path, template: Path
) -> tuple[dict[str, Any], dict[str, list[set[str]]]]:
    """A line of the table, and the keys of the most helpful samples of every query by method."""
    asked = {"data": str(test), "each": True, "top": TOP, "harmful": 0, "shape": shape}
    given = {"chat_template": template} if shape == "chat" else {}
    with Curator.open(store, device="cpu") as curator:
        started = time.perf_counter()
        report = curator.ingest(train, model=model, dataset="train", shape=shape, **given)
        seconds = time.perf_counter() - started
        [space] = curator.status()["spaces"]
        answers = {method: list(curator.queries(**asked, method=method)) for method in METHODS}
    tops = {method: [{item.key for item in one.helpful} for one in answers[method]] for method in METHODS}
    captured = [one.how.captured for one in answers["raw"]]
    return {
        "read as": report.reading,
        "tokens": f"{report.tokens:,}",
        "counted": f"{space['counted_tokens']:,}",
        "truncated": f"{report.truncated:,}",
        "energy captured of samples": f"{space['captured']:.3f}",
        "of queries": f"{np.mean(captured):.3f}",
        "seconds": f"{seconds:.0f}",
        "of it calibration": f"{report.calibration_seconds:.0f}",
    }, tops


def _overlap(ones: list[set[str]], others: list[set[str]]) -> str:
    shares = [len(one & other) / TOP for one, other in zip(ones, others, strict=True)]
    return f"{np.mean(shares):.3f} ± {np.std(shares):.3f}"


def _table(rows: list[dict[str, Any]]) -> None:
    print("| " + " | ".join(rows[0]) + " |\n|" + "---|" * len(rows[0]))
    for row in rows:
        print("| " + " | ".join(row.values()) + " |")


if __name__ == "__main__":
    main()
