"""Column names, which must tell the columns apart."""

from collections.abc import Sequence

from curator.errors import UsageError

__all__ = ["check_header"]


def check_header(location: str, names: Sequence[str]) -> None:
    """Raises UsageError unless every column has a name of its own."""
    if not names:
        raise UsageError(f"{location} has no columns: the first line must name them")
    seen: set[str] = set()
    for position, name in enumerate(names, start=1):
        if not name.strip():
            raise UsageError(f"{location} has no name for column {position}: give every column a name")
        if name in seen:
            raise UsageError(f'{location} names the column "{name}" twice: rename one of them')
        seen.add(name)
