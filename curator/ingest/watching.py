"""What the rounds of a watch hand on to each other."""

from collections.abc import Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field

from curator.errors import NotFoundError, UsageError
from curator.sources import Source, seen
from curator.space import LoadedModel

__all__ = ["Watching"]


@dataclass
class Watching:
    """The model in memory, which files are still being written, and which are broken.

    An ingest that is no round of a watch has one of its own, in which nothing is known.
    """

    is_round: bool = False
    loaded: LoadedModel | None = None
    is_usable: bool = False  # whether rows were found in the columns that were chosen
    growing: AbstractSet[str] = frozenset()  # changed since the last round: their last line may be half written
    _versions: dict[str, str | None] = field(default_factory=dict)
    _broken: dict[str, str | None] = field(default_factory=dict)  # in this version

    def due(self, sources: Sequence[Source]) -> list[Source]:
        """The sources to look at in the round that begins: without empty ones, and without what is still broken."""
        found = {source.location: _version_and_size(source) for source in sources}
        versions = {location: version for location, (version, _) in found.items()}
        self.growing = {name for name, version in versions.items() if self._versions.get(name) != version}
        self._versions = versions
        return [
            source
            for source in sources
            if found[source.location][1] != 0
            and not (source.location in self._broken and self._broken[source.location] == versions[source.location])
        ]

    def ended(self, due: Sequence[Source], broken: AbstractSet[str]) -> None:
        """Remembers which of the sources looked at were broken, until they change."""
        for source in due:
            self._broken.pop(source.location, None)
        self._broken |= {location: self._versions.get(location) for location in broken}


def _version_and_size(source: Source) -> tuple[str | None, int | None]:
    try:
        version, _, size = seen(source)
    except (UsageError, NotFoundError):
        return None, None  # told when it is read
    return version, size
