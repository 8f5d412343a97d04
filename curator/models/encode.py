"""Samples to token ids, and which of the tokens count.

Text:             the tokenizer's special tokens + text + EOS
Prompt, response: tokens of the prompt (special tokens as usual) + tokens of the response (without) + EOS

The end counts: when to stop is part of what a model learns. An image's tokens, and what begins and ends them, never do.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from curator.errors import UsageError
from curator.models.vision import Expanded, Vision
from curator.sources.images import ImageError
from curator.types import EncodedSample, Image, Sample

__all__ = ["Encoder", "OnLong", "Positions"]

Positions = Literal["response", "all"]
OnLong = Literal["truncate", "reject"]
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
        vision: Vision | None = None,
    ):
        """`vision`: of a model that reads images."""
        if max_length < 2:
            raise UsageError(f"--max-length {max_length} leaves no token to predict; give at least 2")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.vocab_size = vocab_size
        self.positions = positions
        self.on_long = on_long
        self.vision = vision
        self._eos: list[int] = [] if tokenizer.eos_token_id is None else [tokenizer.eos_token_id]
        probe = self._ids(["a"], special=True)[0]
        self._has_own_eos = bool(self._eos) and probe[-1:] == self._eos

    def encode(self, samples: Sequence[Sample]) -> list[EncodedSample | str]:
        """One encoded sample, or the reason why there is none, for each sample, in order."""
        reasons = [_unusable(sample) for sample in samples]
        usable = [sample for sample, reason in zip(samples, reasons, strict=True) if reason is None]
        encoded = iter(self._encode(usable))
        return [next(encoded) if reason is None else reason for reason in reasons]

    def _encode(self, samples: Sequence[Sample]) -> list[EncodedSample | str]:
        plain = iter(self._encode_text([sample for sample in samples if not self._has_images(sample)]))
        return [self._encode_images(sample) if self._has_images(sample) else next(plain) for sample in samples]

    def _has_images(self, sample: Sample) -> bool:
        # A placeholder without its image would be read as a token that means nothing: it is looked at, and refused.
        return bool(sample.images) or (self.vision is not None and self.vision.token in sample.full_text)

    def _encode_images(self, sample: Sample) -> EncodedSample | str:
        """Text, or prompt and response: images stand where the placeholders are, else before the text."""
        if self.vision is None:
            return "images: the model reads text only; use a vision-language model, or leave --image-field out"
        first = sample.text if sample.text is not None else sample.prompt or ""
        response = None
        if sample.text is None:
            response = self._ids([sample.response or ""], special=False)[0]
        if response is not None and self.vision.special_ids.intersection(response):
            return "image count: the response holds an image's token, and images belong into the prompt"
        try:
            expanded = self.vision.expand(self.vision.place(first, len(sample.images)), sample.images)
        except ImageError as error:
            return str(error)
        ids, is_image = self._expanded_ids(expanded, special=True)
        return self._assemble(ids, response, sample.images, is_image)

    def _expanded_ids(self, expanded: Expanded, *, special: bool) -> tuple[list[int], np.ndarray]:
        """Token ids, and which of them belong to images."""
        found = self.tokenizer(
            expanded.text, add_special_tokens=special, return_offsets_mapping=True, verbose=False
        )
        starts, ends = np.array(found["offset_mapping"], dtype=np.int64).reshape(-1, 2).T
        assert self.vision is not None
        is_image = np.isin(found["input_ids"], list(self.vision.special_ids))
        for start, end in expanded.spans:
            is_image |= (starts < end) & (ends > start)
        return found["input_ids"], is_image

    def _encode_text(self, samples: Sequence[Sample]) -> list[EncodedSample | str]:
        first = self._ids([s.text if s.text is not None else s.prompt or "" for s in samples], special=True)
        with_response = [i for i, sample in enumerate(samples) if sample.text is None]
        responses = self._ids([samples[i].response or "" for i in with_response], special=False)
        response_of = dict(zip(with_response, responses, strict=True))
        return [self._assemble(ids, response_of.get(i)) for i, ids in enumerate(first)]

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
        is_image: np.ndarray | None = None,
    ) -> EncodedSample | str:
        if self._has_own_eos:
            first = first[:-1]
        ids = first + (response or []) + self._eos
        if len(ids) > self.max_length and self.on_long == "reject":
            return f"too long: {len(ids):,} tokens, the limit is {self.max_length:,}"
        start = 1 if response is None or self.positions == "all" else max(1, len(first))
        kept = np.asarray(ids[: self.max_length], dtype=np.int64)
        if start >= len(kept):
            return self._no_counted_token(len(first), response)
        if kept.max() >= self.vocab_size:
            return f"token id {kept.max()} is outside the model's vocabulary of {self.vocab_size:,}"
        counted = np.zeros(len(kept), dtype=bool)
        counted[start:] = True
        if is_image is not None:
            if is_image[self.max_length :].any():
                return f"image cut off: {len(ids):,} tokens, the limit is {self.max_length:,}; raise --max-length"
            counted[: len(is_image)] &= ~is_image[: len(counted)]
            if not counted.any():
                return self._no_counted_token(len(first), response)
        return EncodedSample(kept, counted, is_truncated=len(ids) > self.max_length, images=images)

    def _no_counted_token(self, num_first: int, response: list[int] | None) -> str:
        if response is not None and num_first >= self.max_length:
            return f"no counted token: the prompt alone has {num_first:,} tokens, the limit is {self.max_length:,}"
        return "no counted token: nothing is left to predict"


def _unusable(sample: Sample) -> str | None:
    if sample.messages is not None:
        return "a conversation: no chat template is applied yet"
    return None if _is_unicode(sample.full_text) else "not Unicode text: half of a surrogate pair"


def _is_unicode(text: str) -> bool:
    # JSON can escape half of a surrogate pair; one such string makes the tokenizer refuse a whole batch.
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True
