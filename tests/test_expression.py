"""Expressions over saved queries are linear combinations, and everything else is refused with its reason."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from curator.errors import UsageError
from curator.query.expression import parse_expression


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("good", {"good": 1.0}),
        ("math_val - 0.5 * toxic_val", {"math_val": 1.0, "toxic_val": -0.5}),
        ("-a + 2*(b - a/4) * 3", {"a": -2.5, "b": 6.0}),
        ("a - b + b", {"a": 1.0}),
        ("1e-3*a", {"a": 0.001}),
        ("  (a)\t", {"a": 1.0}),
    ],
)
def test_the_coefficient_of_each_name(text: str, expected: dict[str, float]) -> None:
    assert parse_expression(text) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "write it like"),
        ("a -", "invalid syntax"),
        ("a * b", "two queries cannot be multiplied"),
        ("1 / a", "a query cannot divide"),
        ("a / (1 - 1)", "division by zero"),
        ("a + 1", "adds the number 1"),
        ("a - a", "leaves no query"),
        ("3 - 3", "leaves no query"),
        ("a ** 2", "is none of"),
        ("f(a)", "is none of"),
        ("a if b else c", "is none of"),
        ("True * a", "is none of"),
        ("'a'", "is none of"),
        ("1e400 * a", "not finite"),
        ("(" * 400 + "a" + ")" * 400, "nested"),
        ("-" * 1900 + "a", "write it like"),
        ("a" * 3000, "at most"),
    ],
)
def test_what_is_not_linear_is_refused(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        parse_expression(text)


@given(st.text(max_size=40))
def test_no_text_does_anything_but_parse_or_be_refused(text: str) -> None:
    with contextlib.suppress(UsageError):
        assert parse_expression(text)
