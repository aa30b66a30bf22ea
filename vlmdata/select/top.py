"""The top of the pairs by a number: an exact threshold from histograms that can be added up; ties by uid.

A double's bits, put in the order of its values, are cut into four digits of 16 bits. A histogram over the first digit
says in which bin the wanted place lies, one over the second digit of that bin's values where in it, and so on: the
values are looked at four times and 65,536 counts are held, however many pairs there are.
"""

import math
from collections.abc import Callable
from decimal import ROUND_CEILING, Decimal

import duckdb
import numpy as np
import pyarrow as pa

from vlmdata.recipe import Top
from vlmdata.rules import Expression

DIGIT = 16
_BITS = 64
# (the digits known so far as one number, how many bits they are) -> int64 [65536]: keys that begin so, by next digit
Count = Callable[[int, int], np.ndarray]


def keys(values: pa.ChunkedArray) -> np.ndarray:
    """uint64 [n] in the order of the doubles; 0, below all of them, for NULL and NaN."""
    numbers = values.cast(pa.float64()).fill_null(np.nan).to_numpy() + 0.0  # -0 as 0
    bits = numbers.view(np.uint64)
    sign = np.uint64(1 << (_BITS - 1))
    ordered = np.where(bits & sign, ~bits, bits | sign)
    return np.where(np.isnan(numbers), np.uint64(0), ordered)


def key_sql(number: str) -> str:
    """SQL of the key, as `keys` gives it, of a DOUBLE."""
    bits, sign = f"CAST(CAST({number} AS BIT) AS UBIGINT)", f"{1 << (_BITS - 1)}::UBIGINT"
    return (
        f"CASE WHEN {number} IS NULL OR isnan({number}) THEN 0::UBIGINT WHEN {number} = 0 THEN {sign} "
        f"WHEN {number} > 0 THEN {bits} | {sign} ELSE ~{bits} END"
    )


def value(key: int) -> float:
    """The double that has this key."""
    sign = 1 << (_BITS - 1)
    bits = key ^ sign if key & sign else ~key & ((1 << _BITS) - 1)
    return float(np.array(bits, np.uint64).view(np.float64))


def count_keys(found: np.ndarray, prefix: int, known: int) -> np.ndarray:
    """A part's histogram, as `Count` gives it for all parts: add them up. The key 0 is not counted."""
    found = found[found > 0]
    if known:
        found = found[found >> np.uint64(_BITS - known) == prefix]
    digits = (found >> np.uint64(_BITS - DIGIT - known)) & np.uint64((1 << DIGIT) - 1)
    return np.bincount(digits.astype(np.int64), minlength=1 << DIGIT)


def threshold(count: Count, place: int) -> tuple[int, int] | None:
    """The key at a place (1: the largest) and how many keys are larger; None where there are fewer keys than that."""
    prefix, above = 0, 0
    for known in range(0, _BITS, DIGIT):
        down = np.cumsum(count(prefix, known)[::-1])
        digit = int(np.searchsorted(down, place - above))
        if digit == len(down):
            return None
        above += int(down[digit - 1]) if digit else 0
        prefix = prefix << DIGIT | (len(down) - 1 - digit)
    return prefix, above


def how_many(top: Top, pairs: int) -> int:
    """`count`, or `fraction` of the pairs as it is written in the recipe, rounded up."""
    if top.count is not None:
        return top.count
    return int((Decimal(repr(top.fraction)) * pairs).to_integral_value(ROUND_CEILING))


def datacomp_place(fraction: float, pairs: int) -> int:
    """The place whose value is the threshold in DataComp's filters: of the scores in falling order the one with index
    int(fraction * pairs), counted from 0. Every pair with that score or more is kept, so one more than the fraction."""
    return int(pairs * fraction) + 1


def at_least(by: Expression, smallest: float | None) -> Expression:
    """The rule that the number is at least the threshold; that it is one, where there is none (fewer have a number)."""
    smallest = -math.inf if smallest is None else smallest
    return Expression(f"({by.sql} >= CAST('{smallest!r}' AS DOUBLE))", by.columns)


def counting(connection: duckdb.DuckDBPyConnection, rows: str) -> Count:
    """`count_keys` in DuckDB. rows: SQL of a table with the column top (uint64, see `keys`)."""

    def count(prefix: int, known: int) -> np.ndarray:
        begins = f"top >> {_BITS - known} = {prefix}" if known else "true"
        found = connection.sql(
            f"SELECT (top >> {_BITS - DIGIT - known}) & {(1 << DIGIT) - 1} AS digit, count(*) FROM {rows} "
            f"WHERE top > 0 AND {begins} GROUP BY digit"
        ).fetchnumpy()
        digit, pairs = found.values()
        histogram = np.zeros(1 << DIGIT, np.int64)
        histogram[np.asarray(digit, np.int64)] = pairs
        return histogram

    return count


def reject(connection: duckdb.DuckDBPyConnection, top: Top) -> int:
    """Give the pairs that are left and not in the top the reason `top`. Returns the smallest key that is in.

    connection: has the table `verdict` (see `settle`) with the column top (uint64, see `keys`), what `begin` makes, and
    `uids` (place, uid), which is looked at only where not all ties at the threshold are in.
    """
    ranked = "verdict" if top.of == "pool" else "remaining"
    pairs = connection.sql(f"SELECT count(*) FROM {ranked}").fetchall()[0][0]
    count = counting(connection, ranked)
    wanted = how_many(top, pairs)
    key, above = threshold(count, wanted) or (1, 0)  # fewer have a number: all of them
    _reject(connection, f"top < {key}")
    at_key = f"FROM {ranked} WHERE top = {key}"
    if connection.sql(f"SELECT count(*) {at_key}").fetchall()[0][0] > wanted - above:
        within = f"FROM uids WHERE place IN (SELECT place {at_key}) ORDER BY uid LIMIT {wanted - above}"
        _reject(connection, f"top = {key} AND place NOT IN (SELECT place {within})")
    return key


def reject_below(connection: duckdb.DuckDBPyConnection, key: int) -> None:
    """The same for later pairs, by the key that `reject` returned: all ties at it are in."""
    _reject(connection, f"fresh AND top < {key}")


def _reject(connection: duckdb.DuckDBPyConnection, which: str) -> None:
    connection.execute(f"INSERT INTO rejected SELECT place, 'top' FROM remaining WHERE {which}")
