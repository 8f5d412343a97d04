"""Bytes out of plain, gzip and zstandard files: streamed, bounded, and honest about damage."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import blake2b
from typing import IO

import pyarrow as pa

from curator.errors import CuratorError, NotFoundError, UsageError
from curator.sources.source import Source

__all__ = ["MAX_LINE_BYTES", "Lines", "damage_as_usage_error", "open_stream"]

MAX_LINE_BYTES = 64 << 20  # above this a line is not one training sample, but a file without line ends
_BUFFER_BYTES = 1 << 20
_UTF8_BOM = b"\xef\xbb\xbf"


@contextmanager
def open_stream(source: Source) -> Iterator[IO[bytes]]:
    """The decompressed bytes of `source`; what goes wrong while they are read comes out as UsageError."""
    with damage_as_usage_error(source), source.file.open() as raw:
        if source.format.compression == ".gz":
            with gzip.open(raw, "rb") as stream:
                yield stream  # type: ignore[misc] # GzipFile reads bytes; typeshed does not call it IO[bytes]
        elif source.format.compression == ".zst":
            # Not zstandard.stream_reader: it ends a truncated file as if that were its end. Arrow's stream raises.
            with pa.CompressedInputStream(raw, "zstd") as native, io.BufferedReader(native, _BUFFER_BYTES) as buffered:
                yield buffered
        else:
            yield raw


@contextmanager
def damage_as_usage_error(source: Source) -> Iterator[None]:
    """Errors of the operating system, of decompressors and of drivers become one line that names the source."""
    try:
        yield
    except CuratorError:
        raise
    except FileNotFoundError as error:
        raise NotFoundError(f"{source} does not exist: check the path") from error
    except PermissionError as error:
        raise UsageError(f"{source} cannot be opened: permission denied") from error
    except (EOFError, zlib.error, pa.ArrowException) as error:
        raise UsageError(_damaged(source, error)) from error
    except OSError as error:
        raise UsageError(_damaged(source, error) if source.is_local else _unreachable(source, error)) from error
    except Exception as error:  # drivers of remote file systems raise errors of their own libraries
        if source.is_local:
            raise
        raise UsageError(_unreachable(source, error)) from error


def _damaged(source: Source, error: BaseException) -> str:
    return (
        f"{source} is damaged or incomplete and could be read only up to that point: write or fetch it again "
        f"({_one_line(error)})"
    )


def _unreachable(source: Source, error: BaseException) -> str:
    return f"{source} could not be read to its end ({_one_line(error)}); what is committed is safe, try again"


class Lines:
    r"""The lines of a stream, with the number and the hash of all bytes passed.

    A line longer than MAX_LINE_BYTES comes cut to its first MAX_LINE_BYTES + 1 bytes, so that memory stays bounded;
    the caller sees it by its length.
    """

    def __init__(self, stream: IO[bytes]) -> None:
        self._stream = stream
        self._digest = blake2b(digest_size=16)
        self.offset = 0
        self.num_lines = 0
        self.is_open = False  # whether the last line came without its end: it may be half written
        self._ended = (0, b"")

    def read(self) -> Iterator[bytes]:
        r"""Lines without their \n and without a byte order mark at the start."""
        readline, update = self._stream.readline, self._digest.update
        while line := readline(MAX_LINE_BYTES + 1):
            is_ended = line.endswith(b"\n")
            if not is_ended and len(line) <= MAX_LINE_BYTES:
                self._ended = self.ended()
                self.is_open = True
            update(line)
            is_first = self.offset == 0
            self.offset += len(line)
            self.num_lines += 1
            if is_first and line.startswith(_UTF8_BOM):
                line = line[len(_UTF8_BOM) :]
                if not line:
                    return
            if is_ended:
                yield line[:-1]
            else:
                if not self.is_open:
                    self._skip_line()
                yield line

    def digest(self) -> bytes:
        """The hash of all bytes passed so far."""
        return self._digest.digest()

    def ended(self) -> tuple[int, bytes]:
        """Where the last line that has its end ends, and the hash of what lies before."""
        return self._ended if self.is_open else (self.offset, self.digest())

    def skip(self, offset: int, digest: bytes) -> bool:
        """Passes all bytes before `offset`; whether they are those of the digest."""
        while self.offset < offset:
            block = self._stream.read(min(_BUFFER_BYTES, offset - self.offset))
            if not block:
                return False
            self._digest.update(block)
            self.offset += len(block)
            self.num_lines += block.count(b"\n")
        return self.offset == offset and self.digest() == digest

    def _skip_line(self) -> None:
        rest = b"."
        while rest and not rest.endswith(b"\n"):
            rest = self._stream.readline(_BUFFER_BYTES)
            self._digest.update(rest)
            self.offset += len(rest)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
