"""One rule: a deterministic SQL expression over columns. What it may contain, what it reads, and its value for rows."""

import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlmdata.errors import DataError, InputError, first_line
from vlmdata.recipe import nearest

# Whatever DuckDB's parser makes of a text, only these kinds of node may stand in it.
_ALLOWED = {
    "BETWEEN",
    "CASE",
    "CAST",
    "COLUMN_REF",
    "COMPARISON",
    "CONJUNCTION",
    "CONSTANT",
    "FUNCTION",
    "OPERATOR",
    "TYPE",
}
# DuckDB calls these consistent, although they read the clock or the environment, or run its parser or planner.
_NOT_PURE = {
    "age", "current_localtime", "current_localtimestamp", "getenv", "invoke", "json_deserialize_sql",
    "json_serialize_plan", "json_serialize_sql", "parse_duckdb_log_message",
}  # fmt: skip
# A number in their arguments, not the size of what they are given, says how large the value gets.
_BOMBS = {"array_resize", "bitstring", "format", "list_resize", "lpad", "printf", "repeat", "rpad"}
_local = threading.local()


@dataclass(frozen=True)
class Expression:
    """A checked expression: `sql` as DuckDB writes it again from its own parse, and the columns that it reads."""

    sql: str
    columns: tuple[str, ...]


@dataclass(frozen=True)
class Order:
    """One term of an ORDER BY: the expression and the words behind it."""

    expression: Expression
    direction: str


def connect() -> duckdb.DuckDBPyConnection:
    """DuckDB in memory that reads and writes no file, loads no extension and changes no setting. One a thread."""
    if not hasattr(_local, "connection"):
        connection = duckdb.connect(
            ":memory:",
            config={
                "threads": 1,
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
                "python_enable_replacements": False,
                # NULL, so that one odd row neither stops a run nor is greater than everything
                "ieee_floating_point_ops": False,
                "error_on_division_by_zero": False,
                "enable_external_access": False,
                # what one part's rules may hold: an expression that blows a text up fails instead of the machine
                "memory_limit": "1GB",
                "temp_directory": "",
            },
        )
        connection.execute("SET TimeZone = 'UTC'")  # else a time's text would depend on the machine
        connection.execute("SET lock_configuration = true")
        _local.connection = connection
    return _local.connection


def check_rule(name: str, text: str, schema: pa.Schema) -> Expression:
    """A rule of the recipe, checked against the columns that there will be.

    Raises InputError when it does not parse, is more than one expression, names no such column, calls what is not
    deterministic, or is not BOOLEAN.
    """
    expression = _checked(f"select.rules.{name}", _select_list(f"select.rules.{name}", text), schema)
    kind = _type(f"select.rules.{name}", expression, schema)
    if kind != "BOOLEAN":
        raise InputError(f"select.rules.{name}: the rule is {kind}, not BOOLEAN: compare it with something")
    return expression


def check_number(what: str, text: str, schema: pa.Schema) -> Expression:
    """An expression of the recipe whose value is a number, checked like a rule; its value is a DOUBLE."""
    expression = _checked(what, _select_list(what, text), schema)
    kind = _type(what, expression, schema)
    if kind.split("(")[0] not in _NUMERIC:
        raise InputError(f"{what}: the expression is {kind}, not a number")
    return Expression(f"CAST({expression.sql} AS DOUBLE)", expression.columns)


def check_order(what: str, text: str, schema: pa.Schema) -> list[Order]:
    """An ORDER BY of the recipe (`a * b desc, length(c)`), checked like a rule."""
    statement = _parse(what, f"SELECT 1 ORDER BY {text}\n")
    modifiers = statement["modifiers"]
    if len(modifiers) != 1 or modifiers[0]["type"] != "ORDER_MODIFIER":
        raise InputError(f"{what}: {text!r} is not a list of `expression [desc]`")
    orders = []
    for term in modifiers[0]["orders"]:
        expression = _checked(what, term["expression"], schema)
        _type(what, expression, schema)
        orders.append(Order(expression, "desc" if term["type"] == "DESCENDING" else "asc"))
    return orders


def evaluate(rows: pa.Table, expressions: Mapping[str, Expression]) -> pa.Table:
    """The expressions' values: a column for each name, as many rows as `rows` and in their order.

    NaN in `rows` counts as NULL, since DuckDB takes NaN for greater than every number.
    Raises DataError, with the expression's name, when it fails on a row.
    """
    read = sorted({column for expression in expressions.values() for column in expression.columns})
    connection = connect()
    # A constant column keeps the row count where no column is read.
    table = nan_to_null(rows.select(read)).append_column("_row", pa.array(range(rows.num_rows), pa.int64()))
    connection.register("rows", table)
    try:
        values = {}
        for name, expression in expressions.items():
            try:
                query = f"SELECT ({expression.sql}) AS value FROM rows ORDER BY _row"
                values[name] = connection.sql(query).to_arrow_table()["value"].combine_chunks()
            except duckdb.Error as error:
                raise DataError(f"{name}: {expression.sql} fails: {first_line(error)}") from error
    finally:
        connection.unregister("rows")
    return pa.table(values) if values else pa.table({"_row": table["_row"]}).select([])


def quoted(column: str) -> str:
    """A column's name in SQL."""
    return '"' + column.replace('"', '""') + '"'


def literal(value: str) -> str:
    """A SQL string."""
    return "'" + value.replace("'", "''") + "'"


def passing(rows: pa.Table, rules: Mapping[str, Expression]) -> np.ndarray:
    """bool [n]: the rows for which every rule is true. Raises DataError as `evaluate` does."""
    passed = np.ones(rows.num_rows, bool)
    for value in evaluate(rows, rules).columns if rules else ():
        passed &= pc.fill_null(value, False).to_numpy(zero_copy_only=False).astype(bool)
    return passed


def nan_to_null(rows: pa.Table) -> pa.Table:
    """`rows` with NULL for every NaN."""
    for place, column_field in enumerate(rows.schema):
        if pa.types.is_floating(column_field.type):
            column = rows.column(place)
            # pa.scalar keeps the type: a bare None would make it nullable of type null
            clean = pc.if_else(pc.is_nan(column), pa.scalar(None, column_field.type), column)
            rows = rows.set_column(place, column_field, clean)
    return rows


def _select_list(what: str, text: str) -> Any:
    statement = _parse(what, f"SELECT {text}\n")
    if len(statement["select_list"]) != 1 or statement["modifiers"]:
        raise InputError(f"{what}: {text!r} is not one expression")
    return statement["select_list"][0]


def _parse(what: str, sql: str) -> Any:
    """DuckDB's parse of one SELECT."""
    parsed = json.loads(_one("SELECT json_serialize_sql(?)", [sql]))
    if parsed["error"]:
        raise InputError(f"{what}: SQL that does not parse: {parsed['error_message']}")
    if len(parsed["statements"]) != 1 or parsed["statements"][0]["node"]["type"] != "SELECT_NODE":
        raise InputError(f"{what}: only an expression may stand here")
    node = parsed["statements"][0]["node"]
    rest = ("where_clause", "group_expressions", "group_sets", "having", "sample", "qualify")
    if node["from_table"]["type"] != "EMPTY" or node["cte_map"]["map"] or any(node.get(key) for key in rest):
        raise InputError(f"{what}: only an expression may stand here")
    return node


def _checked(what: str, node: Any, schema: pa.Schema) -> Expression:
    names = {name.lower(): name for name in schema.names}
    columns = set()
    for part in _walk(node):
        kind = part["class"]
        if kind not in _ALLOWED:
            raise InputError(f"{what}: a {kind.lower().replace('_', ' ')} may not stand in a rule")
        if kind == "FUNCTION" and part["function_name"] not in _functions():
            raise InputError(
                f"{what}: {part['function_name']}() is no function that a rule may call: only those whose value "
                f"depends on their arguments alone{nearest(part['function_name'], _functions())}"
            )
        if kind == "COLUMN_REF":
            column = part["column_names"][0]
            if column.lower() not in names:
                raise InputError(
                    f"{what}: there is no column {column!r}{nearest(column, schema.names)} "
                    "(a signal's columns are there when `signals` names it)"
                )
            columns.add(names[column.lower()])
    return Expression(_write(node), tuple(sorted(columns)))


def _walk(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        if "class" in node:
            yield node
        for value in node.values():
            yield from _walk(value)
    elif isinstance(node, list):
        for value in node:
            yield from _walk(value)


def _write(node: Any) -> str:
    """The expression's SQL, written from its parse: no comment or trick of the text survives."""
    frame = _parse("", "SELECT 1")
    frame["select_list"] = [{**node, "alias": ""}]
    document = json.dumps({"error": False, "statements": [{"node": frame, "named_param_map": []}]})
    return _one("SELECT json_deserialize_sql(?::JSON)", [document]).removeprefix("SELECT ")


def _one(sql: str, parameters: list[str]) -> str:
    # fetchall, since a connection with an unfinished result refuses other work
    return connect().execute(sql, parameters).fetchall()[0][0]


@cache
def _functions() -> frozenset[str]:
    """The names of scalar functions whose value depends on their arguments alone."""
    rows = connect().execute(
        "SELECT function_name FROM duckdb_functions() GROUP BY function_name "
        "HAVING bool_and(function_type = 'scalar' AND stability = 'CONSISTENT')"
    )
    names = frozenset(name for (name,) in rows.fetchall())
    return names - _NOT_PURE - _BOMBS - {name for name in names if name.startswith("__internal")}


_NUMERIC = {
    "TINYINT", "SMALLINT", "INTEGER", "BIGINT", "HUGEINT", "UTINYINT", "USMALLINT", "UINTEGER", "UBIGINT", "UHUGEINT",
    "FLOAT", "DOUBLE", "DECIMAL",
}  # fmt: skip
_SQL_TYPES = {
    pa.string(): "VARCHAR",
    pa.bool_(): "BOOLEAN",
    pa.int32(): "INTEGER",
    pa.int64(): "BIGINT",
    pa.uint64(): "UBIGINT",
    pa.float32(): "FLOAT",
    pa.float64(): "DOUBLE",
    pa.timestamp("ms", tz="UTC"): "TIMESTAMPTZ",
}


def _type(what: str, expression: Expression, schema: pa.Schema) -> str:
    # Not by registering an empty Arrow table: DuckDB imports pandas then, a second that every command would wait.
    columns = ", ".join(f'NULL::{_SQL_TYPES[schema.field(name).type]} AS "{name}"' for name in expression.columns)
    query = f"DESCRIBE SELECT ({expression.sql}) AS value FROM (SELECT {columns or 1})"
    try:
        return connect().execute(query).fetchall()[0][1]
    except duckdb.Error as error:
        raise InputError(f"{what}: {first_line(error)}") from error
