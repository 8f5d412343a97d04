"""Columns get their meaning; what has none is quarantined with a reason."""

import dataclasses
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator.errors import UsageError
from curator.sources import check_fields, to_sample
from curator.sources.values import MAX_META_DEPTH
from curator.types import BadRow, Fields, Row, Sample

TEXT = Fields(text="text")
PAIR = Fields(prompt="question", response="answer")
FULL = Fields(text="text", id="id", label="label")


def nested(depth: int) -> Any:
    value: Any = "leaf"
    for _ in range(depth):
        value = [value]
    return value


def reason_of(columns: dict[str, Any], fields: Fields = TEXT) -> str:
    bad = to_sample(Row("/data/a.jsonl", 7, columns), fields)
    assert isinstance(bad, BadRow), bad
    assert (bad.source, bad.row) == ("/data/a.jsonl", 7)
    assert len(bad.excerpt) <= 200
    (bad.reason + bad.excerpt).encode()
    return bad.reason


def sample_of(columns: dict[str, Any], fields: Fields = TEXT) -> Sample:
    sample = to_sample(Row("/data/a.jsonl", 7, columns), fields)
    assert isinstance(sample, Sample), sample
    return sample


def test_columns_without_a_role_become_metadata() -> None:
    columns = {"text": "hello", "id": 3, "label": "good", "level": 2, "tags": ["a"]}
    assert sample_of(columns, FULL) == Sample(
        text="hello", key="3", label="good", meta={"level": 2, "tags": ["a"]}, source="/data/a.jsonl", row=7
    )


def test_prompt_and_response_stay_apart_and_the_prompt_may_be_empty() -> None:
    sample = sample_of({"question": "2+2=", "answer": "4"}, PAIR)
    assert (sample.text, sample.prompt, sample.response, sample.full_text) == (None, "2+2=", "4", "2+2=4")
    assert sample_of({"question": "", "answer": "4"}, PAIR).prompt == ""


def test_text_is_kept_as_it_is() -> None:
    assert sample_of({"text": "  two\n\tlines é 😀 "}).text == "  two\n\tlines é 😀 "


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({"body": "x", "n": 1}, 'no field "text": the row has "body", "n"'),
        ({}, 'no field "text": the row has no fields'),
        ({"text": None}, 'field "text" is not text: it is null'),
        ({"text": 3}, 'field "text" is not text: it is a number'),
        ({"text": True}, 'field "text" is not text: it is true or false'),
        ({"text": ["a"]}, 'field "text" is not text: it is a list'),
        ({"text": {"a": 1}}, 'field "text" is not text: it is an object'),
        ({"text": {"dropped_bytes": 9}}, 'field "text" is not text: it is binary data'),
        ({"text": ""}, 'empty text: field "text" holds nothing but whitespace'),
        ({"text": " \n\u00a0"}, 'empty text: field "text" holds nothing but whitespace'),
        ({"text": "a\0b"}, 'field "text" holds a NUL character'),
        ({"text": "a\ud800b"}, 'field "text": text is not valid Unicode (a lone surrogate)'),
        ({"text": "a", "m": "\ud800"}, 'field "m": text is not valid Unicode (a lone surrogate)'),
        ({"text": "a", "m": [{"k\0": 1}]}, 'field "m" holds a NUL character'),
        ({"text": "a", "\ud800": 1}, 'field "?": text is not valid Unicode (a lone surrogate)'),
        ({"text": "a", "m": nested(MAX_META_DEPTH + 1)}, f'field "m" is nested more than {MAX_META_DEPTH} levels deep'),
    ],
)
def test_a_row_without_usable_text_says_why(columns: dict[str, Any], reason: str) -> None:
    assert reason_of(columns) == reason


def test_a_response_must_hold_text() -> None:
    assert reason_of({"question": "q", "answer": " "}, PAIR).startswith('empty text: field "answer"')
    assert reason_of({"question": None, "answer": "a"}, PAIR) == 'field "question" is not text: it is null'
    assert reason_of({"answer": "a"}, PAIR) == 'no field "question": the row has "answer"'


@pytest.mark.parametrize(("value", "key"), [("a-1", "a-1"), (0, "0"), (2**70, str(2**70)), (" a ", " a ")])
def test_an_id_is_text_or_an_integer(value: Any, key: str) -> None:
    assert sample_of({"text": "x", "id": value}, FULL).key == key


@pytest.mark.parametrize(
    ("columns", "reason"),
    [
        ({}, 'no field "id"'),
        ({"id": None}, "it is null, and an id is text or an integer"),
        ({"id": 1.5}, "it is a number, and an id is text or an integer"),
        ({"id": True}, "it is true or false"),
        ({"id": " "}, "empty id"),
        ({"id": "\ud800"}, "not valid Unicode"),
    ],
)
def test_an_id_that_is_none_says_why(columns: dict[str, Any], reason: str) -> None:
    assert reason in reason_of({"text": "x", **columns}, FULL)


@pytest.mark.parametrize(
    ("value", "label"),
    [("good", "good"), (" x ", " x "), (3, "3"), (True, "true"), (0.5, "0.5"), (0, "0"), (None, None), ("", None)],
)
def test_a_label_is_text_or_its_json(value: Any, label: str | None) -> None:
    assert sample_of({"text": "x", "id": 1, "label": value}, FULL).label == label


def test_a_label_may_be_absent_but_not_a_list() -> None:
    assert sample_of({"text": "x", "id": 1}, FULL).label is None
    assert 'field "label" is not a label: it is a list' in reason_of({"text": "x", "id": 1, "label": ["a"]}, FULL)


def test_nesting_up_to_the_limit_is_kept() -> None:
    value = nested(MAX_META_DEPTH)
    assert sample_of({"text": "x", "m": value}).meta == {"m": value}


def test_a_row_nested_deeper_than_json_can_write_is_still_a_bad_row() -> None:
    assert "nested more than" in reason_of({"text": "x", "m": nested(5000)})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["text", "id", "label", "a", "b"]), JSON), st.sampled_from([TEXT, FULL]))
def test_whatever_becomes_a_sample_can_be_stored(columns: dict[str, Any], fields: Fields) -> None:
    result = to_sample(Row("a", 0, columns), fields)
    if isinstance(result, BadRow):
        (result.reason + result.excerpt).encode()
        return
    stored = json.dumps([result.text, result.key, result.label, result.meta], ensure_ascii=False)
    stored.encode()
    assert "\\u0000" not in stored
    assert result.full_text.strip()


def test_no_choice_means_the_field_text() -> None:
    assert check_fields(Fields(id="i", label="l")) == Fields(text="text", id="i", label="l", shape="text")
    assert check_fields(PAIR) == dataclasses.replace(PAIR, shape="prompt")
    assert check_fields(FULL) is FULL


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (Fields(text="t", prompt="p", response="r"), "--text-field excludes --prompt-field and --response-field"),
        (Fields(text="t", response="r"), "--text-field excludes"),
        (Fields(prompt="p"), "--prompt-field needs --response-field"),
        (Fields(response="r"), "--response-field needs --prompt-field"),
    ],
)
def test_a_wrong_choice_names_the_options(fields: Fields, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        check_fields(fields)
