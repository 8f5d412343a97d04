"""The nouns that travel between the layers: rows become samples, samples become encoded samples."""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["BadRow", "EncodedSample", "Fields", "Image", "Row", "Sample"]


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
    """Which columns of a row are what. Either `text`, or `prompt` and `response`; the rest becomes metadata."""

    text: str | None = None
    prompt: str | None = None
    response: str | None = None
    id: str | None = None
    label: str | None = None


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
    """One training item: either `text`, or `prompt` and `response`. `key` is the user's own id, where one is given."""

    text: str | None = None
    prompt: str | None = None
    response: str | None = None
    key: str | None = None
    label: str | None = None
    meta: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    row: int = 0
    images: tuple[Image, ...] = ()  # in the order of their placeholders

    @property
    def full_text(self) -> str:
        """The text the model reads, prompt and response joined as they are."""
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
