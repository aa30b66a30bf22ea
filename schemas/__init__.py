"""The contract of every table and file: loads `tables.yaml` and the JSON Schemas beside it, and enforces them."""

import json
from functools import cache
from importlib.resources import files
from typing import Any

import pyarrow as pa
import yaml

CONSENT = pa.struct([(word, pa.string()) for word in ("robots", "noai", "tdm", "noml")])

BOX = pa.struct([(name, pa.float32()) for name in ("left", "top", "right", "bottom", "score")])
POLYGON = pa.list_(pa.float32(), 8)  # x1, y1, … x4, y4

_TYPES: dict[str, pa.DataType] = {
    "string": pa.string(),
    "bool": pa.bool_(),
    "int32": pa.int32(),
    "int64": pa.int64(),
    "uint64": pa.uint64(),
    "float32": pa.float32(),
    "float64": pa.float64(),
    "timestamp": pa.timestamp("ms", tz="UTC"),
    "list<string>": pa.list_(pa.string()),
    "consent": CONSENT,
    "list<box>": pa.list_(BOX),
    "list<polygon>": pa.list_(POLYGON),
}


@cache
def columns(table: str) -> dict[str, dict[str, Any]]:
    """Name -> {type, meaning} of a table's columns, in order. Raises KeyError for an unknown table."""
    return _tables()[table]


@cache
def _tables() -> dict[str, dict[str, dict[str, Any]]]:
    return yaml.safe_load(files(__package__).joinpath("tables.yaml").read_text("utf-8"))


def table_schema(table: str, suffix: str = "", dim: int | None = None) -> pa.Schema:
    """The Arrow schema of a table.

    suffix: put behind the columns that carry the signal's name (`_b` for `name: b` in the recipe).
    dim: the length of `vector` columns; needed where the table has one.
    """
    fields = []
    for name, column in columns(table).items():
        kind = column["type"]
        if kind == "vector":
            if dim is None:
                raise ValueError(f"table {table}: the column {name} needs a dimension")
            arrow: pa.DataType = pa.list_(pa.float16(), dim)
        else:
            arrow = _TYPES[kind]
        fields.append(pa.field(name + (suffix if column.get("suffix") else ""), arrow))
    return pa.schema(fields)


def conform(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """`rows` in exactly the columns, order and types of `schema`.

    Raises ValueError when a column is missing or too many, or a value does not fit its type.
    """
    missing = set(schema.names) - set(rows.column_names)
    extra = set(rows.column_names) - set(schema.names)
    if missing or extra:
        raise ValueError(f"columns missing: {sorted(missing)}, not in the schema: {sorted(extra)}")
    return rows.select(schema.names).cast(schema)


def json_schema(name: str) -> dict[str, Any]:
    """The JSON Schema in `<name>.schema.json`."""
    return json.loads(files(__package__).joinpath(f"{name}.schema.json").read_text("utf-8"))
