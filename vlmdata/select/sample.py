"""Mixing: a fixed number of samples of the pairs that are left, drawn by weight, the last step of the selection.

Draws hang on a seeded hash of the uid, so the outcome depends neither on the order of the rows nor on workers.
"""

import duckdb

from vlmdata.errors import DataError
from vlmdata.recipe import Sample

# Weights are counted in so many parts of the largest one, whole numbers: their sums are exact in any order.
_PARTS = 2**40
_UNIFORM = "((md5_number_lower($seed || uid) >> 12) + 0.5) / 4503599627370496.0"  # in (0, 1)
_KEY = f"ln({_UNIFORM}) / weight"
_NOT_DRAWN = "INSERT INTO rejected SELECT place, 'sample' FROM drawn WHERE copies = 0"


def weight_sql(sample: Sample) -> str:
    """The recipe's weights as one SQL expression over columns."""
    if isinstance(sample.weights, str):
        return sample.weights
    # A source's name is of letters, digits and underscores.
    cases = "".join(f" WHEN source = '{name}' THEN {weight!r}" for name, weight in sample.weights.items())
    return f"CASE{cases} ELSE 1.0 END" if cases else "1.0"


def reject(connection: duckdb.DuckDBPyConnection, sample: Sample) -> dict[str, float]:
    """Give the pairs that are not drawn the reason `sample`, and note copies of the others. Returns what
    `reject_later` judges later pairs by: `rate`, copies for a weight of 1, or `key`, the smallest that was drawn.

    connection: has the table `verdict` (see `settle`) with the column weight (double), and what `begin` makes. Weights
    are 0 (never drawn) or more. Raises DataError for a weight that is null or negative, and where `count` is more than
    there are pairs to draw from.
    """
    positive = _positive(connection)
    if not positive or (not sample.replacement and sample.count > positive):
        raise DataError(
            f"select.sample.count: {sample.count} samples are asked for, {positive} pairs with a weight above 0 are "
            "left: lower it" + (" or set select.sample.replacement" if positive else ", or loosen the rules")
        )
    return (_with_replacement if sample.replacement else _without_replacement)(connection, sample)


def reject_later(connection: duckdb.DuckDBPyConnection, sample: Sample, drawn: dict[str, float]) -> None:
    """Draw from later pairs (`fresh`) at the rate, or by the smallest key, of the draw that returned `drawn`; so their
    number is as it comes. Raises DataError for a weight as `reject` does."""
    _positive(connection, "fresh")
    if sample.replacement:
        connection.execute(
            f"""
            INSERT INTO drawn
            SELECT place, floor($rate * weight + {_UNIFORM})::INTEGER FROM remaining WHERE fresh""",
            {"rate": drawn["rate"], "seed": f"sample {sample.seed}\0"},
        )
        connection.execute(_NOT_DRAWN)
        return
    connection.execute(
        f"""
        INSERT INTO rejected
        SELECT place, 'sample' FROM remaining WHERE fresh AND NOT (weight > 0 AND {_KEY} >= $key)""",
        {"key": drawn["key"], "seed": f"sample {sample.seed}\0"},
    )


def _positive(connection: duckdb.DuckDBPyConnection, which: str = "true") -> int:
    """How many of the pairs that are left have a weight above 0. which: SQL of those that are looked at."""
    bad, positive, uid = connection.execute(
        "SELECT count(*) FILTER (weight IS NULL OR NOT weight BETWEEN 0 AND 1e300), count(*) FILTER (weight > 0), "
        f"min(uid) FILTER (weight IS NULL OR NOT weight BETWEEN 0 AND 1e300) FROM remaining WHERE {which}"
    ).fetchall()[0]
    if bad:
        raise DataError(
            f"select.sample.weights: the weight of {bad} pairs is null, negative or not finite (first: {uid}): use "
            "coalesce() or greatest() in the expression, or add a rule"
        )
    return positive


def _without_replacement(connection: duckdb.DuckDBPyConnection, sample: Sample) -> dict[str, float]:
    """The `count` largest keys log(u) / weight, u uniform in (0, 1) from the hash; ties by uid (Efraimidis and Spirakis
    2006, "Weighted random sampling with a reservoir")."""
    seed = f"sample {sample.seed}\0"
    connection.execute(
        f"""
        INSERT INTO rejected SELECT place, 'sample' FROM remaining WHERE place NOT IN (
            SELECT place FROM remaining WHERE weight > 0 ORDER BY {_KEY} DESC, uid LIMIT $count
        )""",
        {"seed": seed, "count": sample.count},
    )
    smallest = connection.execute(f"SELECT min({_KEY}) FROM remaining", {"seed": seed}).fetchall()
    return {"key": smallest[0][0]}


def _with_replacement(connection: duckdb.DuckDBPyConnection, sample: Sample) -> dict[str, float]:
    """Systematic: in the order of the hash every pair takes a stretch of `count` * weight / sum of weights on a line of
    length `count`, and gets a copy for every point offset + 0, 1, 2, … on it, with one random offset for all.

    So its copies are the expected number rounded down or up, and there are `count` in all, exactly: stretches are whole
    numbers, in units of 1 / sum. Weights below 2^-40 of the largest are never drawn.
    """
    seed = f"sample {sample.seed}\0"
    most = connection.execute("SELECT max(weight) FROM remaining").fetchall()[0][0]
    # of whole numbers, since a sum of doubles hangs on the order of the threads
    parts = f"SELECT sum(round(weight / $most * {_PARTS})::HUGEINT)::HUGEINT FROM remaining"
    total = connection.execute(parts, {"most": most}).fetchall()[0][0]
    connection.execute(
        f"""
        INSERT INTO drawn
        WITH whole AS (
            SELECT place, uid, round(weight / $most * {_PARTS})::HUGEINT AS part FROM remaining
        ), line AS (
            SELECT place, $count::HUGEINT * part AS long,
                   $count::HUGEINT * (sum(part) OVER (
                       ORDER BY md5($seed || uid), uid ROWS BETWEEN UNBOUNDED PRECEDING AND CURRENT ROW
                   ))::HUGEINT AS until,
                   (SELECT sum(part)::HUGEINT FROM whole) AS unit
            FROM whole
        ), shifted AS (
            SELECT place, until, long, unit, (md5_number($seed) // 2)::HUGEINT % unit AS shift FROM line
        )
        SELECT place, ((until + shift) // unit - (until - long + shift) // unit)::INTEGER AS copies FROM shifted""",
        {"most": most, "count": sample.count, "seed": seed},
    )
    connection.execute(_NOT_DRAWN)
    return {"rate": sample.count * _PARTS / (total * most)}
