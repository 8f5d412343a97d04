"""Samples to token ids, and which of the tokens count."""

from dataclasses import astuple
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator.errors import UsageError
from curator.models import Encoder
from curator.types import EncodedSample, Sample
from tests.models.tiny import VOCAB_SIZE, tiny_tokenizer

BOS, EOS, PAD = 0, 1, 2
TEXT = Sample(text="the capital of France")
PAIR = Sample(prompt="two and three make", response=" five;")
TEXTS = st.text(st.characters(codec="utf-8"), max_size=30)
SAMPLES = st.builds(lambda text: Sample(text=text), TEXTS) | st.builds(
    lambda prompt, response: Sample(prompt=prompt, response=response), TEXTS, TEXTS
)


def encoder(tokenizer: Any = None, **options: Any) -> Encoder:
    return Encoder(tokenizer or tiny_tokenizer(), **({"max_length": 64, "vocab_size": VOCAB_SIZE} | options))


def plain(text: str) -> list[int]:
    """Token ids of a text without anything around it."""
    ids: list[int] = tiny_tokenizer(bos=False)(text)["input_ids"]
    return ids


def encode(sample: Sample, tokenizer: Any = None, **options: Any) -> EncodedSample:
    (encoded,) = encoder(tokenizer, **options).encode([sample])
    assert isinstance(encoded, EncodedSample), encoded
    return encoded


def reason(sample: Sample, tokenizer: Any = None, **options: Any) -> str:
    (encoded,) = encoder(tokenizer, **options).encode([sample])
    assert isinstance(encoded, str), encoded
    return encoded


@pytest.mark.parametrize("appends_eos", [False, True])
def test_text_is_special_tokens_text_and_one_end(appends_eos: bool) -> None:
    encoded = encode(TEXT, tiny_tokenizer(appends_eos=appends_eos))
    assert encoded.input_ids.tolist() == [BOS, *plain(TEXT.full_text), EOS]
    assert encoded.counted.tolist() == [False] + [True] * (encoded.num_tokens - 1)
    assert not encoded.is_truncated


@pytest.mark.parametrize("appends_eos", [False, True])
@pytest.mark.parametrize("positions", ["response", "all"])
def test_a_pair_is_prompt_response_and_one_end_and_positions_say_what_counts(positions: str, appends_eos: bool) -> None:
    encoded = encode(PAIR, tiny_tokenizer(appends_eos=appends_eos), positions=positions)
    prompt, response = [BOS, *plain("two and three make")], [*plain(" five;"), EOS]
    assert encoded.input_ids.tolist() == prompt + response
    start = len(prompt) if positions == "response" else 1
    assert encoded.counted.tolist() == [k >= start for k in range(encoded.num_tokens)]


@pytest.mark.parametrize("sample", [TEXT, Sample(prompt="", response="the capital")])
def test_the_first_token_never_counts(sample: Sample) -> None:
    """Without a beginning-of-text token nothing predicts the first token of the text."""
    encoded = encode(sample, tiny_tokenizer(bos=False))
    assert encoded.input_ids.tolist() == [*plain(sample.full_text), EOS]
    assert encoded.counted.tolist() == [False] + [True] * (encoded.num_tokens - 1)


def test_without_an_end_token_nothing_is_appended() -> None:
    assert encode(TEXT, tiny_tokenizer(eos=False)).input_ids.tolist() == [BOS, *plain(TEXT.full_text)]
    assert encode(PAIR, tiny_tokenizer(eos=False)).num_counted == len(plain(" five;"))


def test_an_empty_response_counts_its_end() -> None:
    """Saying nothing is an answer too, if there is an end token to say it with."""
    encoded = encode(Sample(prompt="two", response=""))
    assert encoded.counted.tolist() == [False] * (encoded.num_tokens - 1) + [True]
    assert "nothing is left" in reason(Sample(prompt="two", response=""), tiny_tokenizer(eos=False))


def test_one_token_alone_is_a_reason() -> None:
    assert "no counted token" in reason(Sample(text="t"), tiny_tokenizer(bos=False, eos=False))


@pytest.mark.parametrize("sample", [TEXT, PAIR])
def test_truncation_is_flagged_and_drops_the_end(sample: Sample) -> None:
    full = encode(sample)
    cut = encode(sample, max_length=full.num_tokens - 1)
    assert cut.is_truncated
    assert cut.input_ids.tolist() == full.input_ids[:-1].tolist()
    assert cut.counted.tolist() == full.counted[:-1].tolist()
    assert EOS not in cut.input_ids
    exact = encode(sample, max_length=full.num_tokens)
    assert not exact.is_truncated
    assert exact.input_ids.tolist() == full.input_ids.tolist()


def test_reject_gives_the_length_and_the_limit_instead() -> None:
    length = encode(TEXT).num_tokens
    assert reason(TEXT, on_long="reject", max_length=length - 1) == (
        f"too long: {length} tokens, the limit is {length - 1}"
    )
    assert encode(TEXT, on_long="reject", max_length=length).num_tokens == length


def test_a_prompt_as_long_as_the_limit_is_a_reason() -> None:
    length = len(plain("two and three make")) + 1
    assert f"the prompt alone has {length} tokens, the limit is {length}" in reason(PAIR, max_length=length)
    assert encode(PAIR, max_length=length + 1).num_counted == 1
    assert encode(PAIR, max_length=length, positions="all").num_counted == length - 1


def test_special_tokens_written_in_a_text_are_those_tokens() -> None:
    """Rendered chats hold them as text; the end that the encoder adds comes on top."""
    assert encode(Sample(text="the</s><pad>")).input_ids.tolist() == [BOS, *plain("the"), EOS, PAD, EOS]
    assert encode(Sample(text="the</s>"), tiny_tokenizer(appends_eos=True)).input_ids.tolist()[-2:] == [EOS, EOS]


def test_a_token_outside_the_vocabulary_is_a_reason() -> None:
    highest = int(encode(TEXT).input_ids.max())
    assert f"token id {highest} is outside" in reason(TEXT, vocab_size=highest)
    assert encode(TEXT, vocab_size=highest + 1).num_tokens


def test_half_a_surrogate_pair_is_a_reason_and_spares_its_neighbours() -> None:
    first, bad, last = encoder().encode([TEXT, Sample(text="bad \ud800"), PAIR])
    assert isinstance(bad, str)
    assert "surrogate" in bad
    assert isinstance(first, EncodedSample)
    assert isinstance(last, EncodedSample)
    assert last.input_ids.tolist() == encode(PAIR).input_ids.tolist()


def test_truncation_and_padding_saved_in_a_tokenizer_are_ignored() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(4)
    tokenizer.backend_tokenizer.enable_padding(length=40)
    assert encode(TEXT, tokenizer).input_ids.tolist() == encode(TEXT).input_ids.tolist()


def test_types_are_those_the_model_takes() -> None:
    encoded = encode(PAIR)
    assert (encoded.input_ids.dtype, encoded.counted.dtype) == (np.int64, np.bool_)


@pytest.mark.parametrize("max_length", [1, 0, -5])
def test_a_limit_below_two_is_a_usage_error(max_length: int) -> None:
    with pytest.raises(UsageError, match="at least 2"):
        encoder(max_length=max_length)


def comparable(item: EncodedSample | str) -> object:
    return item if isinstance(item, str) else [np.asarray(part).tolist() for part in astuple(item)]


@pytest.mark.parametrize("tokenizer", [tiny_tokenizer(), tiny_tokenizer(bos=False, eos=False)], ids=["usual", "bare"])
@given(
    samples=st.lists(SAMPLES, max_size=6), max_length=st.integers(2, 12), positions=st.sampled_from(["response", "all"])
)
def test_a_batch_encodes_as_its_samples_one_by_one(
    tokenizer: Any, samples: list[Sample], max_length: int, positions: str
) -> None:
    own = encoder(tokenizer, max_length=max_length, positions=positions)
    together, alone = own.encode(samples), [own.encode([sample])[0] for sample in samples]
    assert [comparable(item) for item in together] == [comparable(item) for item in alone]
    for item in together:
        if isinstance(item, EncodedSample):
            assert 2 <= item.num_tokens <= max_length
            assert 1 <= item.num_counted < item.num_tokens
            assert not item.counted[0]
