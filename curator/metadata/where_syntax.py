"""The syntax of --where: text becomes a small tree of conditions, or one line that says where it went wrong."""

import json
import math
import re
from dataclasses import dataclass
from functools import cache
from typing import cast

from lark import Lark, Token, Transformer, UnexpectedCharacters, UnexpectedInput, UnexpectedToken, v_args

from curator.errors import FilterError

__all__ = [
    "MAX_CONDITIONS",
    "MAX_DEPTH",
    "MAX_LENGTH",
    "Comparison",
    "Condition",
    "Field",
    "Junction",
    "Negation",
    "Scalar",
    "parse",
]

MAX_LENGTH = 10_000
# SQLite refuses an expression more than 1,000 operators deep, and a chain of `or` is as deep as it is long. Its parser
# has a stack of 100 symbols (before 3.46), which 26 levels of and/or overflow; 16 leave room for the query around them.
MAX_CONDITIONS = 200
MAX_DEPTH = 16

Scalar = str | int | float | bool


@dataclass(frozen=True, slots=True)
class Field:
    """A name as written: `is_meta` where it said meta.name."""

    name: str
    is_meta: bool = False

    @property
    def shown(self) -> str:
        """The field as one would write it."""
        is_plain = re.fullmatch(r"[^\W\d]\w*", self.name) is not None
        if self.is_meta:
            return f"meta.{self.name}" if is_plain else f"meta[{json.dumps(self.name, ensure_ascii=False)}]"
        return self.name if is_plain else f"`{self.name}`"


@dataclass(frozen=True, slots=True)
class Comparison:
    """`operator` is one of = != < <= > >= in contains, or "is null", which has no values."""

    field: Field
    operator: str
    values: tuple[Scalar, ...] = ()


@dataclass(frozen=True, slots=True)
class Negation:
    """The rows that `part` does not match."""

    part: "Condition"


@dataclass(frozen=True, slots=True)
class Junction:
    """Two or more parts joined by "and" or by "or"."""

    operator: str
    parts: tuple["Condition", ...]


Condition = Comparison | Negation | Junction

_GRAMMAR = r"""
?start: disjunction
?disjunction: conjunction (_OR conjunction)*
?conjunction: negation (_AND negation)*
?negation: _NOT negation -> negated
    | "(" disjunction ")"
    | condition

?condition: field OPERATOR value -> comparison
    | field _IN list -> membership
    | field _NOT _IN list -> no_membership
    | field _CONTAINS STRING -> containment
    | field _NOT _CONTAINS STRING -> no_containment
    | field _IS _NULL -> absence
    | field _IS _NOT _NULL -> presence

field: NAME -> bare
    | QUOTED_NAME -> bare
    | NAME "." (NAME | QUOTED_NAME) -> dotted
    | NAME "[" STRING "]" -> dotted
list: "[" [value ("," value)*] "]" | "(" value ("," value)* ")"
value: STRING | NUMBER | TRUE | FALSE | _NULL -> null

OPERATOR: "==" | "=" | "!=" | "<>" | "<=" | ">=" | "<" | ">"
_AND.2: /and\b/i
_OR.2: /or\b/i
_NOT.2: /not\b/i
_IN.2: /in\b/i
_IS.2: /is\b/i
_CONTAINS.2: /contains\b/i
_NULL.2: /null\b/i
TRUE.2: /true\b/i
FALSE.2: /false\b/i
NAME: /[^\W\d]\w*/
QUOTED_NAME: /`[^`]+`/
STRING: /"(\\.|[^"\\])*"/s | /'(\\.|[^'\\])*'/s
NUMBER: /[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)(e[+-]?[0-9]+)?(?![\w.])/i
%ignore /\s+/
"""

_WORDS = {
    "NAME": "a field name",
    "OPERATOR": "a comparison (= != < <= > >=)",
    "STRING": "text in quotes",
    "VALUE": "a value (text in quotes, a number, true or false)",
    "LPAR": '"("',
    "RPAR": '")"',
    "LSQB": '"["',
    "RSQB": '"]"',
    "COMMA": '","',
    "DOT": '"."',
    "$END": "the end",
}
_VALUES = {"STRING", "NUMBER", "TRUE", "FALSE"}
_QUOTED = re.compile(r""" "(\\.|[^"\\])*" | '(\\.|[^'\\])*' | `[^`]+` """, re.DOTALL | re.VERBOSE)
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "\\": "\\", '"': '"', "'": "'", "/": "/"}


def parse(expression: str) -> Condition:
    """The tree of `expression`. Raises FilterError, in one line with the position and what was expected there."""
    if len(expression) > MAX_LENGTH:
        raise FilterError(f"the filter has {len(expression):,} characters: {MAX_LENGTH:,} is the most")
    if not expression.strip():
        raise FilterError('the filter is empty: expected a condition such as label = "x"')
    try:
        tree = cast(Condition, _parser().parse(expression))  # the transformer's result, not a lark tree
    except UnexpectedInput as error:
        raise FilterError(_explained(expression, error)) from None
    _check_size(tree)
    return tree


@cache
def _parser() -> Lark:
    # LALR works with a stack of its own, and the tree is built while parsing: no recursion at any nesting.
    return Lark(_GRAMMAR, parser="lalr", transformer=_TreeBuilder())


def _check_size(tree: Condition) -> None:
    num_conditions = 0
    level: list[Condition] = [tree]
    for _ in range(MAX_DEPTH):
        num_conditions += sum(isinstance(node, Comparison) for node in level)
        level = [part for node in level for part in _parts(node)]
    if level:
        raise FilterError(f"the filter is nested more than {MAX_DEPTH} levels deep: write it flatter")
    if num_conditions > MAX_CONDITIONS:
        raise FilterError(f"the filter has {num_conditions} conditions, {MAX_CONDITIONS} is the most: use in [...]")


def _parts(node: Condition) -> tuple[Condition, ...]:
    if isinstance(node, Junction):
        return node.parts
    return (node.part,) if isinstance(node, Negation) else ()


@v_args(inline=True)
class _TreeBuilder(Transformer):
    """Each method builds the node of the rule of its name."""

    def disjunction(self, *parts: Condition) -> Condition:
        return Junction("or", parts)

    def conjunction(self, *parts: Condition) -> Condition:
        return Junction("and", parts)

    def negated(self, part: Condition) -> Condition:
        return part.part if isinstance(part, Negation) else Negation(part)

    def comparison(self, field: Field, operator: Token, value: Scalar) -> Condition:
        return Comparison(field, {"==": "=", "<>": "!="}.get(operator, str(operator)), (value,))

    def membership(self, field: Field, values: tuple[Scalar, ...]) -> Condition:
        return Comparison(field, "in", values)

    def no_membership(self, field: Field, values: tuple[Scalar, ...]) -> Condition:
        return Negation(Comparison(field, "in", values))

    def containment(self, field: Field, text: Token) -> Condition:
        return Comparison(field, "contains", (_unquoted(text),))

    def no_containment(self, field: Field, text: Token) -> Condition:
        return Negation(self.containment(field, text))

    def absence(self, field: Field) -> Condition:
        return Comparison(field, "is null")

    def presence(self, field: Field) -> Condition:
        return Negation(Comparison(field, "is null"))

    def bare(self, name: Token) -> Field:
        return Field(_name(name))

    def dotted(self, prefix: Token, name: Token) -> Field:
        if prefix != "meta":
            raise FilterError(
                f"unknown field {prefix}.{name[:40]} in the filter: only metadata has parts, as meta.name"
            )
        return Field(_name(name), is_meta=True)

    def list(self, *values: Scalar | None) -> tuple[Scalar, ...]:
        return tuple(value for value in values if value is not None)

    def value(self, token: Token) -> Scalar:
        if token.type == "STRING":
            return _unquoted(token)
        return _number(token) if token.type == "NUMBER" else token.type == "TRUE"

    def null(self) -> Scalar:
        raise FilterError("nothing equals null: write `is null` or `is not null`")


def _name(token: Token) -> str:
    if token.type == "STRING":
        return _unquoted(token)
    return token[1:-1] if token.type == "QUOTED_NAME" else str(token)


def _number(token: Token) -> int | float:
    number = float(token)
    if not math.isfinite(number):
        raise FilterError(f"the number {token[:40]} in the filter is out of range")
    # An integer beyond 64 bits cannot be a parameter of the database; as a float it still compares rightly.
    is_integer = re.fullmatch(r"[+-]?[0-9]+", token) is not None
    return int(token) if is_integer and -(2**63) <= int(token) < 2**63 else number


def _unquoted(token: Token) -> str:
    def replaced(match: re.Match[str]) -> str:
        if match[1].startswith("u") and len(match[1]) == 5:
            return chr(int(match[1][1:], 16))
        if match[1] not in _ESCAPES:
            raise FilterError(f"unknown escape \\{match[1]} in the text {_quoted(token)}: write \\\\ for a backslash")
        return _ESCAPES[match[1]]

    text = re.sub(r"\\(u[0-9a-fA-F]{4}|.)", replaced, token[1:-1], flags=re.DOTALL)
    if "\0" in text or any("\ud800" <= char <= "\udfff" for char in text):
        raise FilterError(f"the text {_quoted(token)} in the filter holds a character that no sample can hold")
    return text


def _quoted(text: str) -> str:
    """The first characters as one printable line."""
    return repr(str(text[:40]) + ("..." if len(text) > 40 else ""))


def _explained(expression: str, error: UnexpectedInput) -> str:
    if isinstance(error, UnexpectedToken):
        is_end = error.token.type == "$END"
        position = len(expression) if is_end else error.token.start_pos or 0
        expected = set(error.accepts or error.expected)
    else:
        assert isinstance(error, UnexpectedCharacters)
        is_end, position, expected = False, error.pos_in_stream or 0, set(error.allowed or ())
    rest = expression[position:]
    if not is_end and rest[0] in "\"'`" and _QUOTED.match(rest) is None:
        return f"the filter has a quote at character {position + 1} that is never closed"
    got = "the filter ends" if is_end else f"found {_quoted(rest)}"
    return f"the filter is not understood at character {position + 1}: {got}, expected {_in_words(expected)}"


def _in_words(terminals: set[str]) -> str:
    if terminals >= _VALUES:
        terminals = terminals - _VALUES - {"_NULL"} | {"VALUE"}
    words = [_WORDS.get(name, f"`{name.strip('_').lower()}`") for name in sorted(terminals - {"QUOTED_NAME"})]
    return " or ".join(words[-2:]) if len(words) < 3 else f"{', '.join(words[:-1])} or {words[-1]}"
