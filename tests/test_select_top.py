"""The top is exactly the largest values, ties by uid, however the pairs are cut into parts."""

import math

import duckdb
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from selection import ENDED

from vlmdata.recipe import Top
from vlmdata.select import top
from vlmdata.select.settle import begin

NUMBERS = st.one_of(st.floats(), st.sampled_from([0.0, -0.0, 0.25, math.inf, -math.inf, math.nan, 5e-324]))
VALUES = st.lists(st.one_of(st.none(), NUMBERS), min_size=1, max_size=40)


def ranked(value):
    return value is not None and not math.isnan(value)


def expected(values, wanted, uids):
    order = sorted((u for u in uids if ranked(values[u])), key=lambda u: (-values[u], u))
    return set(order[:wanted])


@settings(max_examples=60, deadline=None)
@given(VALUES, st.data())
def test_those_that_are_left_are_the_largest(values, data):
    passed = data.draw(st.lists(st.booleans(), min_size=len(values), max_size=len(values)))
    of = data.draw(st.sampled_from(["passed", "pool"]))
    fraction = data.draw(st.sampled_from([0.1, 0.3, 0.5, 1.0]))
    connection = duckdb.connect()
    verdict = pa.table(
        {
            "place": np.arange(1, len(values) + 1),
            "uid": [f"{n:03d}" for n in range(len(values))],
            "reason": pa.array([None if each else "rule" for each in passed], pa.string()),
            "top": top.keys(pa.chunked_array([pa.array(values, pa.float64())])),
        }
    )
    connection.register("given_verdict", verdict)
    connection.execute("CREATE TABLE verdict AS SELECT * FROM given_verdict")
    connection.execute("CREATE VIEW uids AS SELECT place, uid FROM verdict")
    begin(connection)
    top.reject(connection, Top(by="x", fraction=fraction, of=of))
    rows = connection.sql(f"SELECT uid, reason FROM {ENDED}").fetchall()
    kept = {int(uid) for uid, reason in rows if reason is None}
    among = [n for n in range(len(values)) if of == "pool" or passed[n]]
    wanted = math.ceil(round(fraction * 10) * len(among) / 10)
    assert kept == {n for n in expected(values, wanted, among) if passed[n]}
    assert all(reason == ("top" if passed[int(uid)] else "rule") for uid, reason in rows if reason is not None)


@settings(max_examples=60, deadline=None)
@given(VALUES)
def test_a_key_is_the_same_in_sql(values):
    numbers = pa.table({"x": pa.array(values, pa.float64())})  # noqa: F841
    found = duckdb.connect().sql(f"SELECT {top.key_sql('x')} AS key FROM numbers").fetchnumpy()["key"]
    assert found.dtype == np.uint64
    assert found.tolist() == top.keys(pa.chunked_array([pa.array(values, pa.float64())])).tolist()


@settings(max_examples=60, deadline=None)
@given(VALUES, st.integers(1, 45), st.integers(1, 5))
def test_histograms_add_up_to_the_exact_threshold(values, place, parts):
    keys = top.keys(pa.chunked_array([pa.array(values, pa.float64())]))
    cut = np.array_split(keys, parts)
    found = top.threshold(lambda prefix, known: sum(top.count_keys(part, prefix, known) for part in cut), place)
    order = sorted((value for value in values if ranked(value)), reverse=True)
    if place > len(order):
        assert found is None
    else:
        key, above = found
        assert top.value(key) == order[place - 1]
        assert above == sum(value > order[place - 1] for value in order)


@pytest.mark.parametrize(
    ("fraction", "pairs", "wanted"), [(0.3, 10, 3), (0.3, 11, 4), (0.1, 30, 3), (0.7, 10, 7), (1, 3, 3)]
)
def test_a_fraction_is_taken_as_it_is_written_and_rounded_up(fraction, pairs, wanted):
    assert top.how_many(Top(by="x", fraction=fraction), pairs) == wanted


@pytest.mark.parametrize(
    "options", [{}, {"fraction": 0.3, "count": 3}, {"fraction": 0}, {"fraction": 1.1}, {"count": 0}]
)
def test_a_top_has_one_size(options):
    with pytest.raises(ValidationError):
        Top(by="x", **options)
