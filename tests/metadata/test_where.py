"""The filter language: what it selects on a real database, against a plain Python reading of the same expression."""

import json
import re
from collections.abc import Callable, Iterator
from functools import partial
from operator import itemgetter
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import JSON, Boolean, Column, Engine, Float, Integer, MetaData, String, Table, create_engine, select
from sqlalchemy.dialects import postgresql
from sqlalchemy.types import DateTime

from curator.errors import FilterError
from curator.metadata.where import compile_where
from curator.metadata.where_syntax import MAX_CONDITIONS, MAX_DEPTH, MAX_LENGTH

TABLE = Table(
    "samples",
    MetaData(),
    Column("id", Integer, primary_key=True),
    Column("key", String),
    Column("label", String),
    Column("text", String, nullable=False),
    Column("num_tokens", Integer, nullable=False),
    Column("score", Float),
    Column("is_truncated", Boolean, nullable=False),
    Column("created_at", DateTime),
    Column("meta", JSON, nullable=False),
)
COLUMNS = {column.name: column for column in TABLE.c if column.name not in ("id", "meta")}
META_FIELDS = ["level", "lang", "flag", "the name", "and", 'qu"o\\te', "größe", "label", "mixed"]
TEXTS = ["", "x", "X", "k1", "100%", "a_b", "a/b", "back\\slash", 'quo"te', "it's", "two\nlines", "Größe", "3", "true"]
NUMBERS = [-3, 0, 1, 2, 3, 0.25, -1.5, 3.0, 1e18, 200, 2**62, -(2**63)]
MIXED = [*TEXTS, *NUMBERS, True, False, None, [1], {"a": 1}, "absent"]


def make_rows() -> list[dict[str, Any]]:
    rows = []
    for number in range(60):
        meta = {name: MIXED[(number * 7 + place * 11) % len(MIXED)] for place, name in enumerate(META_FIELDS)}
        rows.append(
            {
                "key": None if number % 5 == 0 else f"k{number}",
                "label": [None, *TEXTS[1:]][number % len(TEXTS)],
                "text": TEXTS[number % len(TEXTS)] * (number % 3 + 1),
                "num_tokens": (number * 37) % 211,
                "score": [None, -1.5, 0.0, 0.25, 3.0][number % 5],
                "is_truncated": number % 3 == 0,
                "created_at": None,
                "meta": {name: value for name, value in meta.items() if value != "absent"},
            }
        )
    return rows


ROWS = make_rows()


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    engine = create_engine("sqlite://")
    TABLE.metadata.create_all(engine)
    with engine.begin() as connection:
        connection.execute(TABLE.insert(), ROWS)
    yield engine
    engine.dispose()


def matching(engine: Engine, expression: str) -> set[int]:
    """The positions in ROWS that the database selects."""
    query = select(TABLE.c.id).where(compile_where(expression, COLUMNS, TABLE.c.meta, META_FIELDS))
    with engine.connect() as connection:
        return {row_id - 1 for row_id in connection.scalars(query)}


# The oracle: a strategy draws an expression together with the function that says which rows it means.

Predicate = Callable[[dict[str, Any]], bool]
Drawn = tuple[str, Predicate]


def quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def written(value: Any) -> str:
    return quoted(value) if isinstance(value, str) else str(value).lower() if isinstance(value, bool) else repr(value)


def ascii_lower(text: str) -> str:
    return "".join(char.lower() if char.isascii() else char for char in text)


def kind_of(value: Any) -> str:
    if isinstance(value, bool):
        return "boolean"
    return "text" if isinstance(value, str) else "number" if isinstance(value, int | float) else "other"


def holds(operator: str, left: Any, right: Any) -> bool:
    if operator == "in":
        return any(holds("=", left, value) for value in right)
    if operator == "!=":
        return not holds("=", left, right)
    if kind_of(left) != kind_of(right):
        return False
    return {
        "=": lambda: left == right,
        "<": lambda: left < right,
        "<=": lambda: left <= right,
        ">": lambda: left > right,
        ">=": lambda: left >= right,
        "contains": lambda: ascii_lower(right) in ascii_lower(left),
    }[operator]()


ALTERNATIVES = {"=": ["=", "=="], "!=": ["!=", "<>"], "in": ["in", "IN"], "contains": ["contains", "Contains"]}


@st.composite
def conditions(draw: st.DrawFn) -> Drawn:
    name, get, kinds = draw(st.sampled_from(fields()))
    if draw(st.integers(0, 5)) == 0:
        is_null = draw(st.booleans())
        return f"{name} is {'' if is_null else 'NOT '}null", lambda row: (get(row) is None) == is_null
    kind = draw(st.sampled_from(kinds))
    values = st.sampled_from({"text": TEXTS, "number": NUMBERS, "boolean": [True, False]}[kind])
    operators = ["=", "!=", "in"] + ([] if kind == "boolean" else ["<", "<=", ">", ">="])
    operator = draw(st.sampled_from(operators + (["contains"] if kind == "text" else [])))
    spelled = draw(st.sampled_from(ALTERNATIVES.get(operator, [operator])))
    if operator == "in":
        items = values if len(kinds) == 1 else st.sampled_from([*TEXTS, *NUMBERS, True, False])
        value: Any = draw(st.lists(items, max_size=4))
        return f"{name} {spelled} [{', '.join(map(written, value))}]", lambda row: holds("in", get(row), value)
    value = draw(values)
    return f"{name} {spelled} {written(value)}", lambda row: holds(operator, get(row), value)


def fields() -> list[tuple[str, Callable[[dict[str, Any]], Any], list[str]]]:
    kinds = {"key": "text", "label": "text", "text": "text", "num_tokens": "number", "score": "number"}
    kinds["is_truncated"] = "boolean"
    found: list[Any] = [(name, itemgetter(name), [kind]) for name, kind in kinds.items()]
    for name in META_FIELDS:
        spellings = [f"meta[{quoted(name)}]", f"meta.`{name}`"]
        spellings += [f"`{name}`"] if name not in COLUMNS else []
        spellings += [f"meta.{name}"] if name.isidentifier() else []
        get = partial(lambda name, row: row["meta"].get(name), name)
        found.extend((spelling, get, ["text", "number", "boolean"]) for spelling in spellings)
    return found


def joined(inner: st.SearchStrategy[Drawn]) -> st.SearchStrategy[Drawn]:
    pairs = st.tuples(inner, inner)
    return st.one_of(
        inner.map(lambda x: (f"not ({x[0]})", lambda row: not x[1](row))),
        pairs.map(lambda p: (f"({p[0][0]}) and ({p[1][0]})", lambda row: p[0][1](row) and p[1][1](row))),
        pairs.map(lambda p: (f"({p[0][0]} OR {p[1][0]})", lambda row: p[0][1](row) or p[1][1](row))),
    )


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(drawn=st.recursive(conditions(), joined, max_leaves=6))
def test_database_selects_what_the_expression_means(engine: Engine, drawn: Drawn) -> None:
    expression, predicate = drawn
    assert matching(engine, expression) == {number for number, row in enumerate(ROWS) if predicate(row)}


@settings(max_examples=100, deadline=None)
@given(drawn=st.recursive(conditions(), joined, max_leaves=6))
def test_every_expression_compiles_for_postgresql(drawn: Drawn) -> None:
    condition = compile_where(drawn[0], COLUMNS, TABLE.c.meta, META_FIELDS)
    sql = str(select(TABLE.c.id).where(condition).compile(dialect=postgresql.dialect()))
    assert "json_each" not in sql


@pytest.mark.parametrize(
    ("expression", "predicate"),
    [
        ("label = 'x' and num_tokens < 200", lambda row: row["label"] == "x" and row["num_tokens"] < 200),
        (
            "label = 'x' or label = '3' and score < 0",
            lambda row: row["label"] == "x" or (holds("<", row["score"], 0) and row["label"] == "3"),
        ),
        ("NOT label = 'x' AND is_truncated = TRUE", lambda row: row["label"] != "x" and row["is_truncated"]),
        ("key not in ('k1', \"k2\")", lambda row: row["key"] not in ("k1", "k2")),
        ("text not contains 'X'", lambda row: "x" not in row["text"].lower()),
        (r"text contains 'it\'s'", lambda row: "it's" in row["text"]),
        (r'text contains "two\nlines"', lambda row: "two\nlines" in row["text"]),
        (r'text contains "Gr\u00f6"', lambda row: "Grö" in row["text"]),
        ("text contains '%'", lambda row: "%" in row["text"]),
        ("text contains '_'", lambda row: "_" in row["text"]),
        ("num_tokens < 1e30 and num_tokens > -99999999999999999999", lambda row: True),
        ("num_tokens <= 1.5", lambda row: row["num_tokens"] <= 1),
    ],
)
def test_examples_select_what_they_say(engine: Engine, expression: str, predicate: Predicate) -> None:
    expected = {number for number, row in enumerate(ROWS) if predicate(row)}
    assert matching(engine, expression) == expected


def test_a_bare_name_is_the_column_and_meta_name_the_metadata(engine: Engine) -> None:
    by_column, by_meta = matching(engine, "label = 'X'"), matching(engine, "meta.label = 'X'")
    assert by_column == {number for number, row in enumerate(ROWS) if row["label"] == "X"}
    assert by_meta == {number for number, row in enumerate(ROWS) if row["meta"].get("label") == "X"}


def test_a_condition_and_its_negation_split_the_rows(engine: Engine) -> None:
    for condition in ("label = 'x'", "score < 1", "meta.level >= 1", "meta.flag = true", "key in ['k1']"):
        chosen, rest = matching(engine, condition), matching(engine, f"not {condition}")
        assert chosen | rest == set(range(len(ROWS)))
        assert not chosen & rest


@pytest.mark.parametrize(
    "text", ["' or 1=1 --", '"; drop table samples; --', "\\' or \\'1\\'=\\'1", "%' or '%'='", "$.level", ":param", "?"]
)
def test_injection_attempts_are_inert(engine: Engine, text: str) -> None:
    assert matching(engine, f"label = {quoted(text)}") == set()
    assert matching(engine, f"text contains {quoted(text)}") == set()
    condition = compile_where(f"meta[{quoted(text)}] = {quoted(text)}", COLUMNS, TABLE.c.meta, [text])
    with engine.connect() as connection:
        assert connection.scalars(select(TABLE.c.id).where(condition)).all() == []
    assert text not in str(condition.compile(dialect=postgresql.dialect()))
    assert len(matching(engine, "num_tokens >= 0")) == len(ROWS)


@pytest.mark.parametrize(
    ("expression", "message"),
    [
        ("num_tokens = 'many'", "num_tokens is a number, and the filter compares it with the text 'many'"),
        ("num_tokens = true", "num_tokens is a number, and the filter compares it with true"),
        ("num_tokens contains 'x'", "num_tokens is a number"),
        ("label < 3", "label is text, and the filter compares it with the number 3"),
        ("label in ['x', 3]", "label is text"),
        ("is_truncated = 1", "is_truncated is true or false, and the filter compares it with the number 1"),
        ("is_truncated < true", "use = or !="),
        ("meta.flag >= false", "use = or !="),
        ("created_at > '2024-01-01'", "created_at is of type datetime, and can be tested for null only"),
        ("label = null", "`is null`"),
        ("labl = 'x'", "unknown field labl in the filter: did you mean label?"),
        ("meta.levl = 1", "did you mean meta.level?"),
        ("meta.num_tokens = 1", "did you mean num_tokens?"),
        ("`the nam` = 1", 'did you mean meta["the name"]?'),
        ("zzzz = 1", "known: key, label, text, num_tokens, score, is_truncated, created_at, meta.and, meta.flag"),
        ("foo.bar = 1", "meta.name"),
        ("label =", "at character 8: the filter ends, expected a value (text in quotes, a number, true or false)"),
        ("label = 'x' num_tokens", "at character 13: found 'num_tokens', expected the end, `and` or `or`"),
        ("(label = 'x'", 'the filter ends, expected ")"'),
        ("label = 'x", "quote at character 9 that is never closed"),
        ("label = `x`", "found '`x`'"),
        ("= 3", "at character 1: found '= 3', expected \"(\", a field name or `not`"),
        ("label\n=\n;", "at character 9: found ';'"),
        (r"label = 'a\qb'", r"unknown escape \q"),
        (r"label = '\u0000'", "a character that no sample can hold"),
        (r"label = '\ud800'", "a character that no sample can hold"),
        ("num_tokens = 1e999", "out of range"),
        ("num_tokens = " + "9" * 5000, "out of range"),
        ("num_tokens = 12abc", "found '12abc'"),
        ("  ", "the filter is empty"),
        ("label = '" + "x" * MAX_LENGTH + "'", "10,000 is the most"),
        ("not (key = 'k' and " * 8 + "label = 'x'" + ")" * 8, "nested more than 16 levels"),
        ("(label = 'x' or (num_tokens = 1 and " * 250 + "key = 'k'" + "))" * 250, "nested more than 16 levels"),
        (" or ".join(["key = 'k'"] * (MAX_CONDITIONS + 1)), "use in [...]"),
    ],
)
def test_a_wrong_expression_is_explained_in_one_line(expression: str, message: str) -> None:
    with pytest.raises(FilterError, match=re.escape(message)) as caught:
        compile_where(expression, COLUMNS, TABLE.c.meta, META_FIELDS)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_an_unknown_field_without_any_metadata_says_so() -> None:
    with pytest.raises(FilterError, match="no sample has metadata"):
        compile_where("meta.x = 1", COLUMNS, TABLE.c.meta, [])


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("ab1 .'\"`()[],=<>!-\\\nnotandinulmetaé"), max_size=40))
def test_any_text_compiles_or_is_a_filter_error(expression: str) -> None:
    try:
        compile_where(expression, COLUMNS, TABLE.c.meta, META_FIELDS)
    except FilterError as error:
        assert "\n" not in str(error)  # noqa: PT017 - most of these texts are errors, some are expressions


def test_the_largest_expressions_run(engine: Engine) -> None:
    everything = set(range(len(ROWS)))
    assert matching(engine, "(" * 4000 + "num_tokens >= 0" + ")" * 4000) == everything
    assert matching(engine, "not " * 2000 + "num_tokens >= 0") == everything
    assert matching(engine, " or ".join(["meta.level != 9"] * MAX_CONDITIONS)) == everything
    assert matching(engine, " and ".join(["not meta.level = 9"] * MAX_CONDITIONS)) == everything
    leaf = "meta.level not in ['a', 9, true]"
    for start in ("(meta.level = 9 or (num_tokens >= 0 and ", "(not meta.level in ['a', true] or (not key = 'k' and "):
        levels = (MAX_DEPTH - 2) // 2
        assert matching(engine, start * levels + leaf + "))" * levels) <= everything  # SQLite's parser takes it
    assert matching(engine, f"num_tokens in [{', '.join(['1000'] * 1600)}]") == set()
    assert matching(engine, f"text contains {quoted('%😀' * 4000)}") == set()
