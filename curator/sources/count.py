"""How many rows lie ahead: for progress and ETA only."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from curator.errors import CuratorError
from curator.sources.paths import data_format
from curator.sources.streams import open_stream

__all__ = ["count_rows"]

_BLOCK = 1 << 20
_MAX_BYTES = 8 << 30  # beyond, counting would take longer than it is worth


def count_rows(paths: Sequence[Path]) -> int | None:
    """About the number of rows in all files (lines of text formats); None where that cannot be told cheaply."""
    if sum(path.stat().st_size for path in paths) > _MAX_BYTES:
        return None
    try:
        return sum(_count(path) for path in paths)
    except (CuratorError, pa.ArrowException, OSError):
        return None  # a damaged file is reported when its rows are read


def _count(path: Path) -> int:
    kind = data_format(path)
    assert kind is not None, "resolve() gives readable files"
    if kind.name == "parquet":
        return int(pq.read_metadata(path).num_rows)
    lines, last = 0, b"\n"
    with open_stream(path, kind.compression) as stream:
        while block := stream.read(_BLOCK):
            lines, last = lines + block.count(b"\n"), block[-1:]
    has_header = kind.name == "csv"
    return max(0, lines + (last != b"\n") - has_header)
