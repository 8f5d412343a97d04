"""Values on disk: JSON lines or Parquet, streamed, and either whole or absent."""

import itertools
import json
import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from curator.errors import CuratorError, UsageError

__all__ = ["in_portions", "write_jsonl", "write_values"]

_ROW_GROUP = 65_536
T = TypeVar("T")


def write_values(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Writes rows of id, key and value to a .jsonl or .parquet file and returns their number.

    The file is written beside its place and renamed into it at the end. Raises UsageError for another suffix and
    CuratorError where the directory cannot be written.
    """
    writers = {".jsonl": _write_jsonl, ".parquet": _write_parquet}
    if path.suffix not in writers:
        raise UsageError(f"--out {path}: write to a file that ends in {' or '.join(writers)}")
    return _replaced(path, rows, writers[path.suffix])


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Writes any rows to a .jsonl file, as `write_values` does."""
    if path.suffix != ".jsonl":
        raise UsageError(f"--out {path}: write to a file that ends in .jsonl")
    return _replaced(path, rows, _write_jsonl)


def _replaced(
    path: Path, rows: Iterable[dict[str, Any]], write: Callable[[Path, Iterable[dict[str, Any]]], int]
) -> int:
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        count = write(temporary, rows)
        os.replace(temporary, path)
    except OSError as error:
        raise CuratorError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        temporary.unlink(missing_ok=True)
    return count


def _write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for count, row in enumerate(rows, start=1):  # noqa: B007 (the count is the result)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        file.flush()
        os.fsync(file.fileno())
    return count


def _write_parquet(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    import pyarrow as pa  # deferred: 0.1 s that JSON lines need not pay
    import pyarrow.parquet as pq

    types = {"query": pa.string(), "id": pa.int64(), "key": pa.string(), "value": pa.float64()}
    groups = in_portions(rows, _ROW_GROUP)
    first = next(groups, [])
    names = list(first[0]) if first else ["id", "key", "value"]
    schema = pa.schema([(name, types[name]) for name in names])
    count = 0
    with pq.ParquetWriter(path, schema) as writer:
        for group in itertools.chain([first], groups):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
            count += len(group)
    return count


def in_portions(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """The items in lists of `size`, the last one shorter."""
    iterator = iter(items)
    while portion := list(itertools.islice(iterator, size)):
        yield portion
