"""Scalars of JSON as columns: which type the values of a key have, and a value as one of that type."""

import math
from collections.abc import Iterable
from typing import Any

import pyarrow as pa

from vlmdata.sources.urls import clean_text, strip_signature

_LIMITS = {pa.int64(): (-(2**63), 2**63), pa.uint64(): (0, 2**64)}


def type_of(values: Iterable[Any]) -> pa.DataType | None:
    """bool, int64, uint64 (where one is past int64's range), float64 or string: what fits all values that are not
    null; None where there is no value, or no such type."""
    kinds = set()
    least = most = 0
    for value in values:
        if value is not None:
            kinds.add(type(value))
            if type(value) is int:
                least, most = min(least, value), max(most, value)
    if kinds == {int}:
        return next((kind for kind, (low, end) in _LIMITS.items() if low <= least and most < end), None)
    known = {frozenset({bool}): pa.bool_(), frozenset({float}): pa.float64(), frozenset({str}): pa.string()}
    return pa.float64() if kinds == {int, float} else known.get(frozenset(kinds))


def fit(value: Any, kind: pa.DataType) -> Any:
    """`value` as one of type `kind` without a loss, a URL without its signature; None where there is none."""
    if kind == pa.string():
        return strip_signature(clean_text(value))[0] if isinstance(value, str) else None
    if kind == pa.bool_() or isinstance(value, bool):
        return value if kind == pa.bool_() and isinstance(value, bool) else None
    if not isinstance(value, int | float):
        return None
    if kind in _LIMITS:
        low, end = _LIMITS[kind]
        if isinstance(value, float) and not (math.isfinite(value) and value.is_integer()):
            return None
        return int(value) if low <= value < end else None
    try:
        return float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return None
