"""Expressions over saved queries, `math_val - 0.5 * toxic_val`: linear, since values are.

Names are identifiers; a hyphen is a minus. Python's own grammar reads them, and nothing of it is run.
"""

import ast
import math
from collections import defaultdict

from curator.errors import UsageError

__all__ = ["parse_expression"]

_MOST_CHARACTERS = 2_000
_CONSTANT = ""  # the key of a plain number


def parse_expression(text: str) -> dict[str, float]:
    """The coefficient of each name, in order of appearance, without those that cancel out.

    Raises UsageError for what does not parse, is not linear, adds a number to a query, or leaves no name.
    """
    if len(text) > _MOST_CHARACTERS:
        raise UsageError(f"--expr has {len(text):,} characters; at most {_MOST_CHARACTERS:,}")
    try:
        terms = _terms(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError, _NotLinearError) as error:
        reason = error.msg if isinstance(error, SyntaxError) else error
        raise UsageError(f"--expr {text!r}: {reason}; write it like: good - 0.5 * bad") from None
    constant = terms.pop(_CONSTANT, 0.0)
    found = {name: factor for name, factor in terms.items() if factor}
    if constant:
        raise UsageError(f"--expr {text!r} adds the number {constant:g} to a query: numbers only scale queries")
    if not found:
        raise UsageError(f"--expr {text!r} leaves no query: name saved ones, as in: good - 0.5 * bad")
    if not all(map(math.isfinite, found.values())):
        raise UsageError(f"--expr {text!r} has a factor that is not finite")
    return found


class _NotLinearError(Exception):
    pass


def _terms(node: ast.expr) -> dict[str, float]:
    match node:
        case ast.Name(name):
            return {name: 1.0}
        case ast.Constant(int() | float() as number) if not isinstance(number, bool):
            return {_CONSTANT: float(number)}
        case ast.UnaryOp(ast.USub() | ast.UAdd() as sign, operand):
            return _scaled(_terms(operand), -1.0 if isinstance(sign, ast.USub) else 1.0)
        case ast.BinOp(left, ast.Add() | ast.Sub() as sign, right):
            total = defaultdict(float, _terms(left))
            for name, factor in _terms(right).items():
                total[name] += -factor if isinstance(sign, ast.Sub) else factor
            return dict(total)
        case ast.BinOp(left, ast.Mult(), right):
            one, other = _terms(left), _terms(right)
            if other.keys() - {_CONSTANT}:
                one, other = other, one
            return _scaled(one, _number(other, "two queries cannot be multiplied"))
        case ast.BinOp(left, ast.Div(), right):
            divisor = _number(_terms(right), "a query cannot divide")
            if divisor == 0.0:
                raise _NotLinearError("division by zero")
            return _scaled(_terms(left), 1.0 / divisor)
    raise _NotLinearError(f"{ast.unparse(node)[:40]!r} is none of: name, number, + - * / ( )")


def _scaled(terms: dict[str, float], factor: float) -> dict[str, float]:
    return {name: factor * value for name, value in terms.items()}


def _number(terms: dict[str, float], otherwise: str) -> float:
    if terms.keys() - {_CONSTANT}:
        raise _NotLinearError(otherwise)
    return terms.get(_CONSTANT, 0.0)
