"""Metadata fields inside a JSON column, typed, in the SQL of SQLite and of PostgreSQL.

SQLAlchemy's own JSON index is not used: on SQLite it needs JSON_EXTRACT paths, which before SQLite 3.45 do not find a
name that JSON writes with an escape (quotes, backslashes, and every letter that is not ASCII as json.dumps writes it).
json_each compares the name itself, as a parameter. It costs about 3 instead of 1.5 microseconds per row.
"""

from typing import Any

from sqlalchemy import ColumnElement, Numeric, String, and_, case, cast, false, func, literal, or_
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

__all__ = ["as_boolean", "as_number", "as_text", "guarded", "is_absent"]


class _FieldType(FunctionElement[str]):
    """The JSON type of a top-level field in the database's own words; NULL where the field is absent."""

    type = String()
    inherit_cache = True


class _FieldValue(FunctionElement[str]):
    """A top-level field that is text or a number, as text or as a number."""

    type = String()
    inherit_cache = True


@compiles(_FieldType, "sqlite")
def _sqlite_type(element: _FieldType, compiler: SQLCompiler, **options: Any) -> str:
    meta, name = (compiler.process(clause, **options) for clause in element.clauses)
    return f"(SELECT json_each.type FROM json_each({meta}) WHERE json_each.key = {name})"


@compiles(_FieldValue, "sqlite")
def _sqlite_value(element: _FieldValue, compiler: SQLCompiler, **options: Any) -> str:
    meta, name = (compiler.process(clause, **options) for clause in element.clauses)
    return f"(SELECT json_each.value FROM json_each({meta}) WHERE json_each.key = {name})"


@compiles(_FieldType, "postgresql")
def _postgresql_type(element: _FieldType, compiler: SQLCompiler, **options: Any) -> str:
    meta, name = (compiler.process(clause, **options) for clause in element.clauses)
    return f"jsonb_typeof(CAST({meta} AS JSONB) -> CAST({name} AS TEXT))"


@compiles(_FieldValue, "postgresql")
def _postgresql_value(element: _FieldValue, compiler: SQLCompiler, **options: Any) -> str:
    meta, name = (compiler.process(clause, **options) for clause in element.clauses)
    return f"(CAST({meta} AS JSONB) ->> CAST({name} AS TEXT))"


Typed = tuple[ColumnElement, ColumnElement[bool]]


def as_text(meta: ColumnElement, name: str) -> Typed:
    """The field as text, and the condition that it is text."""
    return _FieldValue(meta, literal(name, String())), _type(meta, name).in_(["text", "string"])


def as_number(meta: ColumnElement, name: str) -> Typed:
    """The field as a number, and the condition that it is one. The cast fails on PostgreSQL where it is not."""
    value = cast(_FieldValue(meta, literal(name, String())), Numeric())
    return value, _type(meta, name).in_(["integer", "real", "number"])


def as_boolean(meta: ColumnElement, name: str) -> Typed:
    """The field as a truth value, and the condition that it is one."""
    kind = _type(meta, name)
    # SQLite has the two values as two types; PostgreSQL has one type, and the value as text.
    value = or_(kind == "true", and_(kind == "boolean", _FieldValue(meta, literal(name, String())) == "true"))
    return case((value, literal(True)), else_=literal(False)), kind.in_(["true", "false", "boolean"])


def guarded(is_kind: ColumnElement[bool], condition: ColumnElement[bool]) -> ColumnElement[bool]:
    """`condition` where `is_kind` holds, else false. CASE, since a database may evaluate both sides of AND."""
    return case((is_kind, condition), else_=false())


def is_absent(meta: ColumnElement, name: str) -> ColumnElement[bool]:
    """True where the field is absent or JSON null."""
    return func.coalesce(_type(meta, name), "null") == "null"


def _type(meta: ColumnElement, name: str) -> ColumnElement[str]:
    return _FieldType(meta, literal(name, String()))
