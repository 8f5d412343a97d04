"""bergson as a command, in its own environment, timed from outside."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["Bergson", "output", "run", "seconds"]

_TOKENS = 8192  # of a batch, as in ingest


class Bergson:
    """bergson in its own environment, with the settings of its documentation for an index: projection_dim 16."""

    def __init__(self, environment: Path, model: Path, folder: Path):
        self.bin, self.folder, self.num_bytes = environment.absolute() / "bin", folder, 0
        self.model, self.largest_batch = model, 0
        config = json.loads((model / "config.json").read_text())
        self.largest_batch = config["max_position_embeddings"]
        if "rope_parameters" in config or "rope_theta" in config:
            # bergson refuses batches beyond the model's context. Rotary positions have no table, so a copy that claims
            # a longer context computes the same numbers, in batches as large as ours: better for bergson.
            self.model = self._with_longer_context(config)
            self.largest_batch = _TOKENS

    def _with_longer_context(self, config: dict[str, Any]) -> Path:
        copy = Path(shutil.copytree(self.model, self.folder / "model"))
        (copy / "config.json").write_text(json.dumps(config | {"max_position_embeddings": _TOKENS}))
        tokenizer = json.loads((copy / "tokenizer_config.json").read_text())
        (copy / "tokenizer_config.json").write_text(json.dumps(tokenizer | {"model_max_length": _TOKENS}))
        return copy

    def _command(self, verb: str, data: Path, token_batch: int, run_path: str, *more: str) -> float:
        shutil.rmtree(self.folder / run_path, ignore_errors=True)
        options = ["--truncation", "--token_batch_size", str(token_batch), "--projection_dim", "16", *more]
        where = [self.folder / run_path, "--model", self.model, "--dataset", data]
        return run([self.bin / "bergson", verb, *where, *options])

    def build(self, data: Path, token_batch: int) -> float:
        """Seconds of `bergson build`."""
        took = self._command("build", data, token_batch, "index")
        self.num_bytes = (self.folder / "index" / "gradients.bin").stat().st_size
        return took

    def score(self, data: Path, validation: Path) -> float:
        """Seconds of its two commands for a new validation set: the set's mean gradient, then `score` over the data."""
        query = self._command("build", validation, self.largest_batch, "target", "--aggregation", "mean")
        path = str(self.folder / "target")
        return query + self._command("score", data, self.largest_batch, "scores", "--query_path", path)

    def query(self, validation: Path, times: int) -> dict[str, float]:
        """Seconds by stage against its index with every row `times` times."""
        index = self.folder / "repeated"
        shutil.rmtree(index, ignore_errors=True)
        shutil.copytree(self.folder / "index", index)
        info = json.loads((index / "info.json").read_text())
        info |= {name: info[name] * times for name in ("num_grads", "num_items")}
        (index / "info.json").write_text(json.dumps(info))
        rows = (index / "gradients.bin").read_bytes()
        with (index / "gradients.bin").open("wb") as file:
            for _ in range(times):
                file.write(rows)
        work = Path(tempfile.mkdtemp(dir=self.folder))
        script = Path(__file__).with_name("bergson_query.py")
        done = output([self.bin / "python", script, index, validation, self.model, str(self.largest_batch), work])
        shutil.rmtree(index)
        stages: dict[str, float] = json.loads(done.splitlines()[-1])
        return stages


def seconds(work: Callable[[], Any]) -> float:
    """Wall time."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def run(command: list[Any]) -> float:
    """Wall time of a command; what it said is shown when it fails."""
    return seconds(lambda: output(command))


def output(command: list[Any]) -> str:
    """What a command prints on stdout."""
    environment = dict(os.environ)
    if command[0] != sys.executable:
        environment.pop("PYTHONPATH", None)  # another environment has its own packages
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))} ended with {done.returncode}:\n{done.stderr[-3000:]}")
    return done.stdout
