"""Mixing: exact counts, shares that follow the weights, and no dependence on the order of the rows."""

import math

import duckdb
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selection import ENDED

from vlmdata.errors import DataError, InputError
from vlmdata.plan import make_plan
from vlmdata.recipe import Recipe, Sample
from vlmdata.select import sample
from vlmdata.select.settle import begin


def drawn(weights, asked, reasons=None, order=None):
    """{row: copies}, 0 for those with the reason `sample`; by the code that the selection runs."""
    order = list(range(len(weights))) if order is None else order
    connection = duckdb.connect(":memory:")
    table = pa.table(
        {
            "place": pa.array(range(len(order)), pa.int64()),
            "uid": [f"{n * 0x9E3779B97F4A7C15F39CC0605CEDC835 % 2**128:032x}" for n in order],
            "reason": pa.array([reasons[n] if reasons else None for n in order], pa.string()),
            "weight": pa.array([weights[n] for n in order], pa.float64()),
        }
    )
    connection.register("given", table)
    connection.execute("CREATE TABLE verdict AS FROM given")
    begin(connection)
    sample.reject(connection, asked)
    copies = f"SELECT reason, coalesce(copies, 1) FROM {ENDED} LEFT JOIN drawn USING (place) ORDER BY place"
    rows = connection.sql(copies).fetchall()
    found = {}
    for n, (reason, copies) in zip(order, rows, strict=True):
        assert reason in (None, "sample", reasons[n] if reasons else None)
        assert (reason is None) <= (copies >= 1)
        found[n] = copies if reason is None else 0
    return found


WEIGHTS = st.lists(st.one_of(st.just(0.0), st.floats(1e-3, 1e3)), min_size=1, max_size=60).filter(any)


@settings(max_examples=15, deadline=None)
@given(WEIGHTS, st.integers(0, 3), st.booleans(), st.data())
def test_the_count_is_exact_and_the_order_of_rows_means_nothing(weights, seed, replacement, data):
    positive = sum(weight > 0 for weight in weights)
    count = data.draw(st.integers(1, 200 if replacement else positive))
    asked = Sample(count=count, replacement=replacement, seed=seed)
    found = drawn(weights, asked)
    assert sum(found.values()) == count
    assert not any(found[n] for n, weight in enumerate(weights) if not weight)
    assert drawn(weights, asked, order=data.draw(st.permutations(range(len(weights))))) == found
    if not replacement:
        assert set(found.values()) <= {0, 1}
    else:
        for n, weight in enumerate(weights):
            assert abs(found[n] - count * weight / math.fsum(weights)) < 1 + 1e-6, "rounded down or up"


def test_what_is_rejected_already_is_not_drawn():
    found = drawn([1.0] * 20, Sample(count=10), reasons=[None, "size"] * 10)
    assert found == {n: int(n % 2 == 0) for n in range(20)}


@pytest.mark.parametrize("replacement", [False, True])
def test_shares_follow_the_weights(replacement):
    rows, count = 20_000, 2_000
    weights = [4.0 if n % 10 == 0 else 1.0 for n in range(rows)]
    found = drawn(weights, Sample(count=count, replacement=replacement))
    heavy = sum(found[n] for n in range(0, rows, 10))
    share = 4 / 13  # without replacement a little less, since the heavy ones run out
    expected = count * share if replacement else 2_000 * (1 - math.exp(-4 * tau(rows, count)))
    assert abs(heavy - expected) < 5 * math.sqrt(count * share * (1 - share))
    assert heavy > count * 0.2, "without weights it would be a tenth"
    other = drawn(weights, Sample(count=count, replacement=replacement, seed=1))
    assert sum(found[n] and other[n] for n in range(rows)) < count / 2


def tau(rows, count):
    """How far exponential clocks of rate w have run when `count` of them have rung."""
    low, high = 0.0, 10.0
    for _ in range(60):
        middle = (low + high) / 2
        rung = rows * (0.1 * (1 - math.exp(-4 * middle)) + 0.9 * (1 - math.exp(-middle)))
        low, high = (middle, high) if rung < count else (low, middle)
    return low


@pytest.mark.parametrize(("weight", "told"), [(None, "1 pairs is null"), (-1.0, "negative"), (math.nan, "not finite"),
                                              (math.inf, "not finite")])  # fmt: skip
def test_a_weight_that_is_none_is_refused(weight, told):
    with pytest.raises(DataError, match=told):
        drawn([1.0, weight], Sample(count=1))
    assert drawn([1.0, weight], Sample(count=1), reasons=[None, "size"]) == {0: 1, 1: 0}


def test_more_than_there_are_is_refused():
    with pytest.raises(DataError, match="5 samples are asked for, 2 pairs with a weight above 0 are left"):
        drawn([1.0, 0.0, 1.0], Sample(count=5))
    assert sum(drawn([1.0, 0.0, 1.0], Sample(count=5, replacement=True)).values()) == 5
    with pytest.raises(DataError, match="loosen the rules"):
        drawn([0.0], Sample(count=5, replacement=True))


def planned(tmp_path, weights):
    (tmp_path / "list.csv").write_text("url,caption\nhttp://example.org/a.jpg,a\n")
    source = {"kind": "table", "name": "web", "path": str(tmp_path / "list.csv")}
    select = {"sample": {"weights": weights, "count": 3}}
    return make_plan(
        Recipe.model_validate({"dataset": "d", "sources": [source], "select": select, "signals": ["text"]})
    )


def test_weights_are_numbers_of_known_sources_and_columns(tmp_path):
    assert planned(tmp_path, {"web": 2.0}).checked.weight.columns == ("source",)
    assert planned(tmp_path, "sqrt(words)").checked.weight.columns == ("words",)
    with pytest.raises(ValueError, match="no source is called 'wbe'; did you mean 'web'"):
        planned(tmp_path, {"wbe": 2.0})
    with pytest.raises(InputError, match=r"select\.sample\.weights: the expression is BOOLEAN, not a number"):
        planned(tmp_path, "words > 3")
    with pytest.raises(InputError, match="there is no column 'wrods'"):
        planned(tmp_path, "wrods")
    with pytest.raises(ValueError, match="greater than or equal to 0"):
        planned(tmp_path, {"web": -1})
