"""The stage `dedup`: groups of duplicates over all parts, one part of `duplicates` a method.

Only hashes and vectors travel here, never images.
"""

import functools
import logging
from collections.abc import Mapping
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vlmdata import dedup, layers
from vlmdata.dataset import Dataset, Table, noted, part_name
from vlmdata.plan import Plan

progress = logging.getLogger("vlmdata.progress")


def run(plan: Plan, dataset: Dataset, tables: dict[str, Table]) -> Table:
    """Group the pairs by every method of the recipe and write the table's manifest."""
    parts = []
    in_force = layers.in_force(dataset, tables["pairs"])
    for number, method in enumerate(plan.recipe.dedup):
        read, columns = dedup.reads(method)
        told = {"stage": "dedup", "done": number, "total": len(plan.recipe.dedup)}
        progress.info("dedup: %s", method.kind, extra=told)
        uids, values = _gather(dataset, tables[read], columns, in_force)
        groups = dedup.groups(method, uids, values)
        # A snapshot that is out relies on the groups of its own layers, which stay.
        name = part_name(number, tables["pairs"].layer)
        parts.append(dataset.write_part("duplicates", plan.tables["duplicates"], name, groups, {}))
    progress.info("dedup: done", extra={"stage": "dedup", "done": len(parts), "total": len(parts)})
    table = Table("duplicates", plan.tables["duplicates"], tuple(parts), noted(tables.values()))
    dataset.write_table(table)
    return table


def _gather(
    dataset: Dataset, table: Table, columns: list[str], in_force: Mapping[str, pa.BooleanArray]
) -> tuple[pa.ChunkedArray, dict[str, Any]]:
    """The uids and values of all rows in force that have every value; vectors as one array [n, d]."""
    chunks = []
    for part in table.parts:
        rows = dataset.read_part(part, ["uid", *columns])
        rows = rows.filter(in_force[part.name]) if part.name in in_force else rows
        chunks.append(rows.filter(functools.reduce(pc.and_, [rows[name].is_valid() for name in columns])))
    rows = pa.concat_tables(chunks)
    return rows["uid"], {name: _values(rows[name]) for name in columns}


def _values(column: pa.ChunkedArray) -> Any:
    if pa.types.is_nested(column.type):
        return column.combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(len(column), -1)
    return column.combine_chunks() if pa.types.is_string(column.type) else column.to_numpy()
