"""Columns get their meaning: rows become samples."""

import json
from collections.abc import Callable
from typing import Any

from curator.sources.excerpt import excerpt_of
from curator.sources.image_values import images_of, marked, placed, take_parts
from curator.sources.messages import looks_like_messages, parse_messages, parse_tools
from curator.sources.plain import plain
from curator.sources.preference import to_pair
from curator.sources.values import BadValueError, check_storable, kind_of, row_excerpt
from curator.types import INPUT_BREAK, BadRow, Fields, Image, Message, Row, Sample

__all__ = ["to_sample", "to_samples"]

_TOOLS = "tools"  # the column beside a conversation in which tools are offered


def to_samples(row: Row, fields: Fields) -> list[Sample] | BadRow:
    """The samples that `row` holds: one, or the two of a preference pair; or the bad row that says why it holds none.

    `fields` comes from settle_fields or check_fields. Text and response must hold more than whitespace; an empty prompt
    is allowed. Messages: curator/sources/messages.py; beside them the column "tools" is what they may call, where it
    holds a list of objects. A key is text or an integer; a label is text, or a number or truth value as its JSON text,
    and null or empty means no label. Every column without a role becomes metadata, and so do an instruction's
    input and the column with images, without their bytes (curator/sources/image_values.py).
    A row with text that a database cannot store (lone surrogates, NUL) is bad.
    """
    try:
        if fields.chosen is not None and fields.rejected is not None:
            prompt = None if fields.prompt is None else row.columns.get(fields.prompt)
            values = (_value(row, fields.chosen), _value(row, fields.rejected))
            if isinstance(prompt, str):
                check_storable(str(fields.prompt), prompt)
            for name, value in zip((fields.chosen, fields.rejected), values, strict=True):
                check_storable(name, value)
            contents = list(to_pair(prompt, *values, names=(fields.chosen, fields.rejected)))
        else:
            contents = [_content(row, fields)]
        column = [] if fields.image is None else images_of(_value(row, fields.image), row.source)
        return [_sample(row, fields, _with_images(row, fields, content, column)) for content in contents]
    except BadValueError as error:
        return BadRow(row.source, row.row, str(error), row_excerpt(row))


def to_sample(row: Row, fields: Fields) -> Sample | BadRow:
    """The sample of a row that holds one, or the bad row that says why it holds none."""
    found = to_samples(row, fields)
    if isinstance(found, BadRow):
        return found
    [sample] = found
    return sample


def _sample(row: Row, fields: Fields, content: dict[str, Any]) -> Sample:
    """A sample of the row: its content, and what describes it."""
    roles = {getattr(fields, role) for role in
             ("text", "prompt", "response", "messages", "chosen", "rejected", "id", "label")}  # fmt: skip
    if content.get("tools"):
        roles.add(_TOOLS)
    meta = {name: value for name, value in row.columns.items() if name not in roles}
    if fields.image in meta:
        meta[fields.image] = plain(marked(meta[fields.image]))
    for name, value in meta.items():
        check_storable(name, name)
        check_storable(name, value)
    key = None if fields.id is None else _key(row, fields.id)
    label = None if fields.label is None else _label(row, fields.label)
    if pair := content.get("pair"):
        content["pair"] = pair = (pair[0] if key is None else key, pair[1])
        key = None if key is None else f"{key}/{pair[1]}"
        names = ("curator_pair", "curator_side") if {"pair", "side"} & meta.keys() else ("pair", "side")
        meta |= dict(zip(names, pair, strict=True))
    return Sample(**content, key=key, label=label, meta=meta, source=row.source, row=row.row)


def _content(row: Row, fields: Fields) -> dict[str, Any]:
    """What the model reads of the row."""
    if fields.messages is not None:
        messages = parse_messages(fields.messages, _value(row, fields.messages))
        return {"messages": messages, "tools": _tools(row)}
    if fields.text is not None:
        return {"text": _full_text(row, fields.text)}
    assert fields.prompt is not None, "use settle_fields or check_fields"
    assert fields.response is not None, "use settle_fields or check_fields"
    if fields.shape == "chat":
        return {"messages": _turns(row, fields.prompt, fields), "tools": _tools(row)}
    prompt, response = _prompt(row, fields.prompt, fields), _full_text(row, fields.response)
    return {"text": prompt + response} if fields.shape == "text" else {"prompt": prompt, "response": response}


def _prompt(row: Row, name: str, fields: Fields) -> str:
    """The prompt, with an instruction's input where it has any."""
    prompt = _text(row, name)
    given = None if fields.input is None else row.columns.get(fields.input)
    if given is None or given == "":
        return prompt
    return prompt + INPUT_BREAK + _text(row, str(fields.input))


def _turns(row: Row, name: str, fields: Fields) -> list[Message]:
    """A prompt and a response as turns; either may be turns already."""
    turns: list[Message] = []
    sides: list[tuple[str, str, Callable[[], str]]] = [
        ("user", name, lambda: _prompt(row, name, fields)),
        ("assistant", str(fields.response), lambda: _text(row, str(fields.response))),
    ]
    for role, column, text in sides:
        if looks_like_messages(_value(row, column)):
            turns += parse_messages(column, row.columns[column])
        else:
            said = text()
            if not said.strip():
                raise BadValueError(f'empty turn: field "{column}" holds nothing but whitespace')
            turns.append({"role": role, "content": said})
    return turns


def _tools(row: Row) -> list[dict[str, Any]] | None:
    tools = parse_tools(row.columns.get(_TOOLS))
    check_storable(_TOOLS, tools)
    return tools


def _with_images(row: Row, fields: Fields, content: dict[str, Any], column: list[Image]) -> dict[str, Any]:
    """The content with its images; a conversation with a part for each of them, and without their bytes."""
    messages: list[Message] | None = content.get("messages")
    if messages is None:
        return content | {"images": tuple(column)}
    messages = placed(messages, len(column))
    images = take_parts(messages, column, row.source)
    return content | {"messages": plain(marked(messages)) if images else messages, "images": tuple(images)}


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
