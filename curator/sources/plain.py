"""Values of other type systems as plain JSON values, so that any column can be stored as metadata."""

import math
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from numbers import Real
from typing import Any

__all__ = ["DROPPED_BYTES", "finite", "is_dropped_bytes", "plain"]

DROPPED_BYTES = "dropped_bytes"


def plain(value: Any) -> Any:
    """`value` made of None, bool, int, float, str, list and dict only, and of finite numbers.

    Dates and times become ISO 8601 text, durations seconds, decimals a number (an int where they have no fraction),
    NaN and the infinities None. Bytes are not kept: {"dropped_bytes": n} says that n of them were there.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, dict):
        return {str(name): plain(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, bytes | bytearray | memoryview):
        return {DROPPED_BYTES: len(value)}
    return _plain_scalar(value)


def _plain_scalar(value: Any) -> Any:
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Decimal):
        # float() would round a decimal(38, 0), which often is an id.
        return int(value) if value.is_finite() and value == value.to_integral_value() else finite(float(value))
    if isinstance(value, Real):
        return finite(float(value))
    return str(value)


def finite(number: float) -> float | None:
    """The number, or None for NaN and the infinities, which JSON cannot hold."""
    return number if math.isfinite(number) else None


def is_dropped_bytes(value: Any) -> bool:
    """Whether `value` stands for bytes that were not kept."""
    return isinstance(value, dict) and value.keys() == {DROPPED_BYTES}
