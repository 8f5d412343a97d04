"""What a value of a row must be to be stored, and what it is called when it is something else."""

import json
from typing import Any

from curator.sources.excerpt import excerpt_of
from curator.sources.plain import is_dropped_bytes
from curator.types import Row

__all__ = ["MAX_META_DEPTH", "BadValueError", "check_storable", "kind_of", "row_excerpt"]

# SQLite reads JSON up to 1,000 levels, and one deeper row would make every query over the metadata fail.
MAX_META_DEPTH = 100

_KINDS = {
    type(None): "null",
    bool: "true or false",
    int: "a number",
    float: "a number",
    list: "a list",
    dict: "an object",
}


class BadValueError(ValueError):
    """A value that keeps the row from becoming a sample; the message is the reason in the quarantine."""


def kind_of(value: Any) -> str:
    """The value's kind, in words."""
    return "binary data" if is_dropped_bytes(value) else _KINDS.get(type(value), "text")


def row_excerpt(row: Row) -> str:
    """The beginning of a row, for the quarantine."""
    try:
        return excerpt_of(json.dumps(row.columns, ensure_ascii=False, default=_shown))
    except RecursionError:  # what json could just read at one depth of calls, it may not write at another
        return excerpt_of(", ".join(row.columns))


def _shown(value: Any) -> str:
    return f"<{len(value):,} bytes>" if isinstance(value, bytes) else str(value)


def check_storable(name: str, value: Any, depth: int = 0) -> None:
    """Refuse, rather than alter, what a database cannot store: PostgreSQL has no NUL, UTF-8 no lone surrogate."""
    if depth > MAX_META_DEPTH:
        raise BadValueError(f'field "{excerpt_of(name)}" is nested more than {MAX_META_DEPTH} levels deep')
    if isinstance(value, str):
        if "\0" in value:
            raise BadValueError(f'field "{excerpt_of(name)}" holds a NUL character')
        if not value.isascii() and not _is_unicode(value):
            raise BadValueError(f'field "{excerpt_of(name)}": text is not valid Unicode (a lone surrogate)')
    elif isinstance(value, dict):
        for key, item in value.items():
            check_storable(name, key, depth + 1)
            check_storable(name, item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            check_storable(name, item, depth + 1)


def _is_unicode(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
