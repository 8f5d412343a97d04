"""Conversations as the model's chat template writes them, and which characters of that are the assistant's.

Where the template marks what the assistant generates ({% generation %}), these marks are it. Else a turn's text begins
where the rendering of all turns before it ends, with the prompt to answer (add_generation_prompt), and ends where the
rendering that it is the last of ends, less whitespace after its end mark. Both must be beginnings of the whole. A
template may write a turn otherwise when more turns follow (reasoning left out): then the turn is what the whole shares
with the end of its rendering as the last one, and must hold the end of its content and its end mark.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from curator.errors import NotFoundError, UsageError
from curator.types import Message, Sample

__all__ = ["Chat", "Rendered", "counted_tokens", "own_template", "read_template"]

Span = tuple[int, int]  # characters [start, stop)

# Some templates write today's date. A sample's value may not depend on the day: this is the date that Llama's have
# where they know of none. A macro, since nothing that can be called may be passed to a template.
_TODAY = {"%-d": "26", "%d": "26", "%b": "Jul", "%B": "July", "%m": "07", "%Y": "2024", "%y": "24", "%A": "Friday",
          "%a": "Fri", "%H": "00", "%M": "00", "%S": "00"}  # fmt: skip
_TODAY_MACRO = (
    "{% macro strftime_now(format) %}{{ format"
    + "".join(f" | replace({code!r}, {text!r})" for code, text in _TODAY.items())
    + " }}{% endmacro +%}"
)
_MARKS = re.compile(r"\{%-?\s*generation\s*-?%\}")
_TAIL = 20  # characters of a turn's end by which it is recognised
_PROBE: list[Message] = [
    {"role": "user", "content": "Alpha?"},
    {"role": "assistant", "content": "Beta."},
    {"role": "user", "content": "Gamma?"},
    {"role": "assistant", "content": "Delta."},
]
_WHAT_TO_DO = (
    "give one that marks them with {% generation %} by --chat-template FILE, or count every token with --positions all"
)


class _UnclearError(ValueError):
    """Which characters are the assistant's cannot be told; the message is the reason in the quarantine."""


@dataclass(frozen=True)
class Rendered:
    """A conversation as text, and the spans that the template itself marks as generated, where it marks any."""

    text: str
    marks: list[Span]


class Chat:
    """A chat template at work. Raises UsageError when there is none, or when it cannot tell who says what."""

    def __init__(self, tokenizer: Any, template: str | None = None, *, needs_spans: bool = True):
        """`template`: in the place of the tokenizer's own. `needs_spans`: whether only the assistant's tokens count."""
        found = own_template(tokenizer) if template is None else template
        if found is None:
            raise UsageError(
                "the data are conversations, and the model's tokenizer has no chat template: give one with "
                "--chat-template FILE, or read the data otherwise (--shape, or by naming fields)"
            )
        if not tokenizer.is_fast:
            raise UsageError(
                f"the data are conversations, and {type(tokenizer).__name__} is a slow tokenizer, which does not tell "
                "where in the text a token stands: save it as a fast one (tokenizer.json)"
            )
        self.template = (_TODAY_MACRO if "strftime_now" in found else "") + found
        self._names = dict(tokenizer.special_tokens_map)
        self._needs_spans = needs_spans
        self._has_marks = bool(_MARKS.search(found))
        self._has_parts = False  # templates of models that read images may write lists of parts only
        self._has_parts = not self._writes_all() and self._writes_all(has_parts=True)
        self._check()

    def render(self, sample: Sample) -> Rendered | str:
        """The whole conversation, or the reason why there is none."""
        messages = sample.messages
        assert messages is not None
        if any(m["role"] == "assistant" and not isinstance(m["content"], str) for m in messages):
            return "image in an assistant's turn: the model has to say text"
        for what, is_there in (("tools", sample.tools), ("tool_calls", any("tool_calls" in m for m in messages))):
            if is_there and what not in self.template:
                return f"{what} are left out by the chat template: give one that writes them with --chat-template FILE"
        if self._needs_spans and not any(message["role"] == "assistant" for message in messages):
            return "no assistant turn: nothing counts, unless every token does (--positions all)"
        try:
            return self._write(messages, sample.tools)
        except _UnclearError as error:
            return str(error)

    def spans(self, sample: Sample, rendered: Rendered, until: int | None = None) -> list[Span] | str:
        """The characters that the assistant says, each turn with its end mark; or the reason why they cannot be told.

        Turns that begin at character `until` or later are left out: long conversations are cut, and rendering each of
        their prefixes would take time that grows with the square of the turns.
        """
        assert sample.messages is not None
        if self._has_marks:
            return rendered.marks
        try:
            return self._spans(rendered.text, sample.messages, sample.tools, until)
        except _UnclearError as error:
            return str(error)

    def _writes_all(self, *, has_parts: bool = False) -> bool:
        """Whether the text of every turn is there, with contents as texts or as lists of parts."""
        self._has_parts = has_parts
        try:
            text = self._write(_PROBE, None).text
        except _UnclearError:
            return False
        return all(turn["content"] in text for turn in _PROBE)

    def _check(self) -> None:
        """Writes a conversation of known text, so that a template that cannot tell is met before the first sample."""
        try:
            rendered = self._write(_PROBE, None)
            self._has_prompt = self._write(_PROBE[:1], None, is_asking=True) != self._write(_PROBE[:1], None)
            missing = [turn["content"] for turn in _PROBE if turn["content"] not in rendered.text]
            if missing:
                raise _UnclearError(f"the chat template leaves out {missing[0]!r}: it writes {rendered.text!r}")
            if not self._needs_spans:
                return
            spans = rendered.marks if self._has_marks else self._spans(rendered.text, _PROBE, None)
        except _UnclearError as error:
            raise UsageError(f"{error}; {_WHAT_TO_DO}") from error
        counted = "\n".join(rendered.text[start:stop] for start, stop in spans)
        if any((turn["content"] in counted) != (turn["role"] == "assistant") for turn in _PROBE):
            raise UsageError(
                f"the chat template marks {counted!r} as the assistant's, where that says {_PROBE[1]['content']!r} and "
                f"{_PROBE[3]['content']!r} of {rendered.text!r}; {_WHAT_TO_DO}"
            )

    def _spans(self, text: str, messages: Sequence[Message], tools: Any, until: int | None = None) -> list[Span]:
        spans: list[Span] = []
        for number, message in enumerate(messages):
            if message["role"] == "assistant":
                spans.append(self._span(text, messages, number, tools))
                if until is not None and spans[-1][1] >= until:
                    break
        return spans

    def _span(self, text: str, messages: Sequence[Message], number: int, tools: Any) -> Span:
        """The characters of one assistant's turn, with its end mark."""
        start = self._start(text, messages, number, tools)
        so_far = self._write(messages[: number + 1], tools).text
        if not so_far.startswith(text[:start]):
            raise _unclear(number, "what stands before it is written otherwise when it is the last")
        turn = _without_end_space(so_far[start:], messages[number])
        if text.startswith(turn, start):
            return start, start + len(turn)
        # Written otherwise because turns follow: what is left out stands before what stays.
        longest = len(turn) - _tail_length(turn, messages[number])
        for skipped in range(1, longest + 1):
            if text.startswith(turn[skipped:], start):
                return start, start + len(turn) - skipped
        raise _unclear(number, "it is written otherwise once more turns follow")

    def _start(self, text: str, messages: Sequence[Message], number: int, tools: Any) -> int:
        """Where the assistant begins: after what the template writes to make it answer."""
        try:
            asked = self._write(messages[:number], tools, is_asking=True).text
        except _UnclearError as error:
            raise _unclear(number, f"what stands before it cannot be rendered alone ({error})") from error
        start = len(asked)
        if not text.startswith(asked):
            # The prompt may open a block of reasoning that a finished turn lacks: what both share is the header.
            before = self._write(messages[:number], tools).text
            start = _num_shared(text, asked)
            if start <= len(before) or not text.startswith(before) or not _says(text[start:], messages[number]):
                raise _unclear(number, "what stands before it, rendered alone, is no beginning of the whole")
        elif not self._has_prompt and not _says(text[start:], messages[number]):
            raise _unclear(number, "something stands before it, and add_generation_prompt does not write that")
        return start

    def _write(self, messages: Sequence[Message], tools: Any, *, is_asking: bool = False) -> Rendered:
        from transformers.utils.chat_template_utils import render_jinja_template  # deferred: loads jinja

        if self._has_parts:
            messages = [message | {"content": _as_parts(message["content"])} for message in messages]
        render: Any = render_jinja_template  # what it returns is not what it is annotated with
        try:
            texts, marks = render(
                [list(messages)],
                tools=tools,
                chat_template=self.template,
                return_assistant_tokens_mask=self._has_marks,
                add_generation_prompt=is_asking,
                **self._names,
            )
        except ImportError:
            raise
        except Exception as error:  # a template is a program that strangers wrote: it may fail in any way
            raise _UnclearError(f"the chat template refuses it: {' '.join(str(error).split())[:200]}") from error
        return Rendered(texts[0], [(start, stop) for start, stop in marks[0]] if self._has_marks else [])


def _as_parts(content: str | list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def own_template(tokenizer: Any) -> str | None:
    """The template that a tokenizer came with; of several the default one."""
    template = getattr(tokenizer, "chat_template", None)
    found = template.get("default") if isinstance(template, dict) else template
    return found if isinstance(found, str) else None


def read_template(path: str | Path) -> str:
    """The template in a file, as Jinja. Raises NotFoundError, UsageError for one that is no text or empty."""
    try:
        text = Path(path).expanduser().read_text(encoding="utf-8")
    except (FileNotFoundError, IsADirectoryError) as error:
        raise NotFoundError(f"no chat template at {path}: --chat-template needs a file") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"the chat template {path} is not UTF-8 text") from error
    if not text.strip():
        raise UsageError(f"the chat template {path} is empty")
    return text


def counted_tokens(offsets: Sequence[Span], spans: Sequence[Span]) -> np.ndarray:
    """Which tokens, by the characters [start, stop) that they stand for, lie in a span at least in part: bool [T]."""
    counted = np.zeros(len(offsets), dtype=bool)
    if not offsets:
        return counted
    starts, stops = np.asarray(offsets, dtype=np.int64).T
    for start, stop in spans:
        # A token of no width stands for what its neighbour is written with: it belongs where it stands.
        counted |= (starts < stop) & np.where(starts == stops, starts >= start, stops > start)
    return counted


def _without_end_space(turn: str, message: Message) -> str:
    """A turn without the whitespace after its end mark, which is the template's; where there is no mark, that is it."""
    stripped = turn.rstrip()
    said = message["content"].strip()
    return turn if said and stripped.endswith(said) else stripped


def _tail_length(turn: str, message: Message) -> int:
    """How much of a turn's end must be found again: the end of what is said, and the end mark."""
    said = (message["content"].rpartition("</think>")[2].strip() or message["content"].strip())[-_TAIL:]
    at = turn.rfind(said) if said else -1
    return len(turn) - at if at >= 0 else min(len(turn), _TAIL)


def _says(text: str, message: Message) -> bool:
    """Whether a text begins with what a turn says, with its reasoning or without."""
    said = message["content"]
    heads = (part.strip()[:_TAIL] for part in (said, said.rpartition("</think>")[2]))
    return not said.strip() or any(head and text.lstrip().startswith(head) for head in heads)


def _num_shared(one: str, other: str) -> int:
    shorter = min(len(one), len(other))
    return next((i for i in range(shorter) if one[i] != other[i]), shorter)


def _unclear(number: int, why: str) -> _UnclearError:
    return _UnclearError(f"the chat template cannot tell which tokens are the assistant's: {why} (turn {number + 1})")
