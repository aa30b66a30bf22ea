"""The stage `dedup`: groups of duplicates over all parts, one part of `duplicates` a method.

Only hashes and vectors travel here, never images.
"""

import functools
import logging
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlmdata import dedup, layers
from vlmdata.dataset import Dataset
from vlmdata.errors import DataError
from vlmdata.parts import Table, noted, part_name, table_folder
from vlmdata.pipelines import decontaminate, equal
from vlmdata.pipelines import near as workers
from vlmdata.plan import Plan
from vlmdata.recipe import DecontaminateDedup, Dedup, SemanticDedup

IN_MEMORY = 4 << 30  # bytes of vectors; more are compared by workers
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
        name, key = part_name(number, tables["pairs"].layer), plan.tables["duplicates"]
        also = []
        if isinstance(method, DecontaminateDedup):
            groups, evaluated = decontaminate.run(plan, dataset, tables, method, in_force)
            part = dataset.write_part("contamination", key, name, evaluated, {})
            dataset.write_table(Table("contamination", key, (part,), noted(tables.values())))
            parts.append(dataset.write_part("duplicates", key, name, groups, {}))
            continue
        read, columns = dedup.reads(method)
        if isinstance(method, equal.METHODS) and plan.recipe.runner.kind != "direct":
            groups = equal.groups(dataset, plan.recipe.runner, method, tables[read], in_force)
            parts.append(dataset.write_part("duplicates", key, name, groups, {}))
            continue
        with dataset.spool() as folder:
            values, sources = _gather(dataset, method, tables[read], ["uid", *columns], in_force, folder)
            compared = None
            if isinstance(method, SemanticDedup) and values["vector"].nbytes > IN_MEMORY:
                compared = workers.compare(dataset, plan.recipe.runner, method, values["vector"], sources)
            near = folder / "near.parquet" if getattr(method, "groups", "") == "semdedup" else None
            found = dedup.grouped(method, values.pop("uid"), values, near=near, found=compared)
            if near:
                also.append(dataset.commit(near, f"{table_folder('duplicates', key)}/{name}{dedup.NEAR_ENDING}"))
            if found.known:  # what a refresh compares its rows with
                arrays: Any = found.known
                np.savez(folder / "known.npz", **arrays)
                path = f"{table_folder('duplicates', key)}/{name}.known.npz"
                also.append(dataset.commit(folder / "known.npz", path))
        parts.append(dataset.write_part("duplicates", key, name, found.table, {}, tuple(also)))
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
) -> tuple[dict[str, np.ndarray], list[workers.Source]]:
    """The columns of all rows in force that have every value, each mapped from a file in `folder`; and their parts.

    Memory is bounded by a part: what of the files is in memory is the system's to decide.
    """
    like: dict[str, np.ndarray] = {}
    sources: list[workers.Source] = []
    rows = 0
    with ExitStack() as stack:
        files = {name: stack.enter_context((folder / name).open("wb")) for name in columns}
        for part in table.parts:
            found = layers.read_in_force(dataset, part, columns, in_force.get(part.name))
            found = found.filter(functools.reduce(pc.and_, [found[name].is_valid() for name in columns]))
            found = dedup.compared(method, found)
            values = {name: _values(found[name]) for name in columns}
            if not rows:
                like = values
            elif found.num_rows and any(values[name].shape[1:] != like[name].shape[1:] for name in columns):
                raise DataError(f"{part.path}: its vectors have another length than those of the parts before")
            for name in columns:
                # not by tofile, which loses on a full disk what it has buffered
                column = values[name].astype(like[name].dtype, casting="safe", copy=False)
                files[name].write(np.ascontiguousarray(column).data)
            sources.append(workers.Source(part, in_force.get(part.name), rows))
            rows += found.num_rows
    if not rows:  # an empty file cannot be mapped
        return like, sources
    mapped: dict[str, np.ndarray] = {
        name: np.memmap(folder / name, first.dtype, "r", shape=(rows, *first.shape[1:])) for name, first in like.items()
    }
    return mapped, sources


def _values(column: pa.ChunkedArray) -> np.ndarray:
    """[n] numbers or, of texts of one length, bytes (S32, S64); of vectors [n, d]."""
    if pa.types.is_nested(column.type):
        flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return flat.reshape(len(column), -1 if len(column) else 1)
    if pa.types.is_string(column.type):
        return column.to_numpy().astype(np.bytes_)
    return column.to_numpy()
