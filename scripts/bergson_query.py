#!/usr/bin/env python
"""Run by bench_peers.py in bergson's own environment: a new validation set against an index that `bergson build` made.

    python bergson_query.py INDEX VALIDATION.jsonl MODEL TOKEN_BATCH WORK

Prints the seconds of each stage as JSON: the mean gradient of the validation set (`build` with aggregation mean), the
index read into memory (its Attributor), and the search at both ends. Nothing here is curator's.
"""

import json
import sys
import time
from pathlib import Path

import torch
from bergson.build import build
from bergson.config.config import DataConfig, IndexConfig, PreprocessConfig
from bergson.data import column_offsets, load_gradients
from bergson.query.attributor import Attributor


def main() -> None:
    """Times the three stages."""
    index, validation, model, token_batch, work = sys.argv[1:]
    run_path = str(Path(work) / "query")
    config = IndexConfig(
        run_path=run_path,
        model=model,
        data=DataConfig(dataset=validation, truncation=True),
        token_batch_size=int(token_batch),
        projection_dim=16,
    )
    config.partial_run_path.mkdir(parents=True)
    started = time.perf_counter()
    build(config, PreprocessConfig(aggregation="mean"))
    gradient = torch.from_numpy(load_gradients(Path(run_path)).copy())
    built = time.perf_counter()
    attributor = Attributor(index)
    loaded = time.perf_counter()
    sizes = json.loads((Path(index) / "info.json").read_text())["grad_sizes"]
    query = {name: gradient[:, low:high] for name, (low, high) in column_offsets(sizes).items()}
    for reverse in (False, True):
        attributor.search(query, 10, reverse=reverse)
    searched = time.perf_counter()
    print(json.dumps({"gradient": built - started, "load": loaded - built, "search": searched - loaded}))


if __name__ == "__main__":
    main()
