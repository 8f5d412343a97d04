"""Standard input as a source: kept in a temporary file, since rows are read more than once."""

import shutil
import sys
import tempfile
from hashlib import blake2b
from pathlib import Path

from curator.errors import UsageError
from curator.sources.formats import STREAMED, DataFormat, data_format
from curator.sources.source import LocalFile, Source

__all__ = ["stdin_source"]


def stdin_source(name: str | None) -> Source:
    """What standard input holds, in the format that `name` says.

    It is called by the hash of its content: the same content again is the same source, of which rows are known, and
    nothing else can tell where an interrupted reading stopped. Raises UsageError without a format.
    """
    if name not in STREAMED:
        raise UsageError(f"standard input (-) needs --format, one of {', '.join(STREAMED)}")
    if sys.stdin is None or sys.stdin.isatty():
        raise UsageError("standard input is a terminal: pipe data into it, or name files")
    # The file ends with the source that holds it.
    kept = tempfile.NamedTemporaryFile(prefix="curator-stdin-", suffix=STREAMED[name])  # noqa: SIM115
    shutil.copyfileobj(sys.stdin.buffer, kept, 1 << 20)
    kept.flush()
    kept.seek(0)
    digest = blake2b(digest_size=16)
    while block := kept.read(1 << 20):
        digest.update(block)
    kind = data_format(Path(kept.name))
    assert isinstance(kind, DataFormat)
    return Source(f"stdin:{digest.hexdigest()}", kind, LocalFile(Path(kept.name), kept))
