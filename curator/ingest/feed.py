"""What the sources still hold to be read: where each reading begins, and how far it has come."""

import hashlib
import json
from collections import deque
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass, field

from curator.errors import NotFoundError, UsageError
from curator.ingest.report import IngestReport
from curator.sources import Source, is_unchanged, read_rows, seen, to_samples
from curator.types import BadRow, Bookmark, Fields, Mark, Row, Sample

__all__ = ["Ahead", "Feed", "reading_of", "survey"]

_START = Mark()
_VERSION = 1  # of the readers: raised when they make other rows of the same bytes


@dataclass(frozen=True)
class Ahead:
    """A source and where to begin in it; `is_known` when everything in it was read and nothing has changed."""

    source: Source
    start: Mark = _START
    is_known: bool = False
    is_restamped: bool = False  # known by its hash: the next ingest is to know it by its stamp

    def bookmark(self) -> Bookmark:
        """The beginning, in the version that is there now."""
        _, stamp, size = seen(self.source)
        return Bookmark(self.start, stamp, size)


def reading_of(fields: Fields, on_long: str) -> str:
    """A hash of what decides which sample a row becomes, apart from the space."""
    thing = json.dumps({"version": _VERSION, "fields": asdict(fields), "on_long": on_long}, sort_keys=True)
    return hashlib.blake2b(thing.encode(), digest_size=16).hexdigest()


def survey(sources: Sequence[Source], known: dict[str, Bookmark]) -> list[Ahead]:
    """Where to begin in each source. Texts are read on after the known part, once its hash was found the same."""
    ahead = []
    for source in sources:
        bookmark = known.get(source.location)
        try:
            ahead.append(Ahead(source) if bookmark is None else _begin(source, bookmark))
        except (UsageError, NotFoundError):
            ahead.append(Ahead(source))  # told when it is read
    return ahead


def _begin(source: Source, bookmark: Bookmark) -> Ahead:
    is_same = bookmark.stamp is not None and bookmark.stamp == seen(source).stamp
    if is_unchanged(source, bookmark):
        return Ahead(source, bookmark.mark, is_known=True, is_restamped=not is_same)
    return Ahead(source, bookmark.mark if source.format.is_text or is_same else _START)


@dataclass
class Feed:
    """Samples and bad rows of all sources in order, numbered from 0 over all of them, and bookmarks between them.

    A source that cannot be read to its end is told in `broken`, and the others go on.
    """

    ahead: Sequence[Ahead]
    fields: Fields
    report: IngestReport
    growing: AbstractSet[str] = frozenset()  # sources whose last line may be half written
    broken: dict[str, UsageError | NotFoundError] = field(default_factory=dict)
    unread: dict[str, int] = field(default_factory=dict)  # source: the row that its reading began at
    _place: int = 0
    _reached: deque[tuple[int, str, Bookmark]] = field(default_factory=deque)

    def items(self) -> Iterator[Sample | BadRow]:
        """What is to be read."""
        for ahead in self.ahead:
            source = ahead.source
            try:
                if ahead.is_known:
                    self._pass_over(ahead)
                    continue
                for row in self._rows(ahead):
                    found = to_samples(row, self.fields) if isinstance(row, Row) else row
                    for item in [found] if isinstance(found, BadRow) else found:
                        self._place += 1
                        yield item
            except (UsageError, NotFoundError) as error:
                self.broken[source.location] = error

    def reached(self, place: int) -> dict[str, Bookmark]:
        """The newest bookmark of each source that lies before the item of this number; told once."""
        found = {}
        while self._reached and self._reached[0][0] <= place:
            _, location, bookmark = self._reached.popleft()
            found[location] = bookmark
        return found

    def _pass_over(self, ahead: Ahead) -> None:
        self._begin(ahead.source, ahead.start)
        self.report.unread_sources += 1
        if ahead.is_restamped:
            self._note(ahead.source, ahead.bookmark())

    def _begin(self, source: Source, start: Mark) -> None:
        self.unread[source.location] = start.row
        self.report.unread += start.row

    def _note(self, source: Source, bookmark: Bookmark) -> None:
        self._reached.append((self._place, source.location, bookmark))

    def _rows(self, ahead: Ahead) -> Iterator[Row | BadRow]:
        """The rows from where the reading begins. A file that changed meanwhile is not taken for read to its end."""
        source = ahead.source
        version, stamp, size = seen(source)

        def reached(mark: Mark) -> None:
            if source.location not in self.unread:
                self._begin(source, mark)
                return
            is_moving = mark.whole is not None and seen(source).version != version
            if is_moving:
                mark = Mark(mark.row, mark.offset, mark.digest)
            self._note(source, Bookmark(mark, None if is_moving else stamp, size))

        return read_rows(
            source, self.fields.raw, start=ahead.start, reached=reached, is_growing=source.location in self.growing
        )  # fmt: skip
