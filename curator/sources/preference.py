"""Preference pairs: what was chosen and what was rejected become two samples that say which pair they are of."""

import json
from hashlib import blake2b
from typing import Any

from curator.sources.messages import looks_like_messages, parse_messages
from curator.sources.values import BadValueError, kind_of
from curator.types import Message

__all__ = ["SIDES", "to_pair"]

SIDES = ("chosen", "rejected")


def to_pair(prompt: Any, chosen: Any, rejected: Any, *, names: tuple[str, str]) -> list[dict[str, Any]]:
    """The contents of the two samples, each with "pair": (what both share, "chosen" or "rejected").

    Conversations stay conversations: a prompt is put before them unless they begin with one. Of texts without a prompt
    the beginning that both share, up to a space, is the prompt. Raises BadValueError for values that are neither, and
    for two that are equal.
    """
    if looks_like_messages(chosen) or looks_like_messages(rejected) or looks_like_messages(prompt):
        contents = [{"messages": _conversation(prompt, value, name)} for name, value in zip(names, (chosen, rejected))]  # noqa: B905
    else:
        contents = _texts(prompt, chosen, rejected, names)
    if contents[0] == contents[1]:
        raise BadValueError(f'equal pair: fields "{names[0]}" and "{names[1]}" hold the same')
    written = json.dumps(contents, ensure_ascii=False, sort_keys=True).encode()
    shared = blake2b(written, digest_size=8).hexdigest()
    return [content | {"pair": (shared, side)} for content, side in zip(contents, SIDES, strict=True)]


def _conversation(prompt: Any, value: Any, name: str) -> list[Message]:
    if looks_like_messages(value) or not isinstance(value, str):
        turns = parse_messages(name, value)
    else:
        turns = [{"role": "assistant", "content": _said(value, name)}]
    if looks_like_messages(prompt):
        before = parse_messages("prompt", prompt)
        return turns if turns[: len(before)] == before else before + turns
    has_question = any(turn["role"] == "user" for turn in turns)
    if isinstance(prompt, str) and prompt.strip() and not has_question:
        return [{"role": "user", "content": prompt}, *turns]
    return turns


def _texts(prompt: Any, chosen: Any, rejected: Any, names: tuple[str, str]) -> list[dict[str, Any]]:
    said = [_said(value, name) for value, name in zip((chosen, rejected), names, strict=True)]
    if prompt is None:
        shared = _shared(*said)
        if not shared:
            return [{"text": text} for text in said]
        return [{"prompt": shared, "response": text[len(shared) :]} for text in said]
    if not isinstance(prompt, str):
        raise BadValueError(f'field "prompt" is not text: it is {kind_of(prompt)}')
    return [{"prompt": prompt, "response": text} for text in said]


def _said(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise BadValueError(f'field "{name}" is neither text nor a conversation: it is {kind_of(value)}')
    if not value.strip():
        raise BadValueError(f'empty text: field "{name}" holds nothing but whitespace')
    return value


def _shared(one: str, other: str) -> str:
    """The beginning that two texts share, up to and with a whitespace after which both have more to say."""
    shorter = min(len(one), len(other))
    end = next((i for i in range(shorter) if one[i] != other[i]), shorter)
    while end and not (one[end - 1].isspace() and one[end:].strip() and other[end:].strip()):
        end -= 1
    return one[:end]
