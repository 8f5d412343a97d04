"""The arguments of a question, the same for every face and every verb that takes a query."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypedDict

from curator.query.answer import QueryOptions
from curator.query.inputs import QueryInput
from curator.types import Fields, Shape
from curator.value import Method

__all__ = ["Asked", "OneQuestion", "Question", "is_asking", "parts_of"]


class OneQuestion(TypedDict, total=False):
    """What to value against, where, and how. One of text, prompt + response, data, saved or expr is needed."""

    text: str | None  # value against this text
    prompt: str | None  # or against a response to this prompt; only the response's tokens count
    response: str | None
    data: str | Path | Sequence[str | Path]  # or against the rows of these files: their mean
    text_field: str | None  # the columns of data, as for ingest
    prompt_field: str | None
    response_field: str | None
    messages_field: str | None
    shape: Shape | None  # or what the columns make, where none is named: chat, prompt, text or preference
    id_field: str | None
    saved: str | None  # or against a saved query
    expr: str | None  # or against an expression over saved queries: "good - 0.5 * bad"
    space: str | None  # the beginning of a fingerprint; the newest space
    model: str | None  # where the space's model lies now, if it has moved
    adapter: str | None  # and its adapter
    where: str | None  # only samples that match this filter
    method: Method  # raw
    damping: float  # of preconditioned; 10
    top: int  # helpful samples in the answer; 10
    harmful: int  # harmful ones; 10
    rerank: int  # candidates at each end that are rescored from their factors; 100, and a quarter more for rare labels
    exact: bool  # rescore the candidates by running them through the model
    tokens: bool  # split the value of each item over its tokens
    trust: int  # run so many random samples, to tell how many of the true best are shown
    certify: int  # or run at most so many at each end, those with the highest bounds, until the answer is certain


class Question(OneQuestion, total=False):
    """The same, or several questions of one kind."""

    each: bool  # one answer for every row of data
    by: str | None  # one answer for every value of this column of data


@dataclass(frozen=True)
class Asked:
    """Which space a question goes to."""

    space: str | None
    model: str | None
    adapter: str | None = None


_OPTIONS = ("where", "method", "damping", "top", "harmful", "rerank", "exact", "tokens", "trust", "certify")


_QUERIES = ("text", "prompt", "response", "data", "saved", "expr")


def is_asking(question: Question) -> bool:
    """Whether there is something to value against, and not only a filter."""
    return any(question.get(name) not in (None, (), []) for name in _QUERIES)


def parts_of(question: Question) -> tuple[QueryInput, Asked, QueryOptions]:
    """What to value against, in which space, and how to answer. Raises TypeError for an argument that is none."""
    unknown = sorted(question.keys() - Question.__annotations__.keys())
    if unknown:
        raise TypeError(f"unknown argument {unknown[0]!r}; known: {', '.join(Question.__annotations__)}")
    data = question.get("data") or ()
    given = QueryInput(
        question.get("text"),
        question.get("prompt"),
        question.get("response"),
        [data] if isinstance(data, str | Path) else list(data),
        Fields(
            question.get("text_field"),
            question.get("prompt_field"),
            question.get("response_field"),
            question.get("id_field"),
            messages=question.get("messages_field"),
            shape=question.get("shape"),
        ),
        question.get("each", False),
        question.get("by"),
        question.get("saved"),
        question.get("expr"),
    )
    options = QueryOptions(**{name: value for name, value in question.items() if name in _OPTIONS})  # type: ignore[arg-type]
    return given, Asked(question.get("space"), question.get("model"), question.get("adapter")), options
