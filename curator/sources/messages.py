"""Conversations as data sets write them become one shape: {"role", "content", ...} a turn.

OpenAI:    [{"role": "user", "content": "..."}, {"role": "assistant", "content": [{"type": "text", "text": "..."}]}]
ShareGPT:  [{"from": "human", "value": "..."}, {"from": "gpt", "value": "..."}]

What else a turn holds (tool calls, reasoning, a name) stays for the template; null stands for what is not there, since
tables give every turn the columns of all turns.
"""

import json
from typing import Any

from curator.sources.excerpt import excerpt_of
from curator.sources.values import BadValueError, check_storable, kind_of
from curator.types import Message

__all__ = ["looks_like_messages", "parse_messages", "parse_tools"]

_ROLES = {
    **{name: name for name in ("system", "developer", "user", "assistant", "tool")},
    **{"human": "user", "prompter": "user"},
    **dict.fromkeys(("gpt", "chatgpt", "bing", "bard", "model", "bot", "function_call"), "assistant"),
    **dict.fromkeys(("function", "function_response", "observation"), "tool"),
}
_MAY_BE_EMPTY = ("system", "developer", "tool")
_IMAGE_TYPES = ("image", "image_url")


def parse_messages(name: str, value: Any) -> list[Message]:
    """The turns of a conversation in the column `name`: a list, or the JSON text of one.

    Raises BadValueError for one without turns, and for a turn whose role is unknown, whose content is neither text nor
    parts, or which is empty where a user or an assistant should say something.
    """
    value = _from_json(value)
    if not isinstance(value, list):
        raise BadValueError(
            f'field "{name}" is not a conversation: it is {kind_of(value)}, and a list of turns is needed'
        )
    if not value:
        raise BadValueError(f'empty conversation: field "{name}" has no turns')
    check_storable(name, value)
    return [_turn(number, turn) for number, turn in enumerate(value, start=1)]


def looks_like_messages(value: Any) -> bool:
    """Whether a value is meant as a conversation, a faulty one perhaps."""
    value = _from_json(value)
    return isinstance(value, list) and any(
        isinstance(turn, dict) and ("role" in turn or "from" in turn) for turn in value[:10]
    )


def parse_tools(value: Any) -> list[dict[str, Any]] | None:
    """The tools that a row offers: a list of objects, or its JSON text; None where it is something else."""
    value = _from_json(value)
    is_tools = isinstance(value, list) and value and all(isinstance(tool, dict) for tool in value)
    return [_without_nulls(tool) for tool in value] if is_tools else None


def _from_json(value: Any) -> Any:
    """CSV, and tables whose turns differ in shape, hold a list as its JSON text."""
    if isinstance(value, str) and value.lstrip().startswith("["):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _turn(number: int, turn: Any) -> Message:
    if not isinstance(turn, dict):
        raise BadValueError(f'not a turn: number {number} is {kind_of(turn)}, and an object with "role" is needed')
    keys = ("role", "content") if turn.get("role") is not None else ("from", "value")
    if turn.get(keys[0]) is None:
        names = ", ".join(f'"{excerpt_of(name)}"' for name in list(turn)[:5]) or "nothing"
        raise BadValueError(
            f'no role: turn {number} has {names}, and needs "role" and "content", or "from" and "value"'
        )
    said = turn[keys[0]]
    role = _ROLES.get(said.strip().lower()) if isinstance(said, str) else None
    if role is None:
        shown = excerpt_of(said) if isinstance(said, str) else kind_of(said)
        raise BadValueError(f"unknown role: turn {number} has {shown!r}, and known are {', '.join(_ROLES)}")
    rest = {key: _without_nulls(item) for key, item in turn.items() if key not in keys and item is not None}
    if not rest.get("tool_calls"):
        rest.pop("tool_calls", None)
    content = _content(number, role, turn.get(keys[1]), may_be_empty="tool_calls" in rest or role in _MAY_BE_EMPTY)
    return {"role": role, "content": content, **rest}


def _content(number: int, role: str, value: Any, *, may_be_empty: bool) -> str | list[dict[str, Any]]:
    where = f"turn {number} ({role})"
    if isinstance(value, list):
        parts = [_part(where, part) for part in value]
        # One text is what every template can write; a list only those that expect images.
        content = parts if any(part["type"] != "text" for part in parts) else "".join(part["text"] for part in parts)
    elif isinstance(value, str):
        content = value
    elif value is None and may_be_empty:
        content = ""
    else:
        raise BadValueError(f"content is not text: in {where} it is {kind_of(value)}")
    if isinstance(content, str) and not content.strip() and not may_be_empty:
        raise BadValueError(f"empty turn: {where} holds nothing but whitespace")
    return content


def _part(where: str, part: Any) -> dict[str, Any]:
    if isinstance(part, str):
        return {"type": "text", "text": part}
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": part["text"]}
    if kind in _IMAGE_TYPES:
        return {"type": "image"} | {key: item for key, item in part.items() if key != "type" and item is not None}
    shown = f"type {excerpt_of(kind)!r}" if isinstance(kind, str) else kind_of(part)
    raise BadValueError(f"content part is neither text nor image: in {where} it is {shown}")


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
