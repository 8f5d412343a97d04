"""Columns get their meaning: rows become samples."""

import json
from typing import Any

from curator.errors import UsageError
from curator.sources.excerpt import excerpt_of
from curator.sources.plain import is_dropped_bytes
from curator.types import BadRow, Fields, Row, Sample

__all__ = ["MAX_META_DEPTH", "check_fields", "to_sample"]

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


class _BadValueError(ValueError):
    """A value that keeps the row from becoming a sample; the message is the reason in the quarantine."""


def check_fields(fields: Fields) -> Fields:
    """`fields` with text="text" where nothing was chosen.

    Raises UsageError unless it is either the text alone or both prompt and response.
    """
    has_text, has_prompt, has_response = (name is not None for name in (fields.text, fields.prompt, fields.response))
    if not (has_text or has_prompt or has_response):
        return Fields(text="text", id=fields.id, label=fields.label)
    if has_text and (has_prompt or has_response):
        raise UsageError(
            "--text-field excludes --prompt-field and --response-field: give the text, or both of the others"
        )
    if has_prompt != has_response:
        given, missing = ("prompt", "response") if has_prompt else ("response", "prompt")
        raise UsageError(f"--{given}-field needs --{missing}-field beside it, or use --text-field alone")
    return fields


def to_sample(row: Row, fields: Fields) -> Sample | BadRow:
    """The sample that `row` holds, or the bad row that says why it holds none. `fields` comes from check_fields.

    Text and response must hold more than whitespace; an empty prompt is allowed. A key is text or an integer; a label
    is text, or a number or truth value as its JSON text, and null or empty means no label. Every column without a
    role becomes metadata. A row with text that a database cannot store (lone surrogates, NUL) is bad.
    """
    assert fields.text is not None or (fields.prompt is not None and fields.response is not None), "use check_fields"
    roles = {fields.text, fields.prompt, fields.response, fields.id, fields.label}
    try:
        meta = {name: value for name, value in row.columns.items() if name not in roles}
        for name, value in meta.items():
            _check_storable(name, name)
            _check_storable(name, value)
        return Sample(
            text=None if fields.text is None else _full_text(row, fields.text),
            prompt=None if fields.prompt is None else _text(row, fields.prompt),
            response=None if fields.response is None else _full_text(row, fields.response),
            key=None if fields.id is None else _key(row, fields.id),
            label=None if fields.label is None else _label(row, fields.label),
            meta=meta,
            source=row.source,
            row=row.row,
        )
    except _BadValueError as error:
        return BadRow(row.source, row.row, str(error), _excerpt(row))


def _excerpt(row: Row) -> str:
    try:
        return excerpt_of(json.dumps(row.columns, ensure_ascii=False, default=str))
    except RecursionError:  # what json could just read at one depth of calls, it may not write at another
        return excerpt_of(", ".join(row.columns))


def _value(row: Row, name: str) -> Any:
    if name not in row.columns:
        names = ", ".join(f'"{excerpt_of(column)}"' for column in list(row.columns)[:10])
        raise _BadValueError(f'no field "{name}": the row has {names or "no fields"}')
    return row.columns[name]


def _text(row: Row, name: str) -> str:
    value = _value(row, name)
    if not isinstance(value, str):
        raise _BadValueError(f'field "{name}" is not text: it is {_kind(value)}')
    _check_storable(name, value)
    return value


def _full_text(row: Row, name: str) -> str:
    value = _text(row, name)
    if not value.strip():
        raise _BadValueError(f'empty text: field "{name}" holds nothing but whitespace')
    return value


def _key(row: Row, name: str) -> str:
    value = _value(row, name)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise _BadValueError(f'field "{name}" is not an id: it is {_kind(value)}, and an id is text or an integer')
    key = str(value)
    if not key.strip():
        raise _BadValueError(f'empty id: field "{name}" holds nothing but whitespace')
    _check_storable(name, key)
    return key


def _label(row: Row, name: str) -> str | None:
    value = row.columns.get(name)
    # CSV has no null: an empty cell is how it says that there is no label.
    if value is None or value == "":
        return None
    if isinstance(value, list | dict):
        raise _BadValueError(f'field "{name}" is not a label: it is {_kind(value)}, and a label is text or a number')
    label = value if isinstance(value, str) else json.dumps(value)
    _check_storable(name, label)
    return label


def _kind(value: Any) -> str:
    return "binary data" if is_dropped_bytes(value) else _KINDS.get(type(value), "text")


def _check_storable(name: str, value: Any, depth: int = 0) -> None:
    """Refuse, rather than alter, what a database cannot store: PostgreSQL has no NUL, UTF-8 no lone surrogate."""
    if depth > MAX_META_DEPTH:
        raise _BadValueError(f'field "{excerpt_of(name)}" is nested more than {MAX_META_DEPTH} levels deep')
    if isinstance(value, str):
        if "\0" in value:
            raise _BadValueError(f'field "{excerpt_of(name)}" holds a NUL character')
        if not value.isascii() and not _is_unicode(value):
            raise _BadValueError(f'field "{excerpt_of(name)}": text is not valid Unicode (a lone surrogate)')
    elif isinstance(value, dict):
        for key, item in value.items():
            _check_storable(name, key, depth + 1)
            _check_storable(name, item, depth + 1)
    elif isinstance(value, list):
        for item in value:
            _check_storable(name, item, depth + 1)


def _is_unicode(value: str) -> bool:
    try:
        value.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True
