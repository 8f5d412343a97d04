"""What is installed, which device and faiss build are used, and what is wrong."""

import importlib.metadata
import os
import platform
import sqlite3
from typing import Any

__all__ = ["examine"]

_LIBRARIES = ("torch", "transformers", "tokenizers", "numpy", "safetensors", "sqlalchemy", "alembic", "pyarrow")
_MIN_SQLITE = (3, 35, 0)


def examine() -> dict[str, Any]:
    """{"facts": {name: value}, "problems": [one line each]}; sound when problems is empty."""
    facts: dict[str, str] = {
        "curator": importlib.metadata.version("forvalue-curator"),
        "python": platform.python_version(),
    }
    problems: list[str] = []
    for name in _LIBRARIES:
        facts[name] = importlib.metadata.version(name)
    facts["sqlite"] = sqlite3.sqlite_version
    if sqlite3.sqlite_version_info < _MIN_SQLITE:
        problems.append(f"SQLite {sqlite3.sqlite_version} is older than 3.35; use a newer Python build")
    _examine_faiss(facts, problems)
    _examine_device(facts, problems)
    return {"facts": facts, "problems": problems}


def _examine_faiss(facts: dict[str, str], problems: list[str]) -> None:
    owners = sorted(set(importlib.metadata.packages_distributions().get("faiss", [])))
    facts["faiss"] = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in owners) or "missing"
    if not owners:
        problems.append("no faiss: pip install 'forvalue-curator[cpu]' or, with CUDA on Linux, 'forvalue-curator[gpu]'")
        return
    if len(owners) > 1:
        problems.append(
            f"{' and '.join(owners)} both own the folder faiss/ and break each other: "
            f"pip uninstall {' '.join(owners)}, then install one of them"
        )
    from index.errors import FaissMissingError
    from index.faiss_index import load_faiss

    try:
        faiss = load_faiss()
    except FaissMissingError as error:
        problems.append(f"faiss does not import: {error.__cause__}")
        return
    gpus = faiss.get_num_gpus() if hasattr(faiss, "get_num_gpus") else 0
    facts["faiss build"] = f"{faiss.get_compile_options().strip()}, {gpus} GPUs"


def _examine_device(facts: dict[str, str], problems: list[str]) -> None:
    import torch

    from curator.models import pick_device

    device = pick_device("auto")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} cores"
    facts["device"] = f"{device} ({name}, {torch.get_num_threads()} torch threads)"
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        facts["device memory"] = f"{free >> 20:,} of {total >> 20:,} MiB free"
    elif torch.version.cuda:
        facts["CUDA"] = f"torch is built for {torch.version.cuda}, but sees no GPU"
