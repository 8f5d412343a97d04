"""How many rows lie ahead: for progress and ETA only."""

from collections.abc import Iterable

import pyarrow as pa
import pyarrow.parquet as pq

from curator.errors import CuratorError
from curator.sources.source import Source
from curator.sources.streams import open_stream
from curator.types import Mark

__all__ = ["count_rows"]

_BLOCK = 1 << 20
_MAX_BYTES = 8 << 30  # beyond, counting would take longer than it is worth


def count_rows(ahead: Iterable[tuple[Source, Mark]]) -> int | None:
    """About the number of rows from each mark on (lines of texts); None where that cannot be told cheaply."""
    ahead = list(ahead)
    try:
        sizes = [(source.file.size() or 0) - mark.offset for source, mark in ahead if source.is_local]
        if len(sizes) < len(ahead) or sum(sizes) > _MAX_BYTES:
            return None
        return sum(_count(source, mark) for source, mark in ahead)
    except (CuratorError, pa.ArrowException, OSError):
        return None  # a damaged file is reported when its rows are read


def _count(source: Source, mark: Mark) -> int:
    if source.format.name == "parquet":
        with source.file.open() as raw:
            return int(pq.read_metadata(raw).num_rows) - mark.row
    if source.format.name == "arrow":
        raise CuratorError("an Arrow stream does not say how many rows it has")
    lines, last = 0, b"\n"
    with open_stream(source) as stream:
        stream.seek(mark.offset)
        while block := stream.read(_BLOCK):
            lines, last = lines + block.count(b"\n"), block[-1:]
    has_header = source.format.name == "csv" and not mark.offset
    return max(0, lines + (last != b"\n") - has_header)
