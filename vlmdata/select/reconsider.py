"""What a changed selection would keep, from the newest snapshot's samples alone; nothing is written.

Rules are judged again from the first that differs, by DuckDB over the columns that they read; consent and download stay
as they were judged. Then come the same steps as in `settle`: duplicates, top, sample.
"""

import copy
import tempfile
from collections import Counter
from dataclasses import replace
from typing import Any

import duckdb
import pyarrow as pa
from pydantic import ValidationError

from vlmdata.catalog import parquet_sql, schema_of
from vlmdata.dataset import Dataset
from vlmdata.dedup import alike
from vlmdata.errors import DataError, InputError, first_line
from vlmdata.recipe import Recipe, signal_name
from vlmdata.recipe_file import apply_setting
from vlmdata.rules import Expression, literal, quoted
from vlmdata.select import duplicates, top
from vlmdata.select.checked import Checked, check_select, choice
from vlmdata.select.choice import Choice
from vlmdata.select.funnel import funnel
from vlmdata.select.settle import begin, reject

Steps = list[dict[str, Any]]
_NOT_MEASURED = ": not measured"
_RULED = "a rule"  # stands for the reason of rows that are counted already
_PLACE = '"place of the row"'


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
    schema = schema_of(dataset, paths[0])
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
            first, same_order = _first_change(before, after), _order(published, before) == _order(recipe, after)
            counts = _counts(connection, dataset, snapshot, columns, first, chosen, after, same_order)
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
    same_order: bool,
) -> dict[str | None, int]:
    """How many pairs have each reason. same_order: whether the survivor's order is as it was published."""
    paths = [part["path"] for part in snapshot["samples"]]
    connection.execute(
        f"CREATE VIEW samples AS SELECT *, (file_index::BIGINT << 32) + file_row_number AS {_PLACE} "
        f"FROM {parquet_sql(dataset, paths)}"
    )
    connection.execute(f"CREATE VIEW uids AS SELECT {_PLACE} AS place, uid FROM samples")
    rules = dict(chosen.rules)
    for name, fraction in list(checked.ranked.items()):
        if list(rules).index(name) >= first:
            rules[name] = _ranked(connection, rules[name], fraction, columns)
    again = dict(list(rules.items())[first:])
    code, reasons = _code(again, chosen.unmeasured)
    # What the download, consent and the rules before `first` said stands.
    before = {"forgotten", *(each for name in list(rules)[:first] for each in (name, name + _NOT_MEASURED))}
    counts: Counter[str | None] = Counter()
    open_: set[str] = set()  # the stored reasons that say nothing of a changed selection
    query = f"SELECT reason, {code} AS code, count(*) FROM {_judged(again, {}, columns)} GROUP BY ALL"
    for stored, place, pairs in connection.sql(query).fetchall():
        if stored is not None and not (stored in before or stored.startswith(("consent: ", "download: "))):
            open_.add(stored)
            stored = None
        counts[stored if stored is not None or place is None else reasons[place]] += pairs
    if not (chosen.methods or chosen.top or (chosen.sample and not chosen.balanced)):
        return dict(counts)
    # a balancing is not counted again, nor what comes behind it; merged captions count for nothing
    chosen = replace(chosen, merging=frozenset(), sample=None if chosen.balanced else chosen.sample)
    values = {name: each for name, each in (("top_by", chosen.top_by), ("weight", chosen.weight)) if each}
    listed = [f"{_PLACE} AS place"]
    if chosen.top:
        listed.append(f"{top.key_sql('top_by')} AS top")
    grouped = bool(chosen.methods) and same_order and "grouped" in snapshot
    if chosen.sample or (chosen.methods and not grouped):  # most of what is read
        listed.append("uid")
    if chosen.methods and not grouped:
        values |= {f"term_{place}": order.expression for place, order in enumerate(chosen.survivor)}
    rows = _judged(again, values, columns)
    words = f" OR reason IN ({', '.join(map(literal, sorted(open_)))})" if open_ else ""
    passes = f"{code} IS NULL AND (reason IS NULL{words})"
    # Ranking the pool needs all rows; of the others those that a rule rejects are forgotten.
    whole = chosen.top is not None and chosen.top.of == "pool"
    reason = f"CASE WHEN {passes} THEN NULL ELSE {literal(_RULED)} END" if whole else "NULL::VARCHAR"
    listed += [name for name in values if name != "top_by"]
    connection.execute(
        f"CREATE TABLE verdict AS SELECT {', '.join(listed)}, {reason} AS reason FROM {rows}"
        + ("" if whole else f" WHERE {passes}")
    )
    begin(connection)
    near = _groups(connection, dataset, snapshot, chosen, grouped) if chosen.methods else []
    reject(connection, chosen, [], None, bool(chosen.methods), near)
    for step, pairs in connection.sql("SELECT reason, count(*) FROM rejected GROUP BY reason").fetchall():
        counts[step] += pairs
        counts[None] -= pairs
    return dict(counts)


def _groups(
    connection: duckdb.DuckDBPyConnection, dataset: Dataset, snapshot: dict[str, Any], chosen: Choice, grouped: bool
) -> list[str]:
    """Make the table `grouped` and the views of near pairs; the methods that have them. See `duplicates.reject`.

    grouped: whether the snapshot's own file of it may be read; snapshots have one since this was asked for.
    """
    parts = snapshot["tables"]["duplicates"]["parts"]
    if grouped:
        file = parquet_sql(dataset, [snapshot["grouped"]["path"]])
        connection.execute(
            "CREATE VIEW grouped AS SELECT (part::BIGINT << 32) + row AS place, uid, dup_method, dup_group, rank "
            f"FROM {file}"
        )
    else:
        _view(connection, dataset, "duplicates", [part["path"] for part in parts])
        duplicates.rank(connection, chosen)
    near = []
    for method, part in zip(snapshot["recipe"]["dedup"], parts, strict=True):
        if pairs := [file["path"] for file in part["also"] if file["path"].endswith(alike.ENDING)]:
            _view(connection, dataset, f"near_{method['kind']}", pairs)
            near.append(method["kind"])
    return near


def _code(rules: dict[str, Expression], unmeasured: frozenset[str]) -> tuple[str, list[str]]:
    """SQL of the place of what rejects a row first, NULL where nothing does, and the reasons by place, as `judge_part`
    has them. Over `_judged`. Numbers, since texts for each of many rows cost more than all that is read."""
    cases = ""
    reasons: list[str] = []
    for name, rule in rules.items():
        gaps = [f"{_gap(column)} IS NULL" for column in rule.columns if column in unmeasured]
        if gaps:
            cases += f"WHEN {_value(name)} IS NULL AND ({' OR '.join(gaps)}) THEN {len(reasons)} "
            reasons.append(name + _NOT_MEASURED)
        cases += f"WHEN NOT coalesce({_value(name)}, false) THEN {len(reasons)} "
        reasons.append(name)
    return (f"(CASE {cases}END)" if cases else "NULL::INTEGER"), reasons


def _judged(rules: dict[str, Expression], values: dict[str, Expression], columns: pa.Schema) -> str:
    """SQL of `_rows` with the rules' values (`_value`) and others beside. A rule has its value for every row, whatever
    those before it say: what fails on a row in a run fails here too."""
    named = {_value(name): rule for name, rule in rules.items()} | values
    listed = "".join(f", ({each.sql}) AS {name}" for name, each in named.items())
    return f"(SELECT *{listed} FROM {_rows(list(named.values()), columns)})"


def _rows(expressions: list[Expression], columns: pa.Schema) -> str:
    """SQL of the samples' columns that are read, NaN as NULL, and beside each what was stored."""
    read = sorted({column for expression in expressions for column in expression.columns} - {"uid"})
    listed = ["uid", "reason", _PLACE]
    for name in read:
        column = quoted(name)
        clean = f"CASE WHEN isnan({column}) THEN NULL ELSE {column} END"
        listed.append(f"{clean if pa.types.is_floating(columns.field(name).type) else column} AS {column}")
        listed.append(f"{column} AS {_gap(name)}")
    return f"(SELECT {', '.join(listed)} FROM samples)"


def _ranked(connection: duckdb.DuckDBPyConnection, by: Expression, fraction: float, columns: pa.Schema) -> Expression:
    """The rule on the exact threshold of DataComp's rank rule."""
    connection.execute(
        f"CREATE OR REPLACE TEMP TABLE ranked AS SELECT {top.key_sql('number')} AS top "
        f"FROM (SELECT {by.sql} AS number FROM {_rows([by], columns)})"
    )
    place = top.datacomp_place(fraction, connection.sql("SELECT count(*) FROM ranked").fetchall()[0][0])
    found = top.threshold(top.counting(connection, "ranked"), place)
    return top.at_least(by, top.value(found[0]) if found else None)


def _first_change(before: Checked, after: Checked) -> int:
    """The place of the first rule that is not as it was published."""
    old, new = (
        [(name, rule.sql, each.ranked.get(name)) for name, rule in each.rules.items()] for each in (before, after)
    )
    same = 0
    while same < min(len(old), len(new)) and old[same] == new[same]:
        same += 1
    return same


def _order(recipe: Recipe, checked: Checked) -> tuple[Any, ...]:
    """What the survivors' order hangs on."""
    return recipe.select.survivor, [(order.expression.sql, order.direction) for order in checked.survivor]


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
    found = {column for table in tables for column in schema_of(dataset, table["parts"][0]["path"]).names}
    return frozenset(found - {"uid"})


def _view(connection: duckdb.DuckDBPyConnection, dataset: Dataset, name: str, paths: list[str]) -> None:
    connection.execute(f"CREATE VIEW {name} AS SELECT * FROM {parquet_sql(dataset, paths)}")


def _value(rule: str) -> str:
    return quoted(f"{rule} as judged")


def _gap(column: str) -> str:
    return quoted(f"{column} as stored")
