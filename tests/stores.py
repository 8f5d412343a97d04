"""What the tests of the whole service share: parts of the demo corpus, and stores of it under the demo model."""

import json
from pathlib import Path
from typing import Any

from curator import Curator, demo
from tests.sources.files import write_jsonl

__all__ = ["CORPUS", "FIELDS", "NAMED", "QUESTION", "SIZE", "VALIDATION", "add", "contents", "values_of", "write_jsonl"]

FIELDS = {"prompt_field": "prompt", "response_field": "response"}
NAMED = FIELDS | {"id_field": "id", "label_field": "task"}
CORPUS: list[dict[str, Any]] = [json.loads(line) for line in demo.CORPUS.read_text("utf-8").splitlines()]
SIZE = 60  # rows of the shared store
VALIDATION = {"data": demo.VALIDATION["addition"], **FIELDS}
QUESTION = {"prompt": "Which city is the capital of Canada?", "response": " Ottawa"}


def add(curator: Curator, path: Path, rows: list[Any] | None = None, **options: Any) -> Any:
    """Ingests a file, written first where rows are given, under the demo model: the report."""
    if rows is not None:
        write_jsonl(path, rows)
    return curator.ingest(path, **({"dataset": "demo", "model": str(demo.MODEL)} | FIELDS | options))


def values_of(curator: Curator, **question: Any) -> dict[str, float]:
    """The value of every sample by key."""
    return {row["key"]: row["value"] for row in curator.values(**(question or QUESTION))}


def contents(curator: Curator) -> list[tuple[int, str, float]]:
    """Id, key and value of every sample."""
    return [(row["id"], row["key"], row["value"]) for row in curator.values(**QUESTION)]
