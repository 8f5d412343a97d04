"""Files on any file system that fsspec opens: s3://, gs://, az://, hf://, memory:// ... with the user's own drivers."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

import fsspec

from curator.errors import CuratorError, NotFoundError, UsageError
from curator.sources.download import Download
from curator.sources.formats import SUFFIXES, data_format
from curator.sources.hub import dataset_files
from curator.sources.source import Source, SourceOptions

__all__ = ["is_url", "remote_sources"]

_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_HUB_DATASET = re.compile(r"datasets/([^/]+/)?[^/]+/?$")  # and no file in it
# What file systems call the version of a file, most telling first.
_VERSIONS = ("blob_id", "ETag", "etag", "md5Hash", "generation", "versionId", "mtime", "LastModified", "last_modified",
             "updated", "created")  # fmt: skip


@dataclass(frozen=True)
class RemoteFile:
    """A file of a file system."""

    filesystem: Any  # fsspec.AbstractFileSystem
    path: str

    def open(self) -> IO[bytes]:
        """The bytes, fetched in blocks as they are read."""
        opened: IO[bytes] = self.filesystem.open(self.path, "rb")
        return opened

    def size(self) -> int | None:
        """Bytes, as the file system tells."""
        size = self._info().get("size")
        return None if size is None else int(size)

    def version(self) -> str | None:
        """Size, and what the file system says of the content or of its last change; None where it says nothing."""
        info = self._info()
        telling = [f"{name}={info[name]}" for name in _VERSIONS if info.get(name) is not None]
        return f"{info.get('size')}:{telling[0]}" if telling else None

    def is_settled(self) -> bool:
        """Object stores replace whole files."""
        return True

    def _info(self) -> dict[str, Any]:
        with _driver_errors(self.path):
            self.filesystem.invalidate_cache()
            found: dict[str, Any] = self.filesystem.info(self.path)
            return found


def is_url(text: str) -> bool:
    """Whether a path is a URL."""
    return _URL.match(text) is not None


def remote_sources(url: str, options: SourceOptions) -> list[Source]:
    """The data files behind a URL: a file, a glob, a directory, or a dataset of the hub.

    Raises UsageError for http(s) that was not allowed, a driver that is missing and a place that cannot be reached;
    NotFoundError where nothing is there.
    """
    scheme = urlsplit(url).scheme.lower()
    if "::" in url:
        raise UsageError(f"{url}: chained URLs are not read; fetch or unpack the file first")
    if scheme in ("http", "https"):
        return [_over_http(url, options)]
    with _driver_errors(url):
        filesystem, path = fsspec.core.url_to_fs(url)
        if scheme == "hf" and _HUB_DATASET.match(path):
            paths = dataset_files(filesystem, path, options)
        elif re.search(r"[*?\[]", path):
            paths = sorted(filesystem.glob(path))
        elif filesystem.isdir(path):
            paths = sorted(filesystem.find(path))
        elif filesystem.exists(path):
            paths = [path]
        else:
            raise NotFoundError(f"{url} does not exist: check the address, and that you may read it")
        readable = [path for path in paths if data_format(PurePosixPath(path)) is not None]
    if not readable:
        error = UsageError if paths else NotFoundError
        raise error(f"{url} holds no data files: expected at least one of {SUFFIXES}")
    return [_source(filesystem, path) for path in readable]


def _source(filesystem: Any, path: str) -> Source:
    kind = data_format(PurePosixPath(path))
    assert kind is not None, "only readable ones are asked for"
    return Source(filesystem.unstrip_protocol(path), kind, RemoteFile(filesystem, path))


def _over_http(url: str, options: SourceOptions) -> Source:
    if not options.allow_http:
        raise UsageError(f"{url}: data are read over http only with --allow-http")
    kind = data_format(PurePosixPath(urlsplit(url).path))
    if kind is None:
        raise UsageError(f"{url} has a suffix that is not read: expected one of {SUFFIXES}")
    return Source(url, kind, Download(url))


@contextmanager
def _driver_errors(url: str) -> Iterator[None]:
    """Whatever a driver raises becomes one line: each has errors of its own libraries."""
    try:
        yield
    except CuratorError:
        raise
    except ImportError as error:
        raise UsageError(f"{url} needs a driver that is not installed: {error}") from error
    except FileNotFoundError as error:
        raise NotFoundError(f"{url} does not exist: check the address, and that you may read it") from error
    except Exception as error:
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(f"{url} cannot be reached: {reason}") from error
