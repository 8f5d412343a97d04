#!/usr/bin/env python
"""What a command costs before it does anything: `--help`, `status`, and a warm `query` of the bundled demo.

    scripts/bench_startup.py [--before CHECKOUT] [--repeats 5]

CHECKOUT is the root of another version, measured alternately. Prints Markdown: wall and CPU seconds (medians), and
the libraries that are imported when the command ends.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / "curator" / "demo"
LIBRARIES = ("torch", "transformers", "faiss", "pyarrow", "alembic", "sqlalchemy", "numpy", "rich")
# The command line as its entry point starts it; at the end, on stderr, what was imported.
CURATOR = f"""
import atexit, sys
atexit.register(lambda: print(*[name for name in {LIBRARIES} if name in sys.modules], file=sys.stderr))
sys.argv[0] = "curator"
from curator.cli.main import main
main()"""
# What no query can do without: the forward pass of a model of the hub.
FLOOR = """
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
AutoTokenizer.from_pretrained(sys.argv[1]), AutoModelForCausalLM.from_pretrained(sys.argv[1])
print("torch transformers", file=sys.stderr)"""


def main() -> None:
    """Builds the demo's store and times each command in processes of their own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    versions = {"now": ROOT} | ({"before": args.before.resolve()} if args.before else {})
    with tempfile.TemporaryDirectory() as folder:
        ask = ["query", "--prompt", "Which city is the capital of Canada?", "--response", " Ottawa"]
        stores = {version: str(Path(folder) / version) for version in versions}  # each in its own version's format
        for version, root in versions.items():
            once(CURATOR, root, ["ingest", str(DEMO / "corpus.jsonl"), "--prompt-field", "prompt", "--response-field",
                                 "response", "--model", str(DEMO / "model"), "--dataset", "demo", "--quiet",
                                 "--store", stores[version]])  # fmt: skip
            once(CURATOR, root, [*ask, "--store", stores[version]])  # builds the index
        print("| command | version | wall, s | CPU, s | imported |\n|---|---|---|---|---|")
        for name, words in {"--help": ["--help"], "status": ["status"], "query": ask}.items():
            runs = {v: [*words, *(["--store", stores[v]] if name != "--help" else [])] for v in versions}
            table(f"curator {name}", CURATOR, versions, runs, args.repeats)
        model = {"any": [str(DEMO / "model")]}
        table("python: load the model and its tokenizer", FLOOR, {"any": ROOT}, model, args.repeats)


def table(name: str, code: str, versions: dict[str, Path], words: dict[str, list[str]], repeats: int) -> None:
    """One row a version."""
    found: dict[str, list[tuple[float, float, str]]] = {version: [] for version in versions}
    for _ in range(repeats):
        for version, root in versions.items():
            found[version].append(once(code, root, words[version]))
    for version, runs in found.items():
        wall, cpu = statistics.median(run[0] for run in runs), statistics.median(run[1] for run in runs)
        print(f"| {name} | {version} | {wall:.2f} | {cpu:.2f} | {runs[0][2]} |", flush=True)


def once(code: str, root: Path, words: list[str]) -> tuple[float, float, str]:
    """Wall seconds, CPU seconds, and the last line on stderr of one process."""
    started, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    environment = os.environ | {"PYTHONPATH": str(root), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-P", "-c", code, *words]  # -P: never the current directory's version
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(done.stderr)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return time.perf_counter() - started, cpu, (done.stderr.splitlines() or [""])[-1]


if __name__ == "__main__":
    main()
