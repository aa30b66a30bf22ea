"""The stage `dedup`: groups of duplicates over all parts, one part of `duplicates` a method.

Only hashes and vectors travel here, never images.
"""

import functools
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlmdata import dedup, layers
from vlmdata.dataset import Dataset, Table, noted, part_name
from vlmdata.errors import DataError
from vlmdata.pipelines import decontaminate
from vlmdata.plan import Plan
from vlmdata.recipe import DecontaminateDedup, Dedup

progress = logging.getLogger("vlmdata.progress")


def run(plan: Plan, dataset: Dataset, tables: dict[str, Table]) -> Table:
    """Group the pairs by every method of the recipe and write the table's manifest; with decontamination also that of
    `contamination`."""
    parts = []
    in_force = layers.in_force(dataset, tables["pairs"])
    for number, method in enumerate(plan.recipe.dedup):
        told = {"stage": "dedup", "done": number, "total": len(plan.recipe.dedup)}
        progress.info("dedup: %s", method.kind, extra=told)
        # A snapshot that is out relies on the groups of its own layers, which stay.
        name = part_name(number, tables["pairs"].layer)
        if isinstance(method, DecontaminateDedup):
            groups, found = decontaminate.run(plan, dataset, tables, method, in_force)
            key = plan.tables["contamination"]
            part = dataset.write_part("contamination", key, name, found, {})
            dataset.write_table(Table("contamination", key, (part,), noted(tables.values())))
            parts.append(dataset.write_part("duplicates", plan.tables["duplicates"], name, groups, {}))
            continue
        read, columns = dedup.reads(method)
        with dataset.spool() as folder:
            values = _gather(dataset, method, tables[read], ["uid", *columns], in_force, folder)
            groups = dedup.groups(method, values.pop("uid"), values)
        parts.append(dataset.write_part("duplicates", plan.tables["duplicates"], name, groups, {}))
    progress.info("dedup: done", extra={"stage": "dedup", "done": len(parts), "total": len(parts)})
    table = Table("duplicates", plan.tables["duplicates"], tuple(parts), noted(tables.values()))
    dataset.write_table(table)
    return table


def _gather(
    dataset: Dataset,
    method: Dedup,
    table: Table,
    columns: list[str],
    in_force: Mapping[str, pa.BooleanArray],
    folder: Path,
) -> dict[str, np.ndarray]:
    """The columns of all rows in force that have every value, each mapped from a file in `folder`.

    Memory is bounded by a part: what of the files is in memory is the system's to decide.
    """
    like: dict[str, np.ndarray] = {}
    rows = 0
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / name).open("wb")) for name in columns}
        for part in table.parts:
            found = dataset.read_part(part, columns)
            found = found.filter(in_force[part.name]) if part.name in in_force else found
            found = found.filter(functools.reduce(pc.and_, [found[name].is_valid() for name in columns]))
            found = dedup.compared(method, found)
            values = {name: _values(found[name]) for name in columns}
            if not rows:
                like = values
            elif found.num_rows and any(values[name].shape[1:] != like[name].shape[1:] for name in columns):
                raise DataError(f"{part.path}: its vectors have another length than those of the parts before")
            for name in columns:
                values[name].astype(like[name].dtype, casting="safe", copy=False).tofile(files[name])
            rows += found.num_rows
    if not rows:  # an empty file cannot be mapped
        return like
    return {
        name: np.memmap(folder / name, first.dtype, "r", shape=(rows, *first.shape[1:])) for name, first in like.items()
    }


def _values(column: pa.ChunkedArray) -> np.ndarray:
    """[n] numbers or, of texts of one length, bytes (S32, S64); of vectors [n, d]."""
    if pa.types.is_nested(column.type):
        flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(column), -1 if len(column) else 1)
    if pa.types.is_string(column.type):
        return column.to_numpy().astype(np.bytes_)
    return column.to_numpy()
