"""Which samples a change is about: a filter, or ids and keys."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

from sqlalchemy.orm import Session

from curator.errors import FilterError, UsageError
from curator.metadata.samples import Chosen, chosen, find_sample
from curator.metadata.spaces import find_space

__all__ = ["Choice"]


@dataclass(frozen=True)
class Choice:
    """Samples that match the filter `where`, or `ids`: numbers, or keys in the newest space."""

    where: str | None
    ids: Sequence[int | str] | None
    detail: dict[str, Any]  # how they were chosen, for the log of changes

    @classmethod
    def of(cls, where: str | None, ids: Sequence[int | str] | None = None) -> Self:
        """Raises UsageError unless it is one of the two, FilterError for an empty filter."""
        if where is not None and ids is not None:
            raise UsageError("which samples? A filter and ids exclude each other")
        if ids is not None:
            return cls(None, ids, {"ids": len(ids)})
        if where is None:
            raise UsageError("which samples? Give --where FILTER, an id, or a query")
        if not where.strip():
            raise FilterError("an empty filter would match every sample; to mean that, write: id > 0")
        return cls(where, None, {"where": where})

    def chosen(self, session: Session) -> Chosen:
        """The samples as the database has them now. Raises FilterError, NotFoundError for no such key."""
        if self.ids is None:
            return chosen(session, where=self.where)
        named = [item for item in self.ids if isinstance(item, str)]
        numbers = [item for item in self.ids if isinstance(item, int)]
        if named:
            space = find_space(session)
            numbers += [find_sample(session, space.id, name) for name in named]
        return chosen(session, ids=numbers)
