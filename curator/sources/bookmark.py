"""How far a source has been read, so that the next ingest reads only what is new.

A mark lies between two rows. Of a text it holds the hash of all bytes before it, so that a file that was appended to is
told from one that was rewritten. A source is read to its end once the mark has the hash of the whole.
"""

from collections.abc import Callable
from hashlib import blake2b
from typing import NamedTuple

from curator.sources.source import Source
from curator.sources.streams import damage_as_usage_error, open_stream
from curator.types import Bookmark, Mark

__all__ = ["ChangedSourceError", "Reached", "Seen", "digest_of", "is_due", "is_unchanged", "seen"]

_BLOCK = 1 << 20
_ROWS_BETWEEN, _BYTES_BETWEEN = 256, 1 << 20


Reached = Callable[[Mark], None]


class ChangedSourceError(Exception):
    """What lies before a mark is not what was read: the source must be read from its start."""


def is_due(row: int, offset: int, before: Mark) -> bool:
    """Whether a new mark is worth its hash."""
    return row - before.row >= _ROWS_BETWEEN or offset - before.offset >= _BYTES_BETWEEN


class Seen(NamedTuple):
    """A source from the outside: `stamp` is the version, or None where the same version may stand for other bytes."""

    version: str | None
    stamp: str | None
    size: int | None


def seen(source: Source) -> Seen:
    """What can be told of a source without reading it. Raises NotFoundError or UsageError."""
    with damage_as_usage_error(source):
        version = source.file.version()
        return Seen(version, version if source.file.is_settled() else None, source.file.size())


def is_unchanged(source: Source, known: Bookmark) -> bool:
    """Whether the source was read to its end and is what it was then: by its stamp, or, in doubt, by its hash."""
    if known.mark.whole is None:
        return False
    _, stamp, size = seen(source)
    if known.stamp is not None and known.stamp == stamp:
        return True
    is_other_size = None not in (size, known.size) and size != known.size
    return bool(known.mark.whole) and not is_other_size and digest_of(source) == known.mark.whole


def digest_of(source: Source) -> bytes:
    """The hash of all bytes: of a text those that are read, decompressed; of other formats those of the file."""
    digest = blake2b(digest_size=16)
    with open_stream(source) as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.digest()
