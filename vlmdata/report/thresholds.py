"""The numbers that a rule compares with, taken from DuckDB's own parse of the rule, so that a chart can show them."""

import json
from dataclasses import dataclass
from typing import Any

import duckdb

from vlmdata.rules import connect

_SIGNS = {
    "COMPARE_GREATERTHANOREQUALTO": "≥",
    "COMPARE_GREATERTHAN": ">",
    "COMPARE_LESSTHANOREQUALTO": "≤",
    "COMPARE_LESSTHAN": "<",
}
_TURNED = {"≥": "≤", ">": "<", "≤": "≥", "<": ">"}


@dataclass(frozen=True)
class Threshold:
    """`expression sign value` must hold for the rule to be true.

    expression: SQL; a column's bare name where it is one. sign: one of ≥ > ≤ <. value: a finite number.
    """

    rule: str
    expression: str
    sign: str
    value: float


def thresholds(rule: str, text: str) -> list[Threshold]:
    """The comparisons with a number that a rule needs to be true, in its order: `a >= 2`, `5 < b`, `c between 1 and 2`.

    Only comparisons joined by AND are taken: what stands below OR or NOT turns nothing away by itself.
    """
    found: list[Threshold] = []
    for node in _joined_by_and(_parsed(text)):
        for left, sign, right in _comparisons(node):
            value = _number(right)
            if value is not None:
                found.append(Threshold(rule, _sql(left), sign, value))
            elif (value := _number(left)) is not None:
                found.append(Threshold(rule, _sql(right), _TURNED[sign], value))
    return found


def columns_read(text: str) -> list[str]:
    """The columns that a rule reads, in its order, as the rule writes them."""
    columns: dict[str, None] = {}

    def walk(node: Any) -> None:
        if isinstance(node, dict) and node.get("class") == "COLUMN_REF":
            columns.setdefault(node["column_names"][-1])
        for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
            walk(child)

    walk(_parsed(text))
    return list(columns)


def _parsed(text: str) -> dict[str, Any]:
    """DuckDB's parse of one expression."""
    return json.loads(_one("SELECT json_serialize_sql(?)", f"SELECT {text}\n"))["statements"][0]["node"]["select_list"][
        0
    ]


def _joined_by_and(node: dict[str, Any]) -> list[dict[str, Any]]:
    if node["type"] != "CONJUNCTION_AND":
        return [node]
    return [part for child in node["children"] for part in _joined_by_and(child)]


def _comparisons(node: dict[str, Any]) -> list[tuple[dict[str, Any], str, dict[str, Any]]]:
    if node["class"] == "BETWEEN":
        return [(node["input"], "≥", node["lower"]), (node["input"], "≤", node["upper"])]
    if node["class"] == "COMPARISON" and node["type"] in _SIGNS:
        return [(node["left"], _SIGNS[node["type"]], node["right"])]
    return []


def _number(node: dict[str, Any]) -> float | None:
    """The value of an expression that reads no column, where it is a finite number."""
    if '"COLUMN_REF"' in json.dumps(node):
        return None
    try:
        rows = connect().execute(f"SELECT {_sql(node)}").fetchall()
    except duckdb.Error:
        return None
    value = rows[0][0]
    if value is None or isinstance(value, bool | str | bytes):
        return None
    try:
        number = float(value)
    except (TypeError, ValueError):
        return None
    return number if abs(number) < float("inf") else None


def _sql(node: dict[str, Any]) -> str:
    """The node as SQL, written by DuckDB from its parse."""
    frame = json.loads(_one("SELECT json_serialize_sql(?)", "SELECT 1"))
    frame["statements"][0]["node"]["select_list"] = [{**node, "alias": ""}]
    text = _one("SELECT json_deserialize_sql(?::JSON)", json.dumps(frame)).removeprefix("SELECT ")
    return text[1:-1].replace('""', '"') if node["class"] == "COLUMN_REF" and text.startswith('"') else text


def _one(sql: str, parameter: str) -> str:
    return connect().execute(sql, [parameter]).fetchall()[0][0]
