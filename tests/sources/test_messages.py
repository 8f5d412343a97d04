"""Conversations of every shape become the same turns; what is no conversation says why."""

import json
from typing import Any

import pytest

from curator.sources import check_fields, to_sample
from curator.types import BadRow, Fields, Row, Sample

CHAT = check_fields(Fields(messages="messages"))
ASKED = [{"role": "user", "content": "Two and two?"}, {"role": "assistant", "content": "Four."}]


def read(value: Any, **columns: Any) -> Sample | BadRow:
    return to_sample(Row("/a.jsonl", 0, {"messages": value} | columns), CHAT)


def turns(value: Any) -> Any:
    sample = read(value)
    assert isinstance(sample, Sample), sample
    return sample.messages


@pytest.mark.parametrize(
    "value",
    [
        ASKED,
        json.dumps(ASKED),
        [{"from": "human", "value": "Two and two?"}, {"from": "gpt", "value": "Four."}],
        [{"from": " Human ", "value": "Two and two?"}, {"from": "chatgpt", "value": "Four."}],
        # A table's turns have the columns of all turns.
        [{"role": "user", "content": "Two and two?", "tool_calls": None, "name": None}, ASKED[1]],
        [ASKED[0], {"role": "assistant", "content": [{"type": "text", "text": "Four."}], "tool_calls": []}],
        [{"role": "user", "content": [{"type": "text", "text": "Two and "}, "two?"]}, ASKED[1]],
    ],
)
def test_every_way_of_writing_it_is_one_conversation(value: Any) -> None:
    assert turns(value) == ASKED


def test_what_a_turn_holds_besides_stays_for_the_template() -> None:
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 2}}}
    value = [
        {"role": "system", "content": ""},
        ASKED[0],
        {"role": "assistant", "content": None, "reasoning_content": "add them", "tool_calls": [call]},
        {"role": "tool", "name": "add", "content": "4"},
        ASKED[1],
    ]
    found = turns(value)
    assert found[2] == {"role": "assistant", "content": "", "reasoning_content": "add them", "tool_calls": [call]}
    assert (found[0], found[1], found[3:]) == (value[0], value[1], value[3:])
    roles = [turn["role"] for turn in turns([{"from": name, "value": "x"} for name in ("function", "observation")])]
    assert roles == ["tool", "tool"]


def test_a_list_of_tools_beside_it_is_what_it_may_call() -> None:
    tool = {"type": "function", "function": {"name": "add", "description": None}}
    sample = read(ASKED, tools=[tool], source="x")
    assert isinstance(sample, Sample)
    assert sample.tools == [{"type": "function", "function": {"name": "add"}}]
    assert sample.meta == {"source": "x"}
    other = read(ASKED, tools="a hammer")
    assert isinstance(other, Sample)
    assert (other.tools, other.meta) == (None, {"tools": "a hammer"})


def test_the_text_to_show_names_the_roles() -> None:
    sample = read([{"role": "system", "content": "Be brief."}, *ASKED])
    assert isinstance(sample, Sample)
    assert sample.full_text == "system: Be brief.\nuser: Two and two?\nassistant: Four."
    image = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What is it?"}]}
    seen = Sample(messages=[image, ASKED[1]])
    assert seen.full_text == "user: [image] What is it?\nassistant: Four."


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("hello", 'field "messages" is not a conversation: it is text, and a list of turns is needed'),
        (None, 'field "messages" is not a conversation: it is null, and a list of turns is needed'),
        ({"role": "user"}, 'field "messages" is not a conversation: it is an object, and a list of turns is needed'),
        ([], 'empty conversation: field "messages" has no turns'),
        (["hello"], 'not a turn: number 1 is text, and an object with "role" is needed'),
        ([ASKED], 'not a turn: number 1 is a list, and an object with "role" is needed'),
        ([{}], 'no role: turn 1 has nothing, and needs "role" and "content", or "from" and "value"'),
        ([*ASKED, {"content": "x"}], 'no role: turn 3 has "content", and needs "role" and "content", or "from"'),
        ([{"role": "narrator", "content": "x"}], "unknown role: turn 1 has 'narrator', and known are system,"),
        ([{"from": ["gpt"], "value": "x"}], "unknown role: turn 1 has 'a list', and known are system,"),
        ([{"role": "user", "content": None}], "content is not text: in turn 1 (user) it is null"),
        ([{"role": "user", "content": 5}], "content is not text: in turn 1 (user) it is a number"),
        ([{"from": "gpt", "value": {"text": "x"}}], "content is not text: in turn 1 (assistant) it is an object"),
        ([{"role": "user", "content": [{"type": "text"}]}], "content part is neither text nor image: in turn 1 (user)"),
        ([{"role": "user", "content": [{"type": "audio"}]}], "content part is neither text nor image: in turn 1"),
        ([{"role": "user", "content": []}], "empty turn: turn 1 (user) holds nothing but whitespace"),
        ([ASKED[0], {"role": "assistant", "content": " "}], "empty turn: turn 2 (assistant) holds nothing"),
        ([{"role": "user", "content": "\0"}], 'field "messages" holds a NUL character'),
        ([{"role": "user", "content": "\ud800"}], 'field "messages": text is not valid Unicode'),
    ],
)  # fmt: skip
def test_what_is_no_conversation_says_why(value: Any, reason: str) -> None:
    bad = read(value)
    assert isinstance(bad, BadRow)
    assert bad.reason.startswith(reason)
