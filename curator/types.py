"""The nouns that travel between the layers: rows become samples, samples become encoded samples."""

import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

__all__ = [
    "INPUT_BREAK",
    "BadRow",
    "Bookmark",
    "EncodedSample",
    "Fields",
    "Image",
    "Mark",
    "Message",
    "Row",
    "Sample",
    "Shape",
    "readable",
]

# {"role": "system", "user", "assistant" or "tool", "content": text or [{"type": "text", "text": ...}, ...], ...}; an
# assistant's turn may also have "tool_calls". What else a turn has stays as it was, for the template.
Message = dict[str, Any]
INPUT_BREAK = "\n\n"  # between an instruction and its input
Shape = Literal["chat", "prompt", "text", "preference"]


@dataclass(frozen=True, slots=True)
class Row:
    """One record of a source file. `row` counts the file's rows from 0, bad ones included."""

    source: str
    row: int
    columns: dict[str, Any]


@dataclass(frozen=True, slots=True)
class BadRow:
    """A row that cannot become a sample: it goes to quarantine with the reason, and the job goes on."""

    source: str
    row: int
    reason: str
    excerpt: str = ""


@dataclass(frozen=True, slots=True)
class Fields:
    """Which columns of a row are what; the rest becomes metadata.

    `text`, or `prompt` (with an `input` below it) and `response`, or `messages`, or `chosen` and `rejected` (and a
    `prompt`). `shape` is what they make: see curator/sources/shapes.py.
    """

    text: str | None = None
    prompt: str | None = None
    response: str | None = None
    id: str | None = None
    label: str | None = None
    messages: str | None = None
    shape: Shape | None = None
    input: str | None = None
    chosen: str | None = None
    rejected: str | None = None
    image: str | None = None  # beside any of these

    @property
    def raw(self) -> frozenset[str]:
        """Columns whose bytes are kept: they may be images."""
        return frozenset(name for name in (self.image, self.messages) if name is not None)


@dataclass(frozen=True, slots=True)
class Image:
    """An image as its file is: the hash of its bytes, and where these are, in memory or in a file."""

    sha256: str
    data: bytes | None = field(default=None, repr=False)
    path: str = ""

    @classmethod
    def of(cls, data: bytes) -> "Image":
        """The image of these bytes."""
        return cls(hashlib.sha256(data).hexdigest(), data)


@dataclass(frozen=True, slots=True)
class Sample:
    """One training item: `text`, or `prompt` and `response`, or `messages` (with the `tools` they may call).

    `key` is the user's own id, where one is given. `pair`: of a preference pair, what both samples share, and "chosen"
    or "rejected".
    """

    text: str | None = None
    prompt: str | None = None
    response: str | None = None
    messages: list[Message] | None = None
    tools: list[dict[str, Any]] | None = None
    pair: tuple[str, str] | None = None
    key: str | None = None
    label: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    row: int = 0
    images: tuple[Image, ...] = ()  # in the order of their placeholders

    @property
    def full_text(self) -> str:
        """The text to show: prompt and response joined as they are, turns one after another with their roles."""
        if self.messages is not None:
            return readable(self.messages)
        return self.text if self.text is not None else (self.prompt or "") + (self.response or "")


@dataclass(frozen=True, slots=True)
class EncodedSample:
    """A sample as token ids. `counted` [T] is on the label side: counted[t] means that predicting token t counts.

    counted[0] is always False: nothing predicts the first token.
    """

    input_ids: np.ndarray  # int64 [T]
    counted: np.ndarray  # bool [T]
    is_truncated: bool = False
    images: tuple[Image, ...] = ()  # whose tokens are among input_ids

    @property
    def num_tokens(self) -> int:
        """All tokens the model reads."""
        return len(self.input_ids)

    @property
    def num_counted(self) -> int:
        """Tokens whose prediction enters the value."""
        return int(self.counted.sum())


def readable(messages: list[Message]) -> str:
    """A conversation as text, a line "role: ..." for each turn; parts that are no text as [type]."""
    return "\n".join(f"{message['role']}: {_readable(message)}" for message in messages)


def _readable(message: Message) -> str:
    content = message.get("content") or ""
    parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
    shown = [part["text"] if part["type"] == "text" else f"[{part['type']}]" for part in parts]
    if message.get("tool_calls"):
        shown.append(json.dumps(message["tool_calls"], ensure_ascii=False))
    return " ".join(filter(None, shown))


@dataclass(frozen=True, slots=True)
class Mark:
    """All rows before `row` lie in the first `offset` bytes (decompressed), which have this digest."""

    row: int = 0
    offset: int = 0
    digest: bytes = b""
    whole: bytes | None = None  # the hash of everything, once the end is reached; empty where it was not computed


@dataclass(frozen=True, slots=True)
class Bookmark:
    """A mark in a version of a source."""

    mark: Mark
    stamp: str | None  # as it was seen when it was read
    size: int | None
