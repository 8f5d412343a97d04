"""Results on disk, streamed, and either whole or absent: values as JSON lines or Parquet, any other file as well."""

import itertools
import json
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from curator.errors import CuratorError, UsageError

__all__ = ["check_place", "in_portions", "replacing", "write_jsonl", "write_values"]

_ROW_GROUP = 65_536
T = TypeVar("T")


def write_values(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Writes rows of id, key and value to a .jsonl or .parquet file and returns their number.

    Raises UsageError for another suffix, and as `replacing` does.
    """
    writers = {".jsonl": _write_jsonl, ".parquet": _write_parquet}
    if path.suffix not in writers:
        raise UsageError(f"--out {path}: write to a file that ends in {' or '.join(writers)}")
    with replacing(path) as beside:
        return writers[path.suffix](beside, rows)


def write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    """Writes any rows to a .jsonl file, as `write_values` does."""
    if path.suffix != ".jsonl":
        raise UsageError(f"--out {path}: write to a file that ends in .jsonl")
    with replacing(path) as beside:
        return _write_jsonl(beside, rows)


def check_place(path: Path) -> None:
    """Raises CuratorError where no file can be: asked before the work whose result goes there."""
    if not path.parent.is_dir():
        raise CuratorError(f"{path} cannot be written: there is no directory {path.parent}; make it first")
    if path.is_dir():
        raise CuratorError(f"{path} cannot be written: it is a directory; name a file")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A file beside `path` to write to. Complete and on disk it takes the place of `path`; after a failure it is gone.

    Raises CuratorError as `check_place` does, and for what the system refuses.
    """
    check_place(path)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        yield beside
        with beside.open("rb+") as file:
            os.fsync(file.fileno())
        os.replace(beside, path)
    except OSError as error:
        raise CuratorError(f"{path} cannot be written: {error.strerror or error}") from error
    finally:
        beside.unlink(missing_ok=True)


def _write_jsonl(path: Path, rows: Iterable[dict[str, Any]]) -> int:
    count = 0
    with path.open("w", encoding="utf-8") as file:
        for count, row in enumerate(rows, start=1):  # noqa: B007 (the count is the result)
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
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
