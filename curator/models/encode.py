"""Samples to token ids, and which of the tokens count.

Text:             the tokenizer's special tokens + text + EOS
Prompt, response: tokens of the prompt (special tokens as usual) + tokens of the response (without) + EOS
Messages:         what the chat template writes, which writes its own special tokens (curator/models/chat.py)

The end counts: when to stop is part of what a model learns. An image's tokens, and what begins and ends them, never do.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np

from curator.errors import UsageError
from curator.models.chat import Chat, Rendered, counted_tokens
from curator.models.vision import Expanded, Vision
from curator.sources.images import ImageError
from curator.types import EncodedSample, Image, Sample

__all__ = ["Encoder", "OnLong", "Positions"]

Positions = Literal["response", "all"]
OnLong = Literal["truncate", "reject"]
_TEXT_ONLY = "images: the model reads text only; use a vision-language model, or leave --image-field out"
_DECODE_CONTEXT = 4  # tokens before one that can change how it is written


class Encoder:
    """Encodes samples for one tokenizer, length limit and choice of counted positions."""

    def __init__(
        self,
        tokenizer: Any,
        *,
        max_length: int,
        vocab_size: int,
        positions: Positions = "response",
        on_long: OnLong = "truncate",
        chat_template: str | None = None,
        vision: Vision | None = None,
        why_no_images: str = _TEXT_ONLY,
    ):
        """`chat_template`: in the place of the tokenizer's own. `vision`: of a model that reads images; without it,
        `why_no_images` is the reason for samples that have some."""
        if max_length < 2:
            raise UsageError(f"--max-length {max_length} leaves no token to predict; give at least 2")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.vocab_size = vocab_size
        self.positions = positions
        self.on_long = on_long
        self._chat_template = chat_template
        self.vision = vision
        self.why_no_images = why_no_images
        self._eos: list[int] = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        probe = self._ids(["a"], special=True)[0]
        self._has_own_eos = bool(self._eos) and probe[-1:] == self._eos

    def encode(self, samples: Sequence[Sample]) -> list[EncodedSample | str]:
        """One encoded sample, or the reason why there is none, for each sample, in order."""
        is_text = [_is_unicode(sample.full_text) for sample in samples]
        usable = [sample for sample, is_good in zip(samples, is_text, strict=True) if is_good]
        plain = iter(self._encode([sample for sample in usable if sample.messages is None]))
        chats = iter(self._encode_chats([sample for sample in usable if sample.messages is not None]))
        encoded = (next(plain if sample.messages is None else chats) for sample in usable)
        return [next(encoded) if is_good else "not Unicode text: half of a surrogate pair" for is_good in is_text]

    @cached_property
    def chat(self) -> Chat:
        """The chat template. Raises UsageError when there is none, or when it cannot tell who says what."""
        return Chat(self.tokenizer, self._chat_template, needs_spans=self.positions == "response")

    def _encode(self, samples: Sequence[Sample]) -> list[EncodedSample | str]:
        plain = iter(self._encode_text([sample for sample in samples if not self._has_images(sample)]))
        return [self._encode_images(sample) if self._has_images(sample) else next(plain) for sample in samples]

    def _encode_text(self, samples: Sequence[Sample]) -> list[EncodedSample | str]:
        first = self._ids([s.text if s.text is not None else s.prompt or "" for s in samples], special=True)
        with_response = [i for i, sample in enumerate(samples) if sample.text is None]
        responses = self._ids([samples[i].response or "" for i in with_response], special=False)
        response_of = dict(zip(with_response, responses, strict=True))
        return [self._assemble(ids, response_of.get(i)) for i, ids in enumerate(first)]

    def _has_images(self, sample: Sample) -> bool:
        # A placeholder without its image would be read as a token that means nothing: it is looked at, and refused.
        return bool(sample.images) or (self.vision is not None and self.vision.token in sample.full_text)

    def _encode_images(self, sample: Sample) -> EncodedSample | str:
        """Text, or prompt and response: images stand where the placeholders are, else before the text."""
        first = sample.text if sample.text is not None else sample.prompt or ""
        expanded = self._expanded(first, sample.images, is_placed=False)
        if isinstance(expanded, str):
            return expanded
        response = None if sample.text is not None else self._ids([sample.response or ""], special=False)[0]
        if self.vision is not None and self.vision.special_ids.intersection(response or ()):
            return "image count: the response holds an image's token, and images belong into the prompt"
        found = self.tokenizer(expanded.text, return_offsets_mapping=True, verbose=False)
        in_image = counted_tokens(found["offset_mapping"], expanded.spans)
        return self._assemble(found["input_ids"], response, sample.images, in_image)

    def _expanded(self, text: str, images: Sequence[Image], *, is_placed: bool) -> Expanded | str:
        """The text with the tokens of its images, put before it where it has no place for them unless `is_placed`."""
        if self.vision is None:
            return Expanded(text, [], []) if not images else self.why_no_images
        try:
            return self.vision.expand(text if is_placed else self.vision.place(text, len(images)), images)
        except ImageError as error:
            return str(error)

    def _encode_chats(self, samples: Sequence[Sample]) -> list[EncodedSample | str]:
        written = [self._written(sample) for sample in samples]
        texts = [expanded.text for one in written if not isinstance(one, str) for _, expanded in [one]]
        if not texts:
            return [str(reason) for reason in written]
        found = self.tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
        encoded = iter(zip(found["input_ids"], found["offset_mapping"], strict=True))
        return [
            one if isinstance(one, str) else self._chat_tokens(sample, *one, *next(encoded))
            for sample, one in zip(samples, written, strict=True)
        ]

    def _written(self, sample: Sample) -> tuple[Rendered, Expanded] | str:
        """A conversation as the template writes it, and with the tokens of its images."""
        if self.vision is None and any(isinstance(turn["content"], list) for turn in sample.messages or ()):
            return self.why_no_images
        rendered = self.chat.render(sample)
        if isinstance(rendered, str):
            return rendered
        expanded = self._expanded(rendered.text, sample.images, is_placed=True)
        return expanded if isinstance(expanded, str) else (rendered, expanded)

    def _chat_tokens(
        self, sample: Sample, rendered: Rendered, expanded: Expanded, ids: list[int], offsets: list[tuple[int, int]]
    ) -> EncodedSample | str:
        if self._is_too_long(ids):
            return self._too_long(ids)
        kept = offsets[: self.max_length]
        counted = np.ones(len(kept), dtype=bool)
        if self.positions == "response":
            spans = self.chat.spans(sample, rendered, until=max((stop for _, stop in kept), default=0))
            if isinstance(spans, str):
                return spans
            counted = counted_tokens(kept, [(expanded.moved(start), expanded.moved(stop)) for start, stop in spans])
        if not counted[1:].any() and len(ids) > self.max_length:
            return f"no counted token: no assistant turn within the limit of {self.max_length:,} of {len(ids):,} tokens"
        return self._checked(ids, counted, sample.images, counted_tokens(offsets, expanded.spans))

    def token_texts(self, ids: Sequence[int]) -> list[str]:
        """What each token adds to the text: a token alone may lose its space, or be half of a character."""
        texts = []
        for position, token in enumerate(ids):
            before = list(ids[max(0, position - _DECODE_CONTEXT) : position])
            prefix, text = self.tokenizer.decode(before), self.tokenizer.decode([*before, token])
            texts.append(text[len(prefix) :] if text.startswith(prefix) else self.tokenizer.decode([token]))
        return texts

    def _ids(self, texts: list[str], *, special: bool) -> list[list[int]]:
        if not texts:
            return []
        encoded: list[list[int]] = self.tokenizer(texts, add_special_tokens=special, verbose=False)["input_ids"]
        return encoded

    def _assemble(
        self,
        first: list[int],
        response: list[int] | None,
        images: tuple[Image, ...] = (),
        in_image: np.ndarray | None = None,
    ) -> EncodedSample | str:
        if self._has_own_eos:
            first = first[:-1]
        ids = first + (response or []) + self._eos
        if self._is_too_long(ids):
            return self._too_long(ids)
        start = 1 if response is None or self.positions == "all" else max(1, len(first))
        if response is not None and start >= self.max_length:
            return f"no counted token: the prompt alone has {len(first):,} tokens, the limit is {self.max_length:,}"
        counted = np.zeros(min(len(ids), self.max_length), dtype=bool)
        counted[start:] = True
        return self._checked(ids, counted, images, in_image)

    def _is_too_long(self, ids: list[int]) -> bool:
        return len(ids) > self.max_length and self.on_long == "reject"

    def _too_long(self, ids: list[int]) -> str:
        return f"too long: {len(ids):,} tokens, the limit is {self.max_length:,}"

    def _checked(
        self, ids: list[int], counted: np.ndarray, images: tuple[Image, ...], in_image: np.ndarray | None
    ) -> EncodedSample | str:
        """The first tokens up to the limit with those that count (the first never does), or why they are no sample.

        `in_image`: which tokens a placeholder was replaced by; it may end before the tokens do, the others are text.
        """
        kept = np.asarray(ids[: self.max_length], dtype=np.int64)
        counted[:1] = False
        if self.vision is not None:
            is_inside = np.zeros(len(ids), dtype=bool)
            if in_image is not None:
                is_inside[: len(in_image)] = in_image[: len(ids)]
            if np.isin(np.asarray(ids)[~is_inside], list(self.vision.seen_ids)).any():
                return "image count: the text holds an image's token that stands for no image"
            if is_inside[self.max_length :].any():
                return f"image cut off: {len(ids):,} tokens, the limit is {self.max_length:,}; raise --max-length"
            counted &= ~is_inside[: len(kept)] & ~np.isin(kept, list(self.vision.special_ids))
        if not counted.any():
            return "no counted token: nothing is left to predict"
        if kept.max() >= self.vocab_size:
            return f"token id {kept.max()} is outside the model's vocabulary of {self.vocab_size:,}"
        return EncodedSample(kept, counted, is_truncated=len(ids) > self.max_length, images=images)


def _is_unicode(text: str) -> bool:
    # JSON can escape half of a surrogate pair; one such string makes the tokenizer refuse a whole batch.
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
