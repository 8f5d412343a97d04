"""Bytes out of plain, gzip and zstandard files: streamed, bounded, and honest about damage."""

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import pyarrow as pa

from curator.errors import NotFoundError, UsageError
from curator.sources.paths import Compression

__all__ = ["MAX_LINE_BYTES", "damage_as_usage_error", "open_stream", "read_lines"]

MAX_LINE_BYTES = 64 << 20  # above this a line is not one training sample, but a file without line ends
_BUFFER_BYTES = 1 << 20
_UTF8_BOM = b"\xef\xbb\xbf"


@contextmanager
def open_stream(path: Path, compression: Compression) -> Iterator[IO[bytes]]:
    """The decompressed bytes of `path`; what goes wrong while they are read comes out as UsageError."""
    with damage_as_usage_error(path), path.open("rb") as raw:
        if compression == ".gz":
            with gzip.open(raw, "rb") as stream:
                yield stream  # type: ignore[misc] # GzipFile reads bytes; typeshed does not call it IO[bytes]
        elif compression == ".zst":
            # Not zstandard.stream_reader: it ends a truncated file as if that were its end. Arrow's stream raises.
            with pa.CompressedInputStream(raw, "zstd") as native, io.BufferedReader(native, _BUFFER_BYTES) as buffered:
                yield buffered
        else:
            yield raw


@contextmanager
def damage_as_usage_error(path: Path) -> Iterator[None]:
    """Errors of the operating system and of the decompressors become one line that names the file."""
    try:
        yield
    except FileNotFoundError as error:
        raise NotFoundError(f"{path} does not exist: check the path") from error
    except PermissionError as error:
        raise UsageError(f"{path} cannot be opened: permission denied") from error
    except (EOFError, OSError, zlib.error, pa.ArrowException) as error:
        raise UsageError(
            f"{path} is damaged or incomplete and could be read only up to that point: write or fetch it again "
            f"({_one_line(error)})"
        ) from error


def read_lines(stream: IO[bytes]) -> Iterator[bytes]:
    r"""Lines without their \n and without a byte order mark at the start.

    A line longer than MAX_LINE_BYTES comes cut to its first MAX_LINE_BYTES + 1 bytes, so that memory stays bounded;
    the caller sees it by its length.
    """
    line = stream.readline(MAX_LINE_BYTES + 1)
    if line.startswith(_UTF8_BOM):
        line = line[len(_UTF8_BOM) :] or stream.readline(MAX_LINE_BYTES + 1)
    while line:
        if line.endswith(b"\n"):
            yield line[:-1]
        else:
            yield line
            if len(line) > MAX_LINE_BYTES:
                _skip_line(stream)
        line = stream.readline(MAX_LINE_BYTES + 1)


def _skip_line(stream: IO[bytes]) -> None:
    rest = b"."
    while rest and not rest.endswith(b"\n"):
        rest = stream.readline(_BUFFER_BYTES)


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:200] or type(error).__name__
