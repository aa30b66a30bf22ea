"""What a changed selection would keep, from the newest snapshot's samples alone; nothing is written.

Rules are judged again from the first that differs, by DuckDB over the columns that they read; consent and download stay
as they were judged. Then come the same steps as in `settle`: duplicates, top, sample.
"""

import copy
import tempfile
from dataclasses import replace
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import ValidationError

from vlmdata.catalog import parquet_sql
from vlmdata.dataset import Dataset
from vlmdata.dedup import NEAR_ENDING
from vlmdata.errors import DataError, InputError, first_line
from vlmdata.recipe import Recipe, signal_name
from vlmdata.recipe_file import apply_setting
from vlmdata.rules import Expression, literal, quoted
from vlmdata.select import top
from vlmdata.select.checked import Checked, check_select, choice
from vlmdata.select.choice import Choice
from vlmdata.select.funnel import funnel
from vlmdata.select.settle import reject

Steps = list[dict[str, Any]]


def reconsider(dataset: Dataset, settings: list[str]) -> tuple[Steps, Steps, list[str]]:
    """The published funnel, the one after the settings, and the steps that are left out of it.

    settings: `select.…=YAML`, applied to the recipe that the newest snapshot records. A balancing needs the captions,
    so it and the sampling behind it are not counted again. Raises InputError for what is no selection.
    """
    snapshot = dataset.latest()
    if snapshot is None:
        raise InputError(f"{dataset.url}: no snapshot here; make one by `vlmdata run RECIPE`")
    published, recipe = (_recipe(dataset, snapshot, changes) for changes in ([], settings))
    paths = [part["path"] for part in snapshot["samples"]]
    schema = _schema(dataset, paths[0])
    columns = pa.schema([schema.field(name) for name in snapshot["columns"]])
    before, after = (check_select(each, columns) for each in (published, recipe))
    chosen = choice(recipe, after, _unmeasured(dataset, snapshot, recipe))
    with tempfile.TemporaryDirectory() as spill:
        connection = duckdb.connect(
            ":memory:",
            config={
                "temp_directory": spill,
                "memory_limit": "2GB",
                "ieee_floating_point_ops": False,  # as rules.connect has it
                "error_on_division_by_zero": False,
                "autoinstall_known_extensions": False,
                "autoload_known_extensions": False,
            },
        )
        connection.execute("SET TimeZone = 'UTC'")
        if not dataset.local:
            connection.register_filesystem(dataset.fs)
        try:
            counts = _counts(connection, dataset, snapshot, columns, _first_change(before, after), chosen, after)
        except duckdb.Error as error:
            raise DataError(f"{dataset.url}: {first_line(error)}") from error
        finally:
            connection.close()
    left_out = [step for step in ("balance", "sample") if chosen.balanced and (step == "balance" or chosen.sample)]
    was, now = (
        [step for step in steps if step["reason"] not in left_out]
        for steps in (snapshot["funnel"], funnel(counts, chosen))
    )
    return was, now, left_out


def _counts(
    connection: duckdb.DuckDBPyConnection,
    dataset: Dataset,
    snapshot: dict[str, Any],
    columns: pa.Schema,
    first: int,
    chosen: Choice,
    checked: Checked,
) -> dict[str | None, int]:
    """How many pairs have each reason."""
    _view(connection, dataset, "samples", [part["path"] for part in snapshot["samples"]])
    rules = dict(chosen.rules)
    for name, fraction in list(checked.ranked.items()):
        if list(rules).index(name) >= first:
            rules[name] = _ranked(connection, rules[name], fraction, columns)
    values = {f"term_{place}": order.expression for place, order in enumerate(chosen.survivor)}
    values |= {name: each for name, each in (("top_by", chosen.top_by), ("weight", chosen.weight)) if each}
    reason = _reason(rules, first, chosen.unmeasured)
    steps = bool(chosen.methods or chosen.top or (chosen.sample and not chosen.balanced))
    if not steps:
        rows = _judged(dict(list(rules.items())[first:]), {}, columns)
        return dict(connection.sql(f"SELECT {reason}, count(*) FROM {rows} GROUP BY 1").fetchall())
    rows = _judged(dict(list(rules.items())[first:]), values, columns)
    listed = "".join(f", {name}" for name in values)
    # Ranking the pool needs all rows; else those that a rule rejects are counted and forgotten.
    whole = chosen.top is not None and chosen.top.of == "pool"
    connection.execute(f"CREATE VIEW judged AS SELECT uid, {reason} AS reason{listed} FROM {rows}")
    counts = {} if whole else dict(connection.sql("SELECT reason, count(*) FROM judged GROUP BY reason").fetchall())
    counts.pop(None, None)
    connection.execute(
        "CREATE TABLE verdict AS SELECT row_number() OVER () AS place, *, 1 AS copies FROM judged"
        + ("" if whole else " WHERE reason IS NULL")
    )
    near = []
    if chosen.methods:
        parts = snapshot["tables"]["duplicates"]["parts"]
        _view(connection, dataset, "duplicates", [part["path"] for part in parts])
        for method, part in zip(snapshot["recipe"]["dedup"], parts, strict=True):
            if pairs := [file["path"] for file in part["also"] if file["path"].endswith(NEAR_ENDING)]:
                _view(connection, dataset, f"near_{method['kind']}", pairs)
                near.append(method["kind"])
    if chosen.top is not None:
        ranked = connection.sql("SELECT top_by FROM verdict").to_arrow_table()["top_by"]  # in the order of the table
        connection.register("keys", pa.table({"top": top.keys(ranked)}))
        connection.execute("CREATE OR REPLACE TABLE verdict AS SELECT * FROM verdict POSITIONAL JOIN keys")
    # a balancing is not counted again, nor what comes behind it
    counted = replace(chosen, sample=None) if chosen.balanced else chosen
    reject(connection, counted, [], None, bool(chosen.methods), near)
    return counts | dict(connection.sql("SELECT reason, count(*) FROM verdict GROUP BY reason").fetchall())


def _reason(rules: dict[str, Expression], first: int, unmeasured: frozenset[str]) -> str:
    """SQL of the reason, as `judge_part` gives it: what the rules before `first` said stands."""
    names = list(rules)
    stands = ["reason = 'forgotten'", "starts_with(reason, 'consent: ')", "starts_with(reason, 'download: ')"]
    kept = [each for name in names[:first] for each in (name, f"{name}: not measured")]
    if kept:
        stands.append(f"reason IN ({', '.join(map(literal, kept))})")
    cases = f"WHEN {' OR '.join(stands)} THEN reason "
    for name in names[first:]:
        rule = rules[name]
        gaps = [f"{_gap(column)} IS NULL" for column in rule.columns if column in unmeasured]
        verdict = literal(name)
        if gaps:
            verdict = (
                f"CASE WHEN {_value(name)} IS NULL AND ({' OR '.join(gaps)}) "
                f"THEN {literal(f'{name}: not measured')} ELSE {verdict} END"
            )
        cases += f"WHEN NOT coalesce({_value(name)}, false) THEN {verdict} "
    return f"CASE {cases}END"


def _judged(rules: dict[str, Expression], values: dict[str, Expression], columns: pa.Schema) -> str:
    """SQL of `_rows` with the rules' values (`_value`) and others beside. A rule has its value for every row, whatever
    those before it say: what fails on a row in a run fails here too."""
    named = {_value(name): rule for name, rule in rules.items()} | values
    listed = "".join(f", ({each.sql}) AS {name}" for name, each in named.items())
    return f"(SELECT *{listed} FROM {_rows(list(named.values()), columns)})"


def _rows(expressions: list[Expression], columns: pa.Schema) -> str:
    """SQL of the samples' columns that are read, NaN as NULL, and beside each what was stored."""
    read = sorted({column for expression in expressions for column in expression.columns} - {"uid"})
    listed = ["uid", "reason"]
    for name in read:
        column = quoted(name)
        clean = f"CASE WHEN isnan({column}) THEN NULL ELSE {column} END"
        listed.append(f"{clean if pa.types.is_floating(columns.field(name).type) else column} AS {column}")
        listed.append(f"{column} AS {_gap(name)}")
    return f"(SELECT {', '.join(listed)} FROM samples)"


def _ranked(connection: duckdb.DuckDBPyConnection, by: Expression, fraction: float, columns: pa.Schema) -> Expression:
    """The rule on the exact threshold of DataComp's rank rule."""
    values = connection.sql(f"SELECT {by.sql} AS ranked FROM {_rows([by], columns)}").to_arrow_table()["ranked"]
    keys = top.keys(values)
    place = top.datacomp_place(fraction, len(keys))
    return top.at_least(by, top.threshold(lambda prefix, known: top.count_keys(keys, prefix, known), place))


def _first_change(before: Checked, after: Checked) -> int:
    """The place of the first rule that is not as it was published."""
    old, new = (
        [(name, rule.sql, each.ranked.get(name)) for name, rule in each.rules.items()] for each in (before, after)
    )
    same = 0
    while same < min(len(old), len(new)) and old[same] == new[same]:
        same += 1
    return same


def _recipe(dataset: Dataset, snapshot: dict[str, Any], settings: list[str]) -> Recipe:
    data = {**copy.deepcopy(snapshot["recipe"]), "dataset": dataset.url}
    for setting in settings:
        if not setting.startswith("select."):
            raise InputError(f"--set {setting}: only `select.…` is judged again from a snapshot's samples")
        apply_setting(data, setting)
    try:
        return Recipe.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        raise InputError(f"--set: {where}: {first['msg'].removeprefix('Value error, ')}") from error


def _unmeasured(dataset: Dataset, snapshot: dict[str, Any], recipe: Recipe) -> frozenset[str]:
    """The columns of the signals that have an `after`."""
    names = [signal_name(signal) for signal in recipe.signals if signal.after]
    tables = [snapshot["tables"][name] for name in names if name in snapshot["tables"]]
    found = {column for table in tables for column in _schema(dataset, table["parts"][0]["path"]).names}
    return frozenset(found - {"uid"})


def _schema(dataset: Dataset, path: str) -> pa.Schema:
    with dataset.open(path) as file:
        return pq.read_schema(file)


def _view(connection: duckdb.DuckDBPyConnection, dataset: Dataset, name: str, paths: list[str]) -> None:
    connection.execute(f"CREATE VIEW {name} AS SELECT * FROM {parquet_sql(dataset, paths)}")


def _value(rule: str) -> str:
    return quoted(f"{rule} as judged")


def _gap(column: str) -> str:
    return quoted(f"{column} as stored")
