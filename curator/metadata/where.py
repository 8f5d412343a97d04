"""The filter language of --where: parsed, checked against the known fields, compiled to SQLAlchemy expressions.

    label = "x" and num_tokens < 200
    not (dataset in ["a", "b"]) or meta.level >= 3
    text contains "foo" and label is not null and meta["the name"] != true

Every condition is true or false, never unknown as in SQL: `not` always gives the other rows. A field that is absent
or null matches no condition but `!=`, `not in`, `not contains` and `is null`. A metadata value is compared with a
value of its own type only: `meta.level = "3"` does not find the number 3, and `meta.level != "3"` does. `contains`
ignores case (on SQLite for ASCII letters only). Text is ordered as the database orders it. A field with several values
(`tag`) matches where one of them does, `!=`, `not in` and `not contains` where none does, `is null` where it has none.
"""

import difflib
import operator
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, false, literal, not_, or_, true
from sqlalchemy.types import BigInteger, Boolean, Float, String, TypeEngine

from curator.errors import FilterError
from curator.metadata import where_meta
from curator.metadata.where_syntax import Comparison, Condition, Field, Junction, Negation, Scalar, parse

__all__ = ["Column", "Several", "compile_where", "field_names"]

_MAX_LISTED = 20
_COMPARISONS = {"=": operator.eq, "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


@dataclass(frozen=True, slots=True)
class Several:
    """A field with several values a row: one of them, and the rows of which one meets a condition."""

    value: ColumnElement
    any: Callable[[ColumnElement[bool]], ColumnElement[bool]]


Column = ColumnElement | Several


def compile_where(
    expression: str, columns: Mapping[str, Column], meta: ColumnElement, meta_fields: Collection[str]
) -> ColumnElement[bool]:
    """The condition that `expression` states, with every value as a bound parameter.

    `columns` are the sample's own fields by public name, `meta` is the JSON column that holds the metadata, and
    `meta_fields` are the names known in it. A bare name is looked up among the columns, then in the metadata.

    Raises FilterError for an expression that does not parse, an unknown field, or a comparison of unlike types.
    """
    return _Compiler(columns, meta, meta_fields).compile(parse(expression))


def field_names(expression: str) -> set[str]:
    """The names that an expression uses, columns and metadata alike. Raises FilterError as compile_where does."""

    def names(node: Condition) -> set[str]:
        if isinstance(node, Comparison):
            return {node.field.name}
        parts = (node.part,) if isinstance(node, Negation) else node.parts
        return set().union(*(names(part) for part in parts))

    return names(parse(expression))


@dataclass(frozen=True, slots=True)
class _Compiler:
    columns: Mapping[str, Column]
    meta: ColumnElement
    meta_fields: Collection[str]

    def compile(self, node: Condition) -> ColumnElement[bool]:
        # The parser has bounded the depth, so this recursion is bounded too.
        if isinstance(node, Junction):
            join = and_ if node.operator == "and" else or_
            return join(*(self.compile(part) for part in node.parts))
        if isinstance(node, Negation):
            return not_(self.compile(node.part))
        if self._is_column(node.field):
            return _compare_column(self.columns[node.field.name], node)
        return _compare_meta(self.meta, node)

    def _is_column(self, field: Field) -> bool:
        """Whether the field is a column; if not, it is metadata. Raises FilterError where it is neither."""
        if not field.is_meta and field.name in self.columns:
            return True
        if field.name in self.meta_fields:
            return False
        raise FilterError(self._unknown(field))

    def _unknown(self, field: Field) -> str:
        known = [] if field.is_meta else list(self.columns)
        in_meta = sorted(self.meta_fields)
        close = difflib.get_close_matches(field.name, known + in_meta, n=1)
        if not close and field.is_meta:
            close = difflib.get_close_matches(field.name, list(self.columns), n=1)
        hint = f": did you mean {_shown(close[0], close[0] not in self.columns)}?" if close else ""
        names = known + [_shown(name, True) for name in in_meta]
        listed = ", ".join(names[:_MAX_LISTED]) or "none, since no sample has metadata"
        more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
        return f"unknown field {field.shown} in the filter{hint} (known: {listed}{more})"


def _shown(name: str, is_meta: bool) -> str:
    return Field(name, is_meta).shown


def _compare_column(column: Column, node: Comparison) -> ColumnElement[bool]:
    if isinstance(column, Several):
        return _compare_several(column, node)
    if node.operator == "is null":
        return column.is_(None)
    python_type = column.type.python_type
    bounds = [_bound(node.field, value, python_type) for value in node.values]
    if node.operator == "!=":
        return column.is_distinct_from(bounds[0])
    # "and is not null" makes an unknown false, and leaves an index on the column usable.
    return and_(column.is_not(None), _apply(column, node, bounds))


def _compare_several(column: Several, node: Comparison) -> ColumnElement[bool]:
    if node.operator == "is null":
        return not_(column.any(true()))
    if node.operator == "!=":
        return not_(_compare_several(column, Comparison(node.field, "=", node.values)))
    return column.any(_compare_column(column.value, node))


def _bound(field: Field, value: Scalar, python_type: type) -> ColumnElement:
    """`value` as a parameter of its own type, once it is known to be comparable with the column's."""
    expected, fits = {
        str: ("text", isinstance(value, str)),
        bool: ("true or false", isinstance(value, bool)),
        int: ("a number", _is_number(value)),
        float: ("a number", _is_number(value)),
    }.get(python_type, (f"of type {python_type.__name__}, and can be tested for null only", False))
    if not fits:
        raise FilterError(f"{field.shown} is {expected}, and the filter compares it with {_described(value)}")
    return _parameter(value)


def _is_number(value: Scalar) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _described(value: Scalar) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"the number {value}" if isinstance(value, int | float) else f"the text {value[:40]!r}"


def _parameter(value: Scalar) -> ColumnElement:
    # The type is the value's, not the column's: an INTEGER parameter would round 1.5 on PostgreSQL.
    types: dict[type, TypeEngine] = {bool: Boolean(), int: BigInteger(), float: Float(), str: String()}
    return literal(value, types[type(value)])


def _apply(left: ColumnElement, node: Comparison, bounds: Sequence[ColumnElement]) -> ColumnElement[bool]:
    """The comparison itself; `left` and the values are of one type."""
    if node.operator == "in":
        return left.in_(bounds) if bounds else false()
    if node.operator == "contains":
        return left.icontains(str(node.values[0]), autoescape=True)
    if node.operator != "=" and isinstance(node.values[0], bool):
        raise FilterError(f"{node.field.shown} is compared with {_described(node.values[0])}: use = or !=")
    return _COMPARISONS[node.operator](left, bounds[0])


def _compare_meta(meta: ColumnElement, node: Comparison) -> ColumnElement[bool]:
    if node.operator == "is null":
        return where_meta.is_absent(meta, node.field.name)
    if node.operator == "!=":
        return not_(_compare_meta(meta, Comparison(node.field, "=", node.values)))
    # A list may mix types: each type is one comparison with the values of that type.
    groups: dict[str, list[Scalar]] = {}
    for value in node.values:
        kind = "boolean" if isinstance(value, bool) else "text" if isinstance(value, str) else "number"
        groups.setdefault(kind, []).append(value)
    return or_(false(), *(_compare_kind(meta, node, kind, values) for kind, values in groups.items()))


def _compare_kind(meta: ColumnElement, node: Comparison, kind: str, values: list[Scalar]) -> ColumnElement[bool]:
    value_of = {"text": where_meta.as_text, "number": where_meta.as_number, "boolean": where_meta.as_boolean}[kind]
    left, is_kind = value_of(meta, node.field.name)
    part = Comparison(node.field, node.operator, tuple(values))
    return where_meta.guarded(is_kind, _apply(left, part, [_parameter(value) for value in values]))
