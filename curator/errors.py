"""Every error the package raises on purpose.

    CuratorError                 exit code 1
    ├── UsageError               2   the caller asked for something that cannot be (also a ValueError)
    │   ├── EmptyQueryError          a query in which nothing counts
    │   └── FilterError              a --where expression that does not parse or type-check
    ├── NotFoundError            4   no such store, file, dataset, space or sample
    ├── ModelError               1   a model or tokenizer that cannot be loaded or is not supported
    ├── IntegrityError           5   a file of the store is missing or is not what was written
    ├── LockedError              6   another process writes to the store
    └── SpaceError               6   values of two spaces would be mixed

A message says what is wrong, which thing, what was got, and what to do; the command line prints it as one line.
"""

__all__ = [
    "CuratorError",
    "EmptyQueryError",
    "FilterError",
    "IntegrityError",
    "LockedError",
    "ModelError",
    "NotFoundError",
    "SpaceError",
    "UsageError",
]


class CuratorError(Exception):
    """Base of every error raised on purpose; `exit_code` is what the command line ends with."""

    exit_code = 1


class UsageError(CuratorError, ValueError):
    """The caller asked for something that cannot be."""

    exit_code = 2


class EmptyQueryError(UsageError):
    """A query has no counted token, or no gradient: there is nothing to value against."""


class FilterError(UsageError):
    """A filter expression does not parse, names an unknown field, or compares the wrong types."""


class NotFoundError(CuratorError):
    """A store, file, dataset, space or sample does not exist."""

    exit_code = 4


class ModelError(CuratorError):
    """A model or tokenizer cannot be loaded, or its logits cannot be derived from its last hidden states."""


class IntegrityError(CuratorError):
    """A file of the store is missing, or its bytes are not the ones that were committed."""

    exit_code = 5


class LockedError(CuratorError):
    """Another process holds the store's write lock."""

    exit_code = 6


class SpaceError(CuratorError):
    """Two spaces would be mixed: values are comparable inside one space only."""

    exit_code = 6
