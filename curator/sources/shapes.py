"""What rows hold, told by their columns: conversations, prompts with responses, preference pairs, or text.

Columns decide, and nothing else: not the model, nor whether it has a chat template. As elsewhere (TRL), strings are
joined as they are and only messages pass through a template; --shape chat makes turns of a prompt and its response.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, get_args

from curator.errors import NotFoundError, UsageError
from curator.sources.excerpt import excerpt_of
from curator.sources.messages import looks_like_messages
from curator.sources.rows import read_rows
from curator.sources.source import Source
from curator.types import Fields, Row, Shape

__all__ = ["check_fields", "describe", "is_named", "settle_fields", "shape_of"]

_PEEK = 100  # rows that tell
_NOUNS: dict[Shape, str] = {
    "chat": "conversations",
    "prompt": "prompts with responses",
    "text": "texts",
    "preference": "preference pairs",
}
_PAIRS = [("prompt", "completion"), ("prompt", "response"), ("instruction", "output"), ("instruction", "response"),
          ("question", "answer")]  # fmt: skip
_INPUTS = {("instruction", "output"): "input", ("instruction", "response"): "context"}


@dataclass(frozen=True)
class _Candidate:
    """Columns that a row may have, and what they would be."""

    fields: Fields
    shapes: tuple[Shape, ...]  # that rows with these columns can be read as, the usual one first
    required: tuple[str, ...]
    may_be_messages: bool = False
    must_be_messages: bool = False

    def fits(self, row: Row) -> bool:
        """Whether a row has the columns, with values that suit."""
        return all(self._suits(row.columns.get(name)) for name in self.required)

    def _suits(self, value: Any) -> bool:
        is_messages = (self.may_be_messages or self.must_be_messages) and looks_like_messages(value)
        return is_messages or (isinstance(value, str) and not self.must_be_messages)


def _candidates() -> Iterator[_Candidate]:
    preference = ("chosen", "rejected")
    yield _Candidate(Fields(chosen="chosen", rejected="rejected"), ("preference",), preference, may_be_messages=True)
    for name in ("messages", "conversations", "conversation"):
        yield _Candidate(Fields(messages=name), ("chat",), (name,), must_be_messages=True)
    for pair in _PAIRS:
        fields = Fields(prompt=pair[0], response=pair[1], input=_INPUTS.get(pair))
        yield _Candidate(fields, ("prompt", "chat", "text"), pair)
    yield _Candidate(Fields(prompt="prompt", response="completion"), ("chat",), _PAIRS[0], may_be_messages=True)
    yield _Candidate(Fields(text="text"), ("text",), ("text",))


def settle_fields(sources: Sequence[Source], fields: Fields, known: Sequence[Fields] = ()) -> Fields:
    """`fields` with every role named: by the caller, else by one of `known` whose columns are there, else recognised.

    Rows that are nothing known are read as text in the column "text", and each says that it has none. Raises
    UsageError for roles that exclude each other, and where no columns have the shape that was asked for.
    """
    if is_named(fields):
        return check_fields(fields)
    rows = [row for row in itertools.islice(_first_rows(sources), _PEEK) if isinstance(row, Row)]
    for other in known:
        columns = {name for role, name in _columns(other).items() if role not in ("id", "label", "input")}
        is_alike = fields.shape in (None, shape_of(other)) and columns
        if is_alike and rows and all(columns <= row.columns.keys() for row in rows):
            return replace(other, id=fields.id, label=fields.label, image=fields.image or other.image)
    for candidate in _candidates():
        shape = fields.shape or candidate.shapes[0]
        if shape in candidate.shapes and 2 * sum(map(candidate.fits, rows)) > len(rows):
            return replace(
                _with_optional(candidate.fields, rows),
                shape=shape,
                id=fields.id,
                label=fields.label,
                image=fields.image,
            )
    if fields.shape in (None, "text"):
        return replace(fields, text="text", shape="text")
    names = ", ".join(f'"{excerpt_of(name)}"' for name in list(rows[0].columns)[:10]) if rows else "no columns"
    raise UsageError(
        f"no columns of {sources[0].name} have the shape {fields.shape}: the first row has {names}; name them with "
        "--messages-field, --prompt-field and --response-field, or --text-field"
    )


def check_fields(fields: Fields) -> Fields:
    """`fields` with their shape. Raises UsageError for roles that exclude each other, or that the shape cannot have."""
    if fields.shape not in (None, *get_args(Shape)):
        raise UsageError(f"--shape must be one of {', '.join(get_args(Shape))}; got {fields.shape!r}")
    if fields.shape == "preference":
        if fields.text or fields.response or fields.messages:
            raise UsageError("--shape preference reads the columns chosen and rejected, and takes --prompt-field alone")
        return replace(fields, chosen=fields.chosen or "chosen", rejected=fields.rejected or "rejected")
    if fields.chosen is not None:
        return replace(fields, shape="preference")
    given = [name for name in ("text", "prompt", "response", "messages") if getattr(fields, name) is not None]
    if not given:
        return replace(fields, text="text", shape="text")
    if "messages" in given:
        if len(given) > 1 or fields.shape not in (None, "chat"):
            raise UsageError(
                "--messages-field excludes --text-field, --prompt-field and --response-field, and any --shape but chat"
            )
        return replace(fields, shape="chat")
    if "text" in given:
        if len(given) > 1:
            raise UsageError(
                "--text-field excludes --prompt-field and --response-field: give the text, or both of the others"
            )
        if fields.shape not in (None, "text"):
            raise UsageError(f"--text-field is a text, and --shape {fields.shape} needs other columns")
        return replace(fields, shape="text")
    if len(given) == 1:
        missing = "response" if given == ["prompt"] else "prompt"
        raise UsageError(f"--{given[0]}-field needs --{missing}-field beside it, or use --text-field alone")
    return replace(fields, shape=fields.shape or "prompt")


def shape_of(fields: Fields) -> Shape:
    """The shape that settled fields have; those that an older version has stored name none."""
    return check_fields(fields).shape or "text"


def describe(fields: Fields, count: int | None = None) -> str:
    """What rows are read as, in words: "chat: 812 conversations (messages)"."""
    shape = shape_of(fields)
    columns = ", ".join(dict.fromkeys(name for role, name in _columns(fields).items() if role not in ("id", "label")))
    return f"{shape}: {'' if count is None else f'{count:,} '}{_NOUNS[shape]} ({columns})"


def is_named(fields: Fields) -> bool:
    """Whether the caller says which columns hold the samples."""
    return any(role not in ("id", "label", "image") for role in _columns(fields))


def _columns(fields: Fields) -> dict[str, str]:
    roles = ("text", "prompt", "input", "response", "messages", "chosen", "rejected", "image", "id", "label")
    return {role: name for role in roles if (name := getattr(fields, role)) is not None}


def _with_optional(fields: Fields, rows: Sequence[Row]) -> Fields:
    """Without columns that a row need not have, and that none has."""
    if fields.input is not None and not any(fields.input in row.columns for row in rows):
        fields = replace(fields, input=None)
    if fields.chosen is not None and any("prompt" in row.columns for row in rows):
        fields = replace(fields, prompt="prompt")
    return fields


def _first_rows(sources: Sequence[Source]) -> Iterator[Any]:
    for source in sources:
        with suppress(UsageError, NotFoundError):  # told when it is read for good
            yield from read_rows(source)
