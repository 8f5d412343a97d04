"""Samples to token ids, and which of the tokens count.

Text:             the tokenizer's special tokens + text + EOS
Prompt, response: tokens of the prompt (special tokens as usual) + tokens of the response (without) + EOS

The end counts: when to stop is part of what a model learns.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from curator.errors import UsageError
from curator.types import EncodedSample, Sample

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
    ):
        if max_length < 2:
            raise UsageError(f"--max-length {max_length} leaves no token to predict; give at least 2")
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.vocab_size = vocab_size
        self.positions = positions
        self.on_long = on_long
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

    def _assemble(self, first: list[int], response: list[int] | None) -> EncodedSample | str:
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
        return EncodedSample(kept, counted, is_truncated=len(ids) > self.max_length)

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
