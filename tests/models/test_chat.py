"""What counts of a conversation is what the assistant says and its end mark, under every way of writing it.

The oracle is the text that must count, written out by hand for each template.
"""

from functools import cache
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from curator.errors import UsageError
from curator.models import Encoder
from curator.models.chat import counted_tokens
from curator.types import EncodedSample, Sample
from tests.models.templates import (
    CHATML,
    DEFAULT_SYSTEM,
    GEMMA,
    LLAMA3,
    MARKED,
    MISTRAL,
    NO_PROMPT,
    THINKING,
    ZEPHYR,
)
from tests.models.tiny import tiny_tokenizer

MARKS = ["<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>",
         "<end_of_turn>", "[INST]", "[/INST]"]  # fmt: skip
SYSTEM = {"role": "system", "content": "Be brief."}
FIRST = {"role": "user", "content": "What is the capital of France?"}
SECOND = {"role": "user", "content": "And what is hot?"}
PARIS = {"role": "assistant", "content": "It is Paris."}
COLD = {"role": "assistant", "content": " not cold \n"}  # whitespace at both ends
TALK = [FIRST, PARIS, SECOND, COLD]
CALL = {"name": "add", "arguments": {"a": 2}}


@cache
def byte_level(with_marks: bool) -> PreTrainedTokenizerFast:
    tokenizer = tiny_tokenizer()
    if with_marks:
        tokenizer.add_special_tokens({"additional_special_tokens": MARKS})
    return tokenizer


@cache
def sentencepiece() -> PreTrainedTokenizerFast:
    """As Llama 2's: spaces are part of the text, one is put before it, unknown characters are bytes."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256))]
    tokenizer.pre_tokenizer = pre_tokenizers.Split("▁", "merged_with_next")
    text = "the capital of France is Paris. two and three make five; what is the opposite of hot? it is cold."
    tokenizer.train_from_iterator([text] * 4, trainers.BpeTrainer(vocab_size=400, special_tokens=special))
    tokenizer.pre_tokenizer = None
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


TOKENIZERS = {
    "bytes": lambda: byte_level(False),
    "bytes, with marks": lambda: byte_level(True),
    "pieces": sentencepiece,
}


def encoder(tokenizer: Any, template: str | None, **options: Any) -> Encoder:
    return Encoder(tokenizer, vocab_size=10_000, **{"max_length": 10_000, "chat_template": template, **options})


def encode(template: str, messages: list[dict[str, Any]], tokenizer: Any = None, tools: Any = None, **options: Any):
    """(everything that the model reads, what of it counts: a text for each run of counted tokens), or the reason."""
    tokenizer = tokenizer or byte_level(True)
    [found] = encoder(tokenizer, template, **options).encode([Sample(messages=messages, tools=tools)])
    if isinstance(found, str):
        return found
    assert isinstance(found, EncodedSample)
    runs: list[list[int]] = []
    for token, is_counted, was_counted in zip(
        found.input_ids.tolist(), found.counted, [False, *found.counted[:-1]], strict=True
    ):
        if is_counted:
            runs += [] if was_counted else [[]]
            runs[-1].append(token)
    plain = {"skip_special_tokens": False, "clean_up_tokenization_spaces": False}
    return tokenizer.decode(found.input_ids, **plain), [tokenizer.decode(run, **plain) for run in runs]


WRITTEN = {
    "ChatML": (
        CHATML, [SYSTEM, *TALK],
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
        "<|im_start|>assistant\nIt is Paris.<|im_end|>\n<|im_start|>user\nAnd what is hot?<|im_end|>\n"
        "<|im_start|>assistant\n not cold \n<|im_end|>\n",
        ["It is Paris.<|im_end|>", " not cold \n<|im_end|>"],
    ),
    "a system prompt of its own": (
        DEFAULT_SYSTEM, TALK[:2],
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\nWhat is the capital of France?"
        "<|im_end|>\n<|im_start|>assistant\nIt is Paris.<|im_end|>\n",
        ["It is Paris.<|im_end|>"],
    ),
    "Llama 3": (
        LLAMA3, [SYSTEM, *TALK],
        "<s><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|><|start_header_id|>user<|end_header_id|>"
        "\n\nWhat is the capital of France?<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\nIt is Paris."
        "<|eot_id|><|start_header_id|>user<|end_header_id|>\n\nAnd what is hot?<|eot_id|><|start_header_id|>assistant"
        "<|end_header_id|>\n\nnot cold<|eot_id|>",
        ["It is Paris.<|eot_id|>", "not cold<|eot_id|>"],
    ),
    "Gemma": (
        GEMMA, TALK,
        "<s><start_of_turn>user\nWhat is the capital of France?<end_of_turn>\n<start_of_turn>model\nIt is Paris."
        "<end_of_turn>\n<start_of_turn>user\nAnd what is hot?<end_of_turn>\n<start_of_turn>model\nnot cold"
        "<end_of_turn>\n",
        ["It is Paris.<end_of_turn>", "not cold<end_of_turn>"],
    ),
    "Mistral": (
        MISTRAL, TALK,
        "<s>[INST] What is the capital of France? [/INST] It is Paris.</s>[INST] And what is hot? [/INST] not cold</s>",
        [" It is Paris.</s>", " not cold</s>"],
    ),
    "Zephyr": (
        ZEPHYR, [SYSTEM, *TALK],
        "<|system|>\nBe brief.</s>\n<|user|>\nWhat is the capital of France?</s>\n<|assistant|>\nIt is Paris.</s>\n"
        "<|user|>\nAnd what is hot?</s>\n<|assistant|>\n not cold \n</s>\n",
        ["It is Paris.</s>", " not cold \n</s>"],
    ),
    "marks of its own": (
        MARKED, [SYSTEM, *TALK[:2]],
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\nWhat is the capital of France?<|im_end|>\n"
        "<|im_start|>assistant\nIt is Paris.<|im_end|>\n",
        ["It is Paris.<|im_end|>"],
    ),
    "reasoning left out of earlier turns": (
        THINKING,
        [
            FIRST, {"role": "assistant", "content": "<think>\nFrance.\n</think>\n\nIt is Paris."},
            SECOND, {"role": "assistant", "content": "not cold", "reasoning_content": "Opposites."},
        ],
        "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\nIt is Paris.<|im_end|>\n"
        "<|im_start|>user\nAnd what is hot?<|im_end|>\n<|im_start|>assistant\n<think>\nOpposites.\n</think>\n\nnot cold"
        "<|im_end|>\n",
        ["It is Paris.<|im_end|>", "<think>\nOpposites.\n</think>\n\nnot cold<|im_end|>"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", TOKENIZERS)
@pytest.mark.parametrize("name", WRITTEN)
def test_the_assistants_turns_count_and_nothing_else(name: str, kind: str) -> None:
    template, messages, text, counted = WRITTEN[name]
    tokenizer = TOKENIZERS[kind]()
    read, found = encode(template, messages, tokenizer)
    if kind == "pieces":  # this kind of tokenizer puts a space after every special token, and loses the first one
        read = read.replace("s> ", "s>")
        counted = [run.lstrip(" ") for run in counted]
    assert read == text
    assert found == counted


def test_every_token_counts_but_the_first_where_all_positions_do() -> None:
    read, [counted] = encode(LLAMA3, TALK, positions="all")
    assert read == "<s>" + counted


def test_tools_and_what_they_answer_do_not_count_and_calling_them_does() -> None:
    messages = [
        FIRST,
        {"role": "assistant", "content": "", "tool_calls": [CALL]},
        {"role": "tool", "content": "4"},
        PARIS,
    ]
    read, counted = encode(DEFAULT_SYSTEM, messages, tools=[{"name": "add"}])
    assert '\n{"name": "add"}<|im_end|>' in read
    assert "<tool_response>\n4\n</tool_response>" in read
    assert counted == [
        '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call><|im_end|>',
        "It is Paris.<|im_end|>",
    ]


@pytest.mark.parametrize(
    ("messages", "tools"),
    [([FIRST, {"role": "assistant", "content": "", "tool_calls": [CALL]}], None), ([FIRST, PARIS], [{"name": "add"}])],
)
def test_a_template_that_leaves_tools_out_says_so(messages: list[dict[str, Any]], tools: Any) -> None:
    reason = encode(CHATML, messages, tools=tools)
    assert "left out by the chat template" in reason


def test_earlier_turns_count_where_the_user_has_the_last_word() -> None:
    _, counted = encode(CHATML, [FIRST, PARIS, SECOND])
    assert counted == ["It is Paris.<|im_end|>"]


@pytest.mark.parametrize(
    ("template", "messages", "reason"),
    [
        (CHATML, [SYSTEM, FIRST], "no assistant turn: nothing counts, unless every token does (--positions all)"),
        (CHATML, [{"role": "user", "content": [{"type": "image"}]}, PARIS], "images: the model reads text only"),
        (GEMMA, [SYSTEM, *TALK], "the chat template refuses it: System role not supported"),
        (GEMMA, [FIRST, PARIS, PARIS], "the chat template refuses it: Conversation roles must alternate"),
        (DEFAULT_SYSTEM, [PARIS, FIRST], "the chat template cannot tell which tokens are the assistant's: what stands"),
        (CHATML, [{"role": "user", "content": "\ud800"}, PARIS], "not Unicode text: half of a surrogate pair"),
    ],
)
def test_a_conversation_that_is_no_sample_says_why(template: str, messages: list[Any], reason: str) -> None:
    found = encode(template, messages)
    assert isinstance(found, str)
    assert found.startswith(reason)


def test_one_bad_conversation_costs_no_other() -> None:
    samples = [Sample(messages=TALK), Sample(text="two and three"), Sample(messages=[FIRST]), Sample(messages=TALK[:2])]
    together = encoder(byte_level(True), CHATML).encode(samples)
    assert isinstance(together[2], str)
    for sample, found in zip(samples, together, strict=True):
        [alone] = encoder(byte_level(True), CHATML).encode([sample])
        if isinstance(found, EncodedSample):
            assert isinstance(alone, EncodedSample)
            np.testing.assert_array_equal(found.input_ids, alone.input_ids)
            np.testing.assert_array_equal(found.counted, alone.counted)
    assert not isinstance(together[0], str)


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "no chat template: give one with --chat-template FILE"),
        (NO_PROMPT, "add_generation_prompt does not write that"),
        ("{{ messages[-1]['content'] }}", "leaves out 'Alpha?'"),
        ("{% for m in messages %}{{ m['content'] }}", "refuses it"),
        (MARKED.replace("m.role == 'assistant'", "m.role == 'user'"), "marks 'Alpha?<|im_end|>"),
        (MARKED.replace("m.role == 'assistant'", "m.role == 'model'"), "marks ''"),
        (CHATML.replace("{% for", "{{ messages | length }}{% for"), "what stands before it"),
    ],
)
def test_a_template_that_cannot_tell_is_an_error_that_says_what_to_do(template: str | None, words: str) -> None:
    with pytest.raises(UsageError) as caught:
        encoder(byte_level(True), template).encode([Sample(messages=TALK)])
    assert words in str(caught.value)
    assert "--chat-template FILE" in str(caught.value)


def test_a_template_that_cannot_tell_will_do_where_every_token_counts() -> None:
    read, [counted] = encode(NO_PROMPT, [FIRST, PARIS], positions="all")
    assert read.endswith(counted)


def test_the_given_template_stands_in_for_the_tokenizers_own() -> None:
    tokenizer = tiny_tokenizer()
    tokenizer.chat_template = CHATML
    own = encode(CHATML, TALK, tokenizer)
    [found] = encoder(tokenizer, None).encode([Sample(messages=TALK)])
    assert isinstance(found, EncodedSample)
    assert tokenizer.decode(found.input_ids) == own[0]
    assert encode(LLAMA3, TALK, tokenizer)[0].startswith("<s><|start_header_id|>")


@pytest.mark.parametrize("bos", [True, False])
def test_the_template_alone_writes_the_beginning(bos: bool) -> None:
    tokenizer = tiny_tokenizer(bos=bos)
    template = "{{ '<s>' }}" + CHATML
    [found] = encoder(tokenizer, template).encode([Sample(messages=TALK)])
    assert isinstance(found, EncodedSample)
    assert (found.input_ids == 0).sum() == 1


def test_a_long_conversation_keeps_its_start() -> None:
    [whole] = encoder(byte_level(True), CHATML).encode([Sample(messages=TALK)])
    assert isinstance(whole, EncodedSample)
    first = int(np.flatnonzero(whole.counted)[0])
    for limit in range(2, whole.num_tokens + 1):
        [cut] = encoder(byte_level(True), CHATML, max_length=limit).encode([Sample(messages=TALK)])
        if limit <= first:
            assert isinstance(cut, str)
            assert cut.startswith(f"no counted token: no assistant turn within the limit of {limit} of ")
            continue
        assert isinstance(cut, EncodedSample)
        np.testing.assert_array_equal(cut.input_ids, whole.input_ids[:limit])
        np.testing.assert_array_equal(cut.counted, whole.counted[:limit])
        assert cut.is_truncated == (limit < whole.num_tokens)
    [refused] = encoder(byte_level(True), CHATML, max_length=20, on_long="reject").encode([Sample(messages=TALK)])
    assert refused == f"too long: {whole.num_tokens} tokens, the limit is 20"


def test_today_is_always_the_same_day() -> None:
    dated = "{{ strftime_now('%d %b %Y') }}\n" + CHATML
    assert encode(dated, TALK)[0].startswith("26 Jul 2024\n")


def test_a_token_counts_where_a_part_of_it_lies_in_a_span() -> None:
    offsets = [(0, 0), (0, 3), (3, 3), (3, 5), (4, 8), (8, 9), (9, 9), (9, 12)]
    spans = [(3, 4), (8, 9)]
    assert counted_tokens(offsets, spans).tolist() == [False, False, True, True, False, True, False, False]
    assert counted_tokens([], spans).tolist() == []
