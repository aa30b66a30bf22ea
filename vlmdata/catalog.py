"""DuckDB over a dataset: the view `samples` of the newest snapshot and a view for every table, from the manifests.

Nothing is opened for writing, so a prompt never blocks a run, and a query can read this dataset's files only.
"""

from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlmdata.dataset import Dataset
from vlmdata.errors import DataError, InputError, first_line
from vlmdata.parts import File, Part, Table, part_from
from vlmdata.rules import literal, quoted
from vlmdata.schemas import table_schema

GROUPED = ("duplicates", "contamination")  # made of all layers at once: their parts are not those of `pairs`
_APPEND_ONLY = ("jobs", "metrics")


def connect(dataset: Dataset, manifest: dict[str, Any] | None = None) -> duckdb.DuckDBPyConnection:
    """A connection that answers SELECTs on this dataset, each pair's newest rows alone.

    manifest: of another snapshot than the newest. Raises InputError where there is no dataset or snapshot.
    """
    snapshot = manifest or dataset.latest()
    if snapshot is None:
        raise InputError(f"{dataset.url}: no snapshot here; make one by `vlmdata run RECIPE`")
    connection = duckdb.connect(
        ":memory:",
        config={
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "python_enable_replacements": False,
        },
    )
    if not dataset.local:
        connection.register_filesystem(dataset.fs)
    _view(connection, dataset, "samples", [[part["path"] for part in snapshot["samples"]]])
    pairs = _layers(snapshot["tables"]["pairs"])
    for name, table in snapshot["tables"].items():
        _view(
            connection,
            dataset,
            name,
            [[p["path"] for p in table["parts"]]] if name in GROUPED else _layers(table),
            pairs,
        )
    observed = [part.path for table in dataset.tables_named("observations") for part in table.parts if part.rows]
    _view(connection, dataset, "observations", [observed])
    for name in _APPEND_ONLY:
        appended = [part.path for table in dataset.tables_named(name) for part in table.parts]
        _appended_view(connection, dataset, name, appended)
    folder = dataset.address("").rstrip("/") + "/"
    # DuckDB compares a pattern as it is written, so the folder's own name is allowed in that form too.
    connection.execute(f"SET allowed_directories = [{literal(folder)}, {literal(no_glob(folder))}]")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def query(connection: duckdb.DuckDBPyConnection, sql: str) -> duckdb.DuckDBPyRelation:
    """The answer to one SELECT. Raises InputError, in a line, for anything else and for what DuckDB refuses."""
    try:
        statements = connection.extract_statements(sql)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise InputError("one SELECT statement is expected: a dataset is changed by `vlmdata run` alone")
        relation = connection.sql(sql)
    except duckdb.Error as error:
        raise InputError(first_line(error)) from error
    if relation is None:
        raise InputError("one SELECT statement is expected: a dataset is changed by `vlmdata run` alone")
    return relation


def has_scalars(table: str) -> bool:
    """Whether a table's parts are those of `pairs` and have columns that `samples` takes over; others are large."""
    return table not in GROUPED and not table.startswith(("embeddings", "boxes"))


def wide_part(dataset: Dataset, parts: list[Part], chosen: pa.BooleanArray | None = None) -> pa.Table:
    """One part's scalar columns of several tables side by side: part n of each holds the same rows in one order.

    chosen: for each of them whether it is wanted; all are otherwise.
    """
    wide = beside(None, dataset.read_part(parts[0]))
    for part in parts[1:]:
        wide = beside(wide, dataset.read_part(part))
    return wide if chosen is None else wide.filter(chosen)


def beside(wide: pa.Table | None, rows: pa.Table) -> pa.Table:
    """`wide` with the scalar columns of another table of the same rows."""
    chosen = [name for name in rows.column_names if not pa.types.is_nested(rows.schema.field(name).type)]
    if wide is None:
        return rows.select([name for name in chosen if name != "fetch_url"])  # signed URLs reach no output
    assert rows.num_rows == wide.num_rows, f"{rows.num_rows} rows of {chosen} beside {wide.num_rows}"
    for name in chosen:
        if name not in ("uid", "fetch_url"):
            wide = wide.append_column(name, rows[name])
    return wide


def append(dataset: Dataset, table: str, rows: list[dict[str, Any]]) -> None:
    """Add rows to an append-only table (`jobs`, `metrics`). Only the holder of the lock may call it."""
    assert table in _APPEND_ONLY
    old = dataset.read_table(table, "log")
    parts = old.parts if old else ()
    schema = table_schema(table)
    part = dataset.write_part(table, "log", f"000001-{len(parts):07d}", pa.Table.from_pylist(rows, schema), {})
    dataset.write_table(Table(table, "log", (*parts, part)))


def logged(dataset: Dataset, table: str, number: int, columns: list[str] | None = None) -> list[dict[str, Any]]:
    """A snapshot's rows in an append-only table, in the order in which they came."""
    found = dataset.read_table(table, "log")
    parts = [dataset.read_part(part, columns) for part in (found.parts if found else ())]
    return [row for rows in parts for row in rows.filter(pc.equal(rows["snapshot"], number)).to_pylist()]


def _layers(table: dict[str, Any]) -> list[list[str]]:
    """The paths of a snapshot's table, layer by layer."""
    layers: dict[int, list[str]] = {}
    for part in table["parts"]:
        layers.setdefault(part_from(part).layer, []).append(part["path"])
    return list(layers.values())


def _view(
    connection: duckdb.DuckDBPyConnection,
    dataset: Dataset,
    name: str,
    layers: list[list[str]],
    pairs: Sequence[list[str]] = (),
) -> None:
    """A view of the layers' rows without those whose uid stands in `pairs` of a later layer."""
    if any(layers):
        columns = "* EXCLUDE (fetch_url)" if name == "pairs" else "*"  # signed URLs reach no output
        selects = []
        for place, paths in enumerate(layers):
            later = [path for newer in pairs[place + 1 :] for path in newer] if len(layers) > 1 else []
            newest = f" WHERE uid NOT IN (SELECT uid FROM {parquet_sql(dataset, later)})" if later else ""
            selects.append(f"SELECT {columns} FROM {parquet_sql(dataset, paths)}{newest}")
        try:
            connection.execute(f'CREATE VIEW "{name}" AS {" UNION ALL ".join(selects)}')
        except duckdb.Error as error:
            raise DataError(f"table {name}: {first_line(error)}; `vlmdata verify` lists what is damaged") from error
    else:
        connection.register(name, table_schema(name).empty_table())


def _appended_view(connection: duckdb.DuckDBPyConnection, dataset: Dataset, name: str, paths: list[str]) -> None:
    """A view of an append-only table, whose older parts may lack columns: these are null."""
    empty = table_schema(name).empty_table()
    if not paths:
        connection.register(name, empty)
        return
    relation = connection.from_arrow(empty)
    columns = ", ".join(
        f"NULL::{kind} AS {column}" for column, kind in zip(relation.columns, relation.types, strict=True)
    )
    try:
        connection.execute(
            f'CREATE VIEW "{name}" AS SELECT * FROM (SELECT {columns} WHERE false) '
            f"UNION ALL BY NAME SELECT * FROM read_parquet({_files(dataset, paths)}, union_by_name = true)"
        )
    except duckdb.Error as error:
        raise DataError(f"table {name}: {first_line(error)}; `vlmdata verify` lists what is damaged") from error


def view_parts(
    connection: duckdb.DuckDBPyConnection, dataset: Dataset, name: str, parts: Sequence[Part], schema: pa.Schema
) -> None:
    """Make the view `name` of these columns of the parts; those that a layer's first part does not have are null.

    Raises DataError as `Dataset.checked` does.
    """
    layers = [list(layer) for _, layer in groupby(parts, key=lambda part: part.layer)]
    _view_layers(connection, dataset, name, layers, schema)


def view_files(
    connection: duckdb.DuckDBPyConnection, dataset: Dataset, name: str, files: Sequence[Part | File], schema: pa.Schema
) -> None:
    """Make the view `name` of these columns of files that all have the same; otherwise as `view_parts`."""
    _view_layers(connection, dataset, name, [files] if files else [], schema)


def _view_layers(
    connection: duckdb.DuckDBPyConnection,
    dataset: Dataset,
    name: str,
    layers: Sequence[Sequence[Part | File]],
    schema: pa.Schema,
) -> None:
    """DuckDB reads the files itself: by Arrow's dataset it has many batches read ahead, 350 MB of four million rows."""
    if not dataset.local and not connection.list_filesystems():
        connection.register_filesystem(dataset.fs)
    connection.register(f"{name}_columns", schema.empty_table())
    selects = [f"FROM {name}_columns"]
    for layer in layers:
        paths = [dataset.checked(file).path for file in layer]
        there = [quoted(column) for column in schema_of(dataset, paths[0]).names if column in schema.names]
        selects.append(f"SELECT {', '.join(there)} FROM {parquet_sql(dataset, paths)}")
    connection.execute(f'CREATE VIEW "{name}" AS {" UNION ALL BY NAME ".join(selects)}')


def view_local(connection: duckdb.DuckDBPyConnection, name: str, path: Path) -> None:
    """Make the view `name` of a Parquet file of this machine."""
    connection.execute(f"CREATE VIEW {name} AS FROM read_parquet({literal(no_glob(str(path)))})")


def schema_of(dataset: Dataset, path: str) -> pa.Schema:
    """The schema of one of its Parquet files."""
    with dataset.open(path) as file:
        return pq.read_schema(file)


def parquet_sql(dataset: Dataset, paths: list[str]) -> str:
    """SQL that reads Parquet files of the dataset, one behind the other."""
    return f"read_parquet({_files(dataset, paths)})"


def _files(dataset: Dataset, paths: list[str]) -> str:
    return f"[{', '.join(literal(no_glob(dataset.address(path))) for path in paths)}]"


def no_glob(path: str) -> str:
    """The path with the signs that DuckDB reads as patterns put into brackets."""
    return "".join(f"[{sign}]" if sign in "*?[" else sign for sign in path)
