"""How every numeric signal is spread over kept and rejected pairs, beside the thresholds that rules set on it."""

import math
from dataclasses import dataclass
from typing import Any

import duckdb

from vlmdata.report.facts import column_meanings, funnel
from vlmdata.report.thresholds import Threshold, thresholds

BINS = 36
# Numbers of samples that are no measures of a pair: places in files, hashes, counts, the size that was asked for.
_NO_MEASURE = {"offset", "length", "phash", "width", "height", "index", "copies", "occurrences"}
_NUMBERS = ("int", "uint", "float", "double", "halffloat")


@dataclass(frozen=True)
class Histogram:
    """Counts of kept and rejected pairs between `edges` (one more than counts, in the signal's own unit).

    Values below the first edge are counted in the first bin, those above the last in the last; `below` and `above` say
    whether there are any. logarithmic: the edges are even steps of log10(1 + value). whole: the values are integers.
    missing: pairs without a finite value.
    """

    name: str
    meaning: str
    edges: list[float]
    kept: list[int]
    rejected: list[int]
    thresholds: list[Threshold]
    minimum: float
    maximum: float
    missing: int
    below: bool
    above: bool
    logarithmic: bool
    whole: bool


@dataclass(frozen=True)
class _Measure:
    name: str
    sql: str
    meaning: str
    thresholds: list[Threshold]
    whole: bool


@dataclass(frozen=True)
class _Spread:
    count: int
    minimum: float
    low: float
    median: float
    high: float
    maximum: float


def histograms(connection: duckdb.DuckDBPyConnection, manifest: dict[str, Any]) -> list[Histogram]:
    """A histogram for each expression that a rule compares with a number, in the rules' order, then for each other
    numeric column of `samples`. What was measured for no pair, or is one number for all and in no rule, is left out.

    connection: as `catalog.connect` gives it.
    """
    measures = _measures(manifest)
    if not measures:
        return []
    values = ", ".join(f"{measure.sql} AS x{place}" for place, measure in enumerate(measures))
    wanted = ", ".join(
        f"count(*) FILTER (isfinite(x{n})), min(x{n}) FILTER (isfinite(x{n})), max(x{n}) FILTER (isfinite(x{n})), "
        # a digest, since exact quantiles would hold every value in memory
        f"approx_quantile(x{n}, [0.005, 0.5, 0.995]) FILTER (isfinite(x{n}))"
        for n in range(len(measures))
    )
    rows = connection.execute(f"SELECT count(*), {wanted} FROM (SELECT {values} FROM samples)").fetchall()
    total, *facts = rows[0]
    result = []
    for place, measure in enumerate(measures):
        count, minimum, maximum, quantiles = facts[4 * place : 4 * place + 4]
        if not count or (minimum == maximum and not measure.thresholds):
            continue
        low, median, high = quantiles
        spread = _Spread(count, minimum, low, median, high, maximum)
        result.append(_count(connection, measure, spread, total - count))
    return result


def _measures(manifest: dict[str, Any]) -> list[_Measure]:
    meanings = column_meanings(manifest)
    numeric = {name: kind for name, kind in manifest["columns"].items() if kind.startswith(_NUMBERS)}
    compared: dict[str, list[Threshold]] = {}
    for step in funnel(manifest):
        for threshold in thresholds(step.reason, step.rule) if step.is_rule else []:
            # DuckDB takes LANG for lang; samples and manifests write it the second way
            name = next((n for n in manifest["columns"] if n.lower() == threshold.expression.lower()), None)
            compared.setdefault(name or threshold.expression, []).append(threshold)
    measures = []
    for name, found in compared.items():
        if name in manifest["columns"]:
            sql, whole = f'"{name}"', "int" in manifest["columns"][name]
        else:
            sql, whole = f"({name})", False
        measures.append(_Measure(name, f"TRY({sql}::DOUBLE)", meanings.get(name, ""), found, whole))
    # in the order of the schemas: a manifest's JSON sorts its columns
    for name in [*(name for name in meanings if name in numeric), *sorted(numeric.keys() - meanings.keys())]:
        if name not in compared and name not in _NO_MEASURE:
            whole = "int" in numeric[name]
            measures.append(_Measure(name, f'"{name}"::DOUBLE', meanings.get(name, ""), [], whole))
    return measures


def limit(threshold: Threshold, whole: bool) -> float:
    """Where a threshold stands on the axis; whole numbers fill the place from n to n + 1."""
    if not whole:
        return threshold.value
    return math.floor(threshold.value) + 1 if threshold.sign in ("≤", ">") else math.ceil(threshold.value)


def _count(connection: duckdb.DuckDBPyConnection, measure: _Measure, spread: _Spread, missing: int) -> Histogram:
    low, high, logarithmic = _range(measure, spread)
    scaled = "log10(1 + x)" if logarithmic else "x"
    start, stop = (math.log10(1 + low), math.log10(1 + high)) if logarithmic else (low, high)
    step = (stop - start) / BINS
    if measure.whole and not logarithmic:
        # whole numbers fill the place up to the next one, and every bin holds the same number of them
        stop += 1
        step = max(1.0, math.ceil((stop - start) / BINS))
    if measure.thresholds:
        # a threshold stands between two bins, so that no bin mixes its two sides
        edge = limit(measure.thresholds[0], measure.whole and not logarithmic)
        edge = math.log10(1 + edge) if logarithmic else edge
        start = edge - math.ceil((edge - start) / step - 1e-9) * step
    bins = max(1, math.ceil((stop - start) / step - 1e-9))
    query = f"""
        SELECT least(greatest(floor(({scaled} - $start) / $step), 0), $bins - 1)::INTEGER, kept, count(*)
        FROM (SELECT {measure.sql} AS x, kept FROM samples) WHERE isfinite(x) GROUP BY ALL"""
    counted = connection.execute(query, {"start": start, "step": step, "bins": bins}).fetchall()
    kept, rejected = [0] * bins, [0] * bins
    for place, is_kept, count in counted:
        (kept if is_kept else rejected)[place] += count
    ends = [start + step * place for place in range(bins + 1)]
    edges = [10**end - 1 for end in ends] if logarithmic else ends
    slack = 1 if measure.whole else (edges[-1] - edges[0]) * 1e-6
    return Histogram(
        measure.name, measure.meaning, edges, kept, rejected, measure.thresholds, spread.minimum, spread.maximum,
        missing, spread.minimum < edges[0] - slack, spread.maximum > edges[-1] + slack, logarithmic, measure.whole,
    )  # fmt: skip


def _range(measure: _Measure, spread: _Spread) -> tuple[float, float, bool]:
    """From where to where a histogram goes, and whether in logarithmic steps.

    All values where that does not squeeze most of them into a few bins, else the middle 99 %; every threshold is in it.
    """
    values = [threshold.value for threshold in measure.thresholds]
    low, high = min([spread.minimum, *values]), max([spread.maximum, *values])
    if low >= 0 and max([spread.high, *values]) > 12 * max(spread.median, 1 if measure.whole else 1e-9) and high > 2:
        return low, high, True
    if low >= 0 and high <= 1 and measure.meaning.endswith("0 to 1"):
        return 0.0, 1.0, False  # shares and probabilities compare at a glance
    wide = spread.high - spread.low
    if spread.maximum - spread.high > 0.5 * wide:
        high = max([spread.high, *values])
    if spread.low - spread.minimum > 0.5 * wide:
        low = min([spread.low, *values])
    if measure.whole:
        return math.floor(low), math.ceil(high), False
    if high <= low:
        low, high = low - 0.5, high + 0.5
    margin = 0.03 * (high - low)
    return low if low == 0 else low - margin, high + margin, False
