"""Columns get their meaning: rows become samples."""

import json
from dataclasses import replace
from typing import Any

from curator.errors import UsageError
from curator.sources.excerpt import excerpt_of
from curator.sources.image_values import images_of, marked, placed, take_parts
from curator.sources.messages import parse_messages, parse_tools
from curator.sources.plain import plain
from curator.sources.values import BadValueError, check_storable, kind_of, row_excerpt
from curator.types import BadRow, Fields, Image, Message, Row, Sample

__all__ = ["check_fields", "to_sample"]

_TOOLS = "tools"  # the column beside a conversation in which tools are offered


def check_fields(fields: Fields) -> Fields:
    """`fields` with text="text" where nothing was chosen.

    Raises UsageError unless it is the text alone, the messages alone, or both prompt and response.
    """
    if fields.messages is not None:
        if fields.text is not None or fields.prompt is not None or fields.response is not None:
            raise UsageError("--messages-field excludes --text-field, --prompt-field and --response-field")
        return fields
    has_text, has_prompt, has_response = (name is not None for name in (fields.text, fields.prompt, fields.response))
    if not (has_text or has_prompt or has_response):
        return replace(fields, text="text")
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

    Text and response must hold more than whitespace; an empty prompt is allowed. Messages: curator/sources/messages.py;
    beside them the column "tools" is what they may call, where it holds a list of objects. A key is text or an integer;
    a label is text, or a number or truth value as its JSON text, and null or empty means no label. Every column without
    a role becomes metadata, and so does the column with images, without their bytes (curator/sources/image_values.py).
    A row with text that a database cannot store (lone surrogates, NUL) is bad.
    """
    roles = {fields.text, fields.prompt, fields.response, fields.messages, fields.id, fields.label}
    try:
        messages = None if fields.messages is None else parse_messages(fields.messages, _value(row, fields.messages))
        tools = None if messages is None else parse_tools(row.columns.get(_TOOLS))
        if tools is not None:
            roles.add(_TOOLS)
            check_storable(_TOOLS, tools)
        messages, images = _images(row, fields, messages)
        meta = {name: value for name, value in row.columns.items() if name not in roles}
        if fields.image in meta:
            meta[fields.image] = plain(marked(meta[fields.image]))
        for name, value in meta.items():
            check_storable(name, name)
            check_storable(name, value)
        return Sample(
            text=None if fields.text is None else _full_text(row, fields.text),
            prompt=None if fields.prompt is None else _text(row, fields.prompt),
            response=None if fields.response is None else _full_text(row, fields.response),
            messages=messages,
            tools=tools,
            key=None if fields.id is None else _key(row, fields.id),
            label=None if fields.label is None else _label(row, fields.label),
            meta=meta,
            source=row.source,
            row=row.row,
            images=images,
        )
    except BadValueError as error:
        return BadRow(row.source, row.row, str(error), row_excerpt(row))


def _images(
    row: Row, fields: Fields, messages: list[Message] | None
) -> tuple[list[Message] | None, tuple[Image, ...]]:
    """The row's images, and its conversation with a part for each of them and without their bytes."""
    column = [] if fields.image is None else images_of(_value(row, fields.image), row.source)
    if messages is None:
        return None, tuple(column)
    messages = placed(messages, len(column))
    images = take_parts(messages, column, row.source)
    return (plain(marked(messages)) if images else messages), tuple(images)


def _value(row: Row, name: str) -> Any:
    if name not in row.columns:
        names = ", ".join(f'"{excerpt_of(column)}"' for column in list(row.columns)[:10])
        raise BadValueError(f'no field "{name}": the row has {names or "no fields"}')
    return row.columns[name]


def _text(row: Row, name: str) -> str:
    value = _value(row, name)
    if not isinstance(value, str):
        raise BadValueError(f'field "{name}" is not text: it is {kind_of(value)}')
    check_storable(name, value)
    return value


def _full_text(row: Row, name: str) -> str:
    value = _text(row, name)
    if not value.strip():
        raise BadValueError(f'empty text: field "{name}" holds nothing but whitespace')
    return value


def _key(row: Row, name: str) -> str:
    value = _value(row, name)
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise BadValueError(f'field "{name}" is not an id: it is {kind_of(value)}, and an id is text or an integer')
    key = str(value)
    if not key.strip():
        raise BadValueError(f'empty id: field "{name}" holds nothing but whitespace')
    check_storable(name, key)
    return key


def _label(row: Row, name: str) -> str | None:
    value = row.columns.get(name)
    # CSV has no null: an empty cell is how it says that there is no label.
    if value is None or value == "":
        return None
    if isinstance(value, list | dict):
        raise BadValueError(f'field "{name}" is not a label: it is {kind_of(value)}, and a label is text or a number')
    label = value if isinstance(value, str) else json.dumps(value)
    check_storable(name, label)
    return label
