"""Data files for the tests of this folder."""

import csv
import gzip
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from curator.sources import read_rows
from curator.types import BadRow, Row

__all__ = ["columns_of", "read", "write_bytes", "write_csv", "write_jsonl", "write_parquet"]


def write_bytes(path: Path, content: bytes) -> Path:
    """Write `content`, compressed as the suffix says."""
    if path.suffix == ".gz":
        content = gzip.compress(content, compresslevel=1)
    elif path.suffix == ".zst":
        content = zstandard.compress(content)
    path.write_bytes(content)
    return path


def write_jsonl(path: Path, rows: Sequence[Any], *, ensure_ascii: bool = True) -> Path:
    lines = [json.dumps(row, ensure_ascii=ensure_ascii) + "\n" for row in rows]
    return write_bytes(path, "".join(lines).encode())


def write_csv(path: Path, rows: Sequence[dict[str, str]], delimiter: str = ",") -> Path:
    text = io.StringIO(newline="")
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return write_bytes(path, text.getvalue().encode())


def write_parquet(path: Path, table: pa.Table | Sequence[dict[str, Any]], row_group_size: int = 100) -> Path:
    pq.write_table(table if isinstance(table, pa.Table) else pa.Table.from_pylist(table), path, row_group_size)
    return path


def read(path: Path) -> list[Row | BadRow]:
    return list(read_rows(path))


def columns_of(path: Path) -> list[dict[str, Any]]:
    """The columns of every row; a bad row fails the test."""
    columns = []
    for row in read(path):
        assert isinstance(row, Row), row
        columns.append(row.columns)
    return columns
