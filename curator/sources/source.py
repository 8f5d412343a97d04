"""A source: a file of rows, wherever it lies, under the name by which the store knows it."""

import os
import time
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import IO, Any, Protocol

from curator.errors import UsageError
from curator.sources.formats import SUFFIXES, DataFormat, data_format

__all__ = ["File", "LocalFile", "Source", "SourceOptions", "local_source"]

_SETTLED_SECONDS = 2.0  # a younger time of change may not tell two versions of a file apart


class File(Protocol):
    """Bytes somewhere, and what tells one version of them from another without reading them."""

    def open(self) -> IO[bytes]:
        """The bytes, from the start; seekable."""
        ...

    def size(self) -> int | None:
        """Their number, where that can be told."""
        ...

    def version(self) -> str | None:
        """A text that changes when the bytes do; None where only reading them would tell."""
        ...

    def is_settled(self) -> bool:
        """Whether `version` can be trusted to change with the next write."""
        ...


@dataclass(frozen=True)
class LocalFile:
    """A file on this machine. `keeps` is held as long as the file is needed (a temporary file that ends with it)."""

    path: Path
    keeps: Any = field(default=None, compare=False, repr=False)

    def open(self) -> IO[bytes]:
        """The bytes, from the start."""
        return self.path.open("rb")

    def size(self) -> int:
        """Bytes."""
        return self.path.stat().st_size

    def version(self) -> str:
        """Size, time of change and inode."""
        found = self.path.stat()
        return f"{found.st_size}:{found.st_mtime_ns}:{found.st_ino}"

    def is_settled(self) -> bool:
        """Whether the last change is long enough ago for the clock of the file system."""
        return time.time() - self.path.stat().st_mtime > _SETTLED_SECONDS


@dataclass(frozen=True)
class SourceOptions:
    """What to take of data that hold several things, and what may be opened."""

    split: str | None = None  # of a saved or hub dataset; "all" for every one
    config: str | None = None  # of a hub dataset
    format: str | None = None  # of standard input: jsonl, csv or tsv
    allow_http: bool = False


@dataclass(frozen=True)
class Source:
    """A file of rows. `location` names it in the store: an absolute path, a URL, or stdin with a hash."""

    location: str
    format: DataFormat
    file: File

    def __str__(self) -> str:
        return self.location

    @property
    def name(self) -> str:
        """The last part of the location."""
        return PurePosixPath(self.location).name

    @cached_property
    def is_local(self) -> bool:
        """Whether errors of the operating system are all that opening it can raise."""
        return isinstance(self.file, LocalFile)


def local_source(path: Path) -> Source:
    """A file on this machine as a source. Raises UsageError for a suffix that is not read."""
    path = Path(os.path.abspath(path))
    kind = data_format(path)
    if kind is None:
        raise UsageError(f"{path} has a suffix that is not read: expected one of {SUFFIXES}")
    return Source(path.as_posix(), kind, LocalFile(path))
