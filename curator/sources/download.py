"""Files over http(s), where the caller has allowed it: fetched whole into a temporary file when they are first read.

Redirects are followed to https only, or from http to http; never from https to http, or to files of this machine.
"""

import tempfile
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from http.client import HTTPException, HTTPMessage
from typing import IO, Any
from urllib.parse import urlsplit

from curator.errors import UsageError

__all__ = ["Download"]

MAX_BYTES = 16 << 30  # larger data belong into a bucket, where parts of a file can be read
_TIMEOUT_SECONDS = 60
_AGENT = {"User-Agent": "forvalue-curator"}


class _Redirects(urllib.request.HTTPRedirectHandler):
    max_redirections = 5

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> urllib.request.Request | None:  # fmt: skip
        """The next request. Raises UsageError for a redirect that leaves https."""
        old, new = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if new != "https" and not old == new == "http":
            raise UsageError(f"{req.full_url} redirects to {newurl[:200]}: from {old} to {new} is not followed")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


@dataclass
class Download:
    """A file behind a URL."""

    url: str
    _kept: Any = field(default=None, repr=False)
    _version: str | None = None

    def open(self) -> IO[bytes]:
        """The bytes, fetched at the first call."""
        if self._kept is None:
            self._kept = self._fetch()
        return open(self._kept.name, "rb")

    def size(self) -> int | None:
        """Unknown before it is fetched."""
        return None

    def version(self) -> str | None:
        """The validators that the server gives; None where it gives none."""
        if self._version is None:
            with self._request("HEAD") as answer:
                found = [answer.headers.get(name) for name in ("ETag", "Last-Modified", "Content-Length")]
            self._version = ":".join(part or "" for part in found) if any(found[:2]) else None
        return self._version

    def is_settled(self) -> bool:
        """Validators change with the content."""
        return True

    def _request(self, method: str) -> Any:
        opener = urllib.request.build_opener(_Redirects())
        try:
            request = urllib.request.Request(self.url, method=method, headers=_AGENT)
            return opener.open(request, timeout=_TIMEOUT_SECONDS)
        except urllib.error.HTTPError as error:
            raise UsageError(f"{self.url} cannot be fetched: the server answers {error.code} {error.reason}") from error
        except (urllib.error.URLError, HTTPException, TimeoutError, ValueError) as error:
            raise UsageError(f"{self.url} cannot be reached: {getattr(error, 'reason', error)}") from error

    def _fetch(self) -> Any:
        kept = tempfile.NamedTemporaryFile(prefix="curator-http-")  # noqa: SIM115 (it ends with this object)
        with self._request("GET") as answer:
            length = answer.headers.get("Content-Length")
            while block := answer.read(1 << 20):
                kept.write(block)
                if kept.tell() > MAX_BYTES:
                    raise UsageError(f"{self.url} is larger than {MAX_BYTES >> 30} GB: fetch it to a file first")
        if length is not None and int(length) != kept.tell():
            raise UsageError(f"{self.url} broke off after {kept.tell():,} of {int(length):,} bytes: try again")
        kept.flush()
        return kept
