"""What a rule may contain, and what it is worth for a row."""

import math

import pyarrow as pa
import pytest

from vlmdata.errors import DataError, InputError
from vlmdata.rules import check_order, check_rule, evaluate

SCHEMA = pa.schema([("width", pa.int32()), ("score", pa.float32()), ("caption", pa.string())])


def test_a_rule_gives_its_columns_and_values():
    rule = check_rule("size", "width >= 2 and caption like 'a%' -- a remark", SCHEMA)
    assert rule.columns == ("caption", "width")
    rows = pa.table({"width": [1, 2, None], "score": [0.0, 0.0, 0.0], "caption": ["ab", "ab", "ab"]}, schema=SCHEMA)
    assert evaluate(rows, {"size": rule})["size"].to_pylist() == [False, True, None]


def test_nan_counts_as_null_and_division_by_zero_too():
    rows = pa.table({"width": [0, 0], "score": [math.nan, 0.5], "caption": ["", ""]}, schema=SCHEMA)
    rules = {
        "scored": check_rule("scored", "score > 0.3", SCHEMA),
        "ratio": check_rule("ratio", "score / width > 1", SCHEMA),
    }
    values = evaluate(rows, rules)
    assert values["scored"].to_pylist() == [None, True]
    assert values["ratio"].to_pylist() == [None, None]


@pytest.mark.parametrize(
    "text",
    [
        "(select 1) = 1",
        "exists (select 1)",
        "width > 1; drop table x",
        "width > 1 from range(3)",
        "width > 1 where true",
        "width > 1 limit 1",
        "width > 1, true",
        "true) or (true",
        "row_number() over () > 1",
        "count(*) > 1",
        "random() > 0.5",
        "current_localtime() > time '12:00'",
        "age(timestamp '2020-01-01') > interval 1 day",
        "now() > timestamp '2020-01-01'",
        "current_date > date '2020-01-01'",
        "current_setting('threads') = '1'",
        "getenv('HOME') = 'x'",
        "system.main.getenv('HOME') = 'x'",
        "getvariable('x') = 1",
        "glob('/etc/*') = ['x']",
        "read_blob('/etc/passwd') is null",
        "query('select 1') = 1",
        "width in (select 1)",
        "width = any(select 1)",
        "* exclude (width)",
        "unpack(columns(*)) > 1",
        "list_filter([1], lambda x: x > 0) = []",
        "[x for x in [1, 2] if x > 1] = [1]",
        "unnest([true])",
        "json_serialize_plan('select 1') is null",
        "uuid() is null",
        "nextval('s') = 1",
        "length(repeat('x', 1000000000000)) = 1",
        "length(lpad('x', 2000000000, 'y')) = 1",
        "length(printf('%1000000000d', 1)) = 1",
        "length(format('{:>1000000000}', 1)) = 1",
        "len(range(1000000000000)) = 1",
        "len(list_resize([1], 5000000000)) = 1",
        "__internal_compress_string_hugeint(caption) = 1",
        "read_text('/etc/passwd') = 'x'",
        "columns('width') > 1",
        "width = ?",
        "nextval('x') = 1",
        "list_filter([1], x -> x > 0) = []",
        "1 = 1 union select true",
        "",
    ],
)
def test_what_is_not_a_deterministic_expression_is_refused(text):
    with pytest.raises(InputError, match=r"select\.rules\.bad"):
        check_rule("bad", text, SCHEMA)


def test_errors_name_the_rule_and_the_nearest_right_name():
    with pytest.raises(InputError, match=r"select\.rules\.size: there is no column 'widht'; did you mean 'width'\?"):
        check_rule("size", "widht > 1", SCHEMA)
    with pytest.raises(InputError, match=r"lenght\(\).*did you mean 'length'\?"):
        check_rule("size", "lenght(caption) > 1", SCHEMA)
    with pytest.raises(InputError, match="INTEGER, not BOOLEAN"):
        check_rule("size", "width", SCHEMA)


def test_a_rule_that_fails_on_a_row_is_named():
    rule = check_rule("number", "caption::int > 3", SCHEMA)
    rows = pa.table({"width": [1], "score": [0.0], "caption": ["four"]}, schema=SCHEMA)
    with pytest.raises(DataError, match=r"number: .*four"):
        evaluate(rows, {"number": rule})


def test_an_order_has_its_terms_and_directions():
    terms = check_order("select.survivor", "width * 2 desc, length(caption)", SCHEMA)
    assert [(term.expression.columns, term.direction) for term in terms] == [
        (("width",), "desc"),
        (("caption",), "asc"),
    ]
    with pytest.raises(InputError, match=r"select\.survivor"):
        check_order("select.survivor", "width desc limit 1", SCHEMA)


def test_a_value_does_not_depend_on_the_machines_time_zone():
    rule = check_rule("epoch", "to_timestamp(0)::varchar = '1970-01-01 00:00:00+00'", SCHEMA)
    rows = pa.table({"width": [1], "score": [0.0], "caption": [""]}, schema=SCHEMA)
    assert evaluate(rows, {"epoch": rule})["epoch"].to_pylist() == [True]
