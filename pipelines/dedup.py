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
from vlmdata.catalog import view_files
from vlmdata.dataset import Dataset
from vlmdata.dedup import alike, perceptual, semantic
from vlmdata.errors import DataError
from vlmdata.ingest import connect
from vlmdata.parts import File, Table, noted, part_name, table_folder
from vlmdata.pipelines import decontaminate, equal, hamming, joined, vectors
from vlmdata.plan import Plan
from vlmdata.recipe import DecontaminateDedup, Dedup, PerceptualDedup, Runner, SemanticDedup

IN_MEMORY = 4 << 30  # bytes of vectors; more are compared by workers, whatever the runner
progress = logging.getLogger("vlmdata.progress")


def run(plan: Plan, dataset: Dataset, tables: dict[str, Table]) -> Table:
    """Group the pairs by every method of the recipe and write the table's manifest; with decontamination also that of
    `contamination`."""
    parts = []
    in_force = layers.in_force(dataset, tables["pairs"])
    for left in (joined.FOLDER, joined.PAIRS):  # by a run that was killed
        dataset.remove(left)
    for number, method in enumerate(plan.recipe.dedup):
        told = {"stage": "dedup", "done": number, "total": len(plan.recipe.dedup)}
        progress.info("dedup: %s", method.kind, extra=told)
        # A snapshot that is out relies on the groups of its own layers, which stay.
        name, key = part_name(number, tables["pairs"].layer), plan.tables["duplicates"]
        if isinstance(method, DecontaminateDedup):
            groups, evaluated = decontaminate.run(plan, dataset, tables, method, in_force)
            part = dataset.write_part("contamination", key, name, evaluated, {})
            dataset.write_table(Table("contamination", key, (part,), noted(tables.values())))
            parts.append(dataset.write_part("duplicates", key, name, groups, {}))
            continue
        table = tables[dedup.reads(method)[0]]
        with dataset.spool() as folder:
            groups = _by_workers(dataset, plan.recipe.runner, method, table, in_force, folder)
            if groups is None:
                groups = _in_one_process(dataset, method, table, in_force, folder)
            beside = f"{table_folder('duplicates', key)}/{name}"
            also = [
                dataset.commit(folder / made, f"{beside}{ending}")
                for made, ending in ((_NEAR, alike.ENDING), (_KNOWN, ".known.npz"))
                if (folder / made).exists()
            ]
        parts.append(dataset.write_part("duplicates", key, name, groups, {}, tuple(also)))
    progress.info("dedup: done", extra={"stage": "dedup", "done": len(parts), "total": len(parts)})
    table = Table("duplicates", plan.tables["duplicates"], tuple(parts), noted(tables.values()))
    dataset.write_table(table)
    return table


# In the folder of a method: the pairs, for SemDeDup's rule, and what a refresh compares its rows with.
_NEAR, _KNOWN = "near.parquet", "known.npz"


def _in_one_process(
    dataset: Dataset, method: Dedup, table: Table, in_force: Mapping[str, pa.BooleanArray], folder: Path
) -> pa.Table:
    values = _gather(dataset, method, table, ["uid", *dedup.reads(method)[1]], in_force, folder)
    near = folder / _NEAR if getattr(method, "groups", "") == "semdedup" else None
    found = dedup.grouped(method, values.pop("uid"), values, near=near)
    if found.known:
        arrays: Any = found.known
        np.savez(folder / _KNOWN, **arrays)
    return found.table


def _by_workers(
    dataset: Dataset,
    runner: Runner,
    method: Dedup,
    table: Table,
    in_force: Mapping[str, pa.BooleanArray],
    folder: Path,
) -> pa.Table | None:
    """None where one process is to do it: on the in-process runner, and where rows are so few that all are compared
    with all."""
    elsewhere = runner.kind != "direct"
    if elsewhere and isinstance(method, equal.METHODS):
        return equal.groups(dataset, runner, method, table, in_force)
    if elsewhere and isinstance(method, PerceptualDedup) and table.rows > perceptual.BRUTE_FORCE:
        groups, written = hamming.groups(dataset, runner, method, table, in_force)
    elif (
        isinstance(method, SemanticDedup)
        and table.rows > semantic.BRUTE_FORCE
        and (elsewhere or 2 * table.rows * vectors.length(dataset, table) > IN_MEMORY)
    ):
        found = vectors.groups(dataset, runner, method, table, in_force, folder / _KNOWN)
        if found is None:
            return None
        groups, written = found
    else:
        return None
    if method.groups == "semdedup":
        with connect(folder) as connection:
            pairs = [File(**one.pairs) for one in written if one.pairs]
            view_files(connection, dataset, "found", pairs, alike.FOUND)
            alike.write(connection, folder / _NEAR)
        dataset.remove(joined.PAIRS)
    return groups


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
            rows += found.num_rows
    if not rows:  # an empty file cannot be mapped
        return like
    return {
        name: np.memmap(folder / name, first.dtype, "r", shape=(rows, *first.shape[1:])) for name, first in like.items()
    }


def _values(column: pa.ChunkedArray) -> np.ndarray:
    """[n] numbers or, of texts of one length, bytes (S32, S64); of vectors [n, d]."""
    if pa.types.is_nested(column.type):
        return vectors.array(column)
    if pa.types.is_string(column.type):
        return column.to_numpy().astype(np.bytes_)
    return column.to_numpy()
