"""Columns tell what rows are, a named column or shape overrides them, and every shape reads them as it should."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from curator.errors import UsageError
from curator.sources import check_fields, content_hash, describe, settle_fields, to_sample, to_samples
from curator.types import BadRow, Fields, Row, Sample
from tests.sources.files import write_jsonl

ASKED = {"role": "user", "content": "2 + 2?"}
RIGHT = {"role": "assistant", "content": "4"}
WRONG = {"role": "assistant", "content": "5"}
SHARE = [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}]
TURNS = [ASKED, RIGHT]


def settle(tmp_path: Path, row: dict[str, Any], known: tuple[Fields, ...] = (), **fields: Any) -> Fields:
    return settle_fields([write_jsonl(tmp_path / "data.jsonl", [row] * 3)], Fields(**fields), known)


def read(tmp_path: Path, row: dict[str, Any], **fields: Any) -> list[Sample]:
    found = to_samples(Row("/a.jsonl", 0, row), settle(tmp_path, row, **fields))
    assert isinstance(found, list), found
    return found


@pytest.mark.parametrize(
    ("row", "reading", "content"),
    [
        ({"messages": TURNS}, "chat: 3 conversations (messages)", {"messages": TURNS}),
        ({"conversations": SHARE, "text": "x"}, "chat: 3 conversations (conversations)", {"messages": TURNS}),
        ({"messages": json.dumps(TURNS)}, "chat: 3 conversations (messages)", {"messages": TURNS}),
        ({"prompt": [ASKED], "completion": [RIGHT]}, "chat: 3 conversations (prompt, completion)", {"messages": TURNS}),
        ({"prompt": "a", "completion": "b", "text": "ab"}, "prompt: 3 prompts with responses (prompt, completion)",
         {"prompt": "a", "response": "b"}),
        ({"prompt": "a", "response": "b"}, "prompt: 3 prompts with responses (prompt, response)",
         {"prompt": "a", "response": "b"}),
        ({"instruction": "a", "input": "x", "output": "b", "text": "?"},
         "prompt: 3 prompts with responses (instruction, input, output)", {"prompt": "a\n\nx", "response": "b"}),
        ({"instruction": "a", "input": "", "output": "b"},
         "prompt: 3 prompts with responses (instruction, input, output)", {"prompt": "a", "response": "b"}),
        ({"instruction": "a", "output": "b"}, "prompt: 3 prompts with responses (instruction, output)",
         {"prompt": "a", "response": "b"}),
        ({"question": "a", "answer": "b"}, "prompt: 3 prompts with responses (question, answer)",
         {"prompt": "a", "response": "b"}),
        ({"text": "a", "messages": 3, "question": 1}, "text: 3 texts (text)", {"text": "a"}),
    ],
)  # fmt: skip
def test_columns_tell_what_rows_are(tmp_path: Path, row: dict[str, Any], reading: str, content: dict[str, Any]) -> None:
    assert describe(settle(tmp_path, row), 3) == reading
    [sample] = read(tmp_path, row)
    empty = {"text": None, "prompt": None, "response": None, "messages": None}
    assert {name: getattr(sample, name) for name in empty} == empty | content


def test_what_is_nothing_known_is_read_as_text_and_says_so(tmp_path: Path) -> None:
    bad = to_sample(Row("/a.jsonl", 0, {"body": "x"}), settle(tmp_path, {"body": "x"}))
    assert isinstance(bad, BadRow)
    assert bad.reason == 'no field "text": the row has "body"'


def test_recognised_is_the_same_sample_as_named(tmp_path: Path) -> None:
    row = {"question": "a", "answer": "b", "source": "x"}
    [found] = read(tmp_path, row)
    named = to_sample(Row("/a.jsonl", 0, row), check_fields(Fields(prompt="question", response="answer")))
    assert found == named
    assert content_hash(found) == content_hash(Sample(prompt="a", response="b"))


@pytest.mark.parametrize(
    ("shape", "content"),
    [
        ("chat", {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}),
        ("prompt", {"prompt": "a", "response": "b"}),
        ("text", {"text": "ab"}),
    ],
)
@pytest.mark.parametrize("named", [{}, {"prompt": "question", "response": "answer"}])
def test_one_row_can_be_read_in_three_shapes(
    tmp_path: Path, shape: Any, content: dict[str, Any], named: dict[str, str]
) -> None:
    [sample] = read(tmp_path, {"question": "a", "answer": "b"}, shape=shape, **named)
    assert sample == Sample(**content, source="/a.jsonl")


def test_the_columns_of_a_dataset_come_before_what_columns_say(tmp_path: Path) -> None:
    known = (Fields(text="absent"), Fields(prompt="q", response="a", label="l", shape="chat"), Fields(text="a"))
    row = {"q": "1", "a": "2", "messages": TURNS}
    assert settle(tmp_path, row, known, id="q") == Fields(prompt="q", response="a", id="q", shape="chat")
    assert settle(tmp_path, row, known, shape="text") == Fields(text="a")
    assert settle(tmp_path, row, known, messages="messages") == Fields(messages="messages", shape="chat")


@pytest.mark.parametrize(
    "fields",
    [
        {"messages": "m", "text": "t"},
        {"messages": "m", "prompt": "p", "response": "r"},
        {"messages": "m", "shape": "text"},
        {"text": "t", "shape": "chat"},
        {"prompt": "p"},
        {"shape": "preference", "text": "t"},
        {"shape": "table", "text": "t"},
    ],
)
def test_roles_that_exclude_each_other_are_an_error(fields: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="--"):
        check_fields(Fields(**fields))


@pytest.mark.parametrize("shape", ["chat", "prompt", "preference"])
def test_a_shape_that_no_columns_have_is_an_error(tmp_path: Path, shape: Any) -> None:
    with pytest.raises(UsageError, match=f'have the shape {shape}: the first row has "text"; name them with'):
        settle(tmp_path, {"text": "a"}, shape=shape)


PAIRS = [
    ({"prompt": "p", "chosen": "c", "rejected": "r"}, {"prompt": "p", "response": "c"},
     {"prompt": "p", "response": "r"}),
    ({"chosen": "Q: 2 + 2? A: 4", "rejected": "Q: 2 + 2? A: 5"}, {"prompt": "Q: 2 + 2? A: ", "response": "4"},
     {"prompt": "Q: 2 + 2? A: ", "response": "5"}),
    ({"chosen": "same word", "rejected": "same word more"}, {"prompt": "same ", "response": "word"},
     {"prompt": "same ", "response": "word more"}),
    ({"chosen": "yes", "rejected": "yellow"}, {"text": "yes"}, {"text": "yellow"}),
    ({"chosen": TURNS, "rejected": [ASKED, WRONG]}, {"messages": TURNS}, {"messages": [ASKED, WRONG]}),
    ({"prompt": "2 + 2?", "chosen": TURNS, "rejected": [ASKED, WRONG]}, {"messages": TURNS},
     {"messages": [ASKED, WRONG]}),
    ({"prompt": "2 + 2?", "chosen": [RIGHT], "rejected": [WRONG]}, {"messages": TURNS}, {"messages": [ASKED, WRONG]}),
    ({"prompt": [ASKED], "chosen": [RIGHT], "rejected": [WRONG]}, {"messages": TURNS}, {"messages": [ASKED, WRONG]}),
    ({"prompt": [ASKED], "chosen": "4", "rejected": "5"}, {"messages": TURNS}, {"messages": [ASKED, WRONG]}),
]  # fmt: skip


@pytest.mark.parametrize(("row", "chosen", "rejected"), PAIRS)
def test_a_preference_pair_is_two_samples(
    tmp_path: Path, row: dict[str, Any], chosen: dict[str, Any], rejected: dict[str, Any]
) -> None:
    found = read(tmp_path, row | {"id": 7, "source": "x"}, id="id")
    for sample, content, side in zip(found, (chosen, rejected), ("chosen", "rejected"), strict=True):
        assert dataclasses.replace(sample, pair=None, meta={}) == Sample(**content, key=f"7/{side}", source="/a.jsonl")
        assert sample.meta == {"source": "x", "pair": "7", "side": side}
        assert sample.pair == ("7", side)


def test_a_pair_without_an_id_shares_what_its_contents_say(tmp_path: Path) -> None:
    row = {"prompt": "p", "chosen": "c", "rejected": "r"}
    one, other = read(tmp_path, row)
    assert one.pair is not None
    assert (one.key, other.pair) == (None, (one.pair[0], "rejected"))
    # The same answer in another pair is another sample: it may have been rejected there.
    third, fourth = read(tmp_path, row | {"chosen": "r", "rejected": "s"})
    assert len({content_hash(sample) for sample in (one, other, third, fourth)}) == 4
    assert read(tmp_path, row) == [one, other]
    [taken, _] = read(tmp_path, row | {"side": "left"})
    assert taken.meta == {"side": "left", "curator_pair": one.pair[0], "curator_side": "chosen"}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"chosen": "a", "rejected": "a"}, 'equal pair: fields "chosen" and "rejected" hold the same'),
        ({"chosen": "a", "rejected": " "}, 'empty text: field "rejected" holds nothing but whitespace'),
        ({"chosen": "a", "rejected": 3}, 'field "rejected" is neither text nor a conversation: it is a number'),
        ({"chosen": "a"}, 'no field "rejected": the row has "chosen"'),
        ({"chosen": TURNS, "rejected": []}, 'empty conversation: field "rejected" has no turns'),
        ({"chosen": TURNS, "rejected": None}, 'field "rejected" is not a conversation: it is null'),
        ({"prompt": 5, "chosen": "a", "rejected": "b"}, 'field "prompt" is not text: it is a number'),
        ({"chosen": "a\0", "rejected": "b"}, 'field "chosen" holds a NUL character'),
    ],
)
def test_a_pair_that_is_none_says_why(row: dict[str, Any], reason: str) -> None:
    bad = to_samples(Row("/a.jsonl", 0, row), Fields(chosen="chosen", rejected="rejected", prompt="prompt"))
    assert isinstance(bad, BadRow)
    assert bad.reason.startswith(reason)
