"""Layers: what one ingest, refresh or retry has added to a dataset. Of a uid's rows the newest is in force.

A layer's parts of `pairs` hold copies of rows, so that all other tables follow by the ordinary stages. What
older layers hold stays as it is, bytes and positions; their rows that are not in force are passed over.
"""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlmdata.catalog import view_files, view_local
from vlmdata.dataset import Dataset
from vlmdata.download.stored import forget_failures
from vlmdata.ingest import connect, write_parts
from vlmdata.ordered import BATCH
from vlmdata.parts import FIRST_LAYER, Part, Table, part_from
from vlmdata.schemas import table_schema


def read_in_force(dataset: Dataset, part: Part, columns: list[str], mask: pa.BooleanArray | None) -> pa.Table:
    """A part's columns of the rows in force alone. mask: of the part, see `in_force`; None where all are."""
    rows = dataset.read_part(part, columns)
    return rows if mask is None else rows.filter(mask)


def in_force(dataset: Dataset, pairs: Table) -> dict[str, pa.BooleanArray]:
    """Part's name -> for each of its rows whether no later layer has that uid; parts without an older row are left out.

    One bit a row, for the parts concerned; the uids themselves go through DuckDB, which spills.
    """
    later = [part for part in pairs.parts if part.layer > FIRST_LAYER]
    if not later:
        return {}
    with dataset.spool() as folder:
        connection = connect(folder)
        uids = pa.schema([table_schema("pairs").field("uid")])
        view_files(connection, dataset, "every", pairs.parts, uids)
        view_files(connection, dataset, "later", later, uids)
        # Layers stand in their order, so a uid's last place is its newest row.
        found = connection.execute(
            """
            WITH newest AS (
                SELECT uid, max(place) AS place FROM (SELECT uid, row_number() OVER () - 1 + $first AS place FROM later)
                GROUP BY uid
            )
            SELECT every.place FROM (SELECT uid, row_number() OVER () - 1 AS place FROM every) every
            JOIN newest ON newest.uid = every.uid AND every.place < newest.place ORDER BY every.place""",
            {"first": pairs.rows - sum(part.rows for part in later)},
        ).fetchnumpy()["place"]
        places = np.asarray(found, np.int64)
        connection.close()
    masks, start = {}, 0
    for part in pairs.parts:
        older = places[slice(*np.searchsorted(places, [start, start + part.rows]))] - start
        if len(older):
            mask = np.ones(part.rows, bool)
            mask[older] = False
            masks[part.name] = pa.array(mask)
        start += part.rows
    return masks


def statuses(dataset: Dataset, pairs: Table, images: Table) -> dict[str, int]:
    """How many pairs ended with each download_status, their newest rows counted."""
    masks = in_force(dataset, pairs)
    counts: dict[str, int] = {}
    for part in images.parts:
        rows = read_in_force(dataset, part, ["download_status"], masks.get(part.name))
        for entry in pc.value_counts(rows["download_status"].drop_null()).to_pylist():
            counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
    return counts


def nothing_failed(dataset: Dataset, tables: dict[str, Table], classes: Iterable[str]) -> str | None:
    """How the downloads ended, in words, when none ended in one of `classes`; None when some did, or the run that
    would tell has not ended."""
    if "images" not in tables or not published(dataset, [tables["pairs"], tables["images"]]):
        return None
    counts = statuses(dataset, tables["pairs"], tables["images"])
    if any(counts.get(name) for name in classes):
        return None
    return "the downloads ended as " + ", ".join(f"{name} {count:,}" for name, count in sorted(counts.items()))


def published(dataset: Dataset, tables: Iterable[Table]) -> bool:
    """Whether a snapshot has just these parts of these tables: the run that made them has come to its end."""
    wanted = list(tables)
    numbers = reversed(dataset.numbers())
    return any(all(same_parts(dataset.snapshot(number), table) for table in wanted) for number in numbers)


def same_parts(manifest: dict[str, Any], table: Table) -> bool:
    """Whether a snapshot has this table with just these parts."""
    entry = manifest["tables"].get(table.table)
    return (
        entry is not None
        and entry["key"] == table.key
        and [part["sha256"] for part in entry["parts"]] == [part.sha256 for part in table.parts]
    )


def retry(dataset: Dataset, tables: list[Table], images: Table, classes: Iterable[str], rows: int) -> list[Table]:
    """Copy the pairs whose download ended in one of `classes` into a new layer.

    tables: `pairs` first, then what lies beside it under its key, row for row. rows: in a part.
    Returns the tables with their new parts, which are in the order and cut like every layer's; nothing where no pair
    ended so. The manifest of `pairs` is written last: a kill before it leaves no layer.
    """
    wanted = pa.array(sorted(classes))
    layer = tables[0].layer + 1
    with dataset.spool() as folder:
        if not _copy(dataset, tables, images, wanted, folder):
            return []
        connection = connect(folder)
        schemas = {}
        for number, table in enumerate(tables):
            schemas[table.table] = pq.read_schema(folder / f"{number}.parquet")
            view_local(connection, f"chosen_{number}", folder / f"{number}.parquet")
        joined = "".join(f" JOIN chosen_{number} USING (uid)" for number in range(1, len(tables)))
        ordered = connection.sql(f"SELECT * FROM chosen_0{joined} ORDER BY md5(url), uid")
        copies = ordered.to_arrow_reader(BATCH)
        parts = write_parts(dataset, schemas, tables[0].key, copies, rows, together="url", layer=layer)
        connection.close()
    noted = {"layers": [*tables[0].about.get("layers", []), {"layer": layer, "retry": wanted.to_pylist()}]}
    grown = [replace(t, parts=(*t.parts, *parts[t.table]), about={**t.about, **noted}) for t in tables]
    for table in reversed(grown):
        dataset.write_table(table)
    return grown


def cut(dataset: Dataset, table: Table, pairs: Table) -> Table:
    """A table that lies beside `pairs`, without the layer that a kill has kept from `pairs`."""
    if len(table.parts) > len(pairs.parts):
        table = replace(table, parts=table.parts[: len(pairs.parts)], about=pairs.about)
        dataset.write_table(table)
    return table


def _copy(dataset: Dataset, tables: list[Table], images: Table, classes: pa.Array, folder: Path) -> int:
    """Write the rows in force of these classes, of every table to a file of its own; how many they are."""
    masks = in_force(dataset, tables[0])
    parts = [{part.name: part for part in table.parts} for table in tables]
    writers: list[pq.ParquetWriter] = []
    count = 0
    try:
        for image in images.parts:
            chosen = pc.is_in(dataset.read_part(image, ["download_status"])["download_status"], classes)
            if image.name in masks:
                chosen = pc.and_(chosen, masks[image.name])
            found = pc.sum(chosen).as_py() or 0
            if not found:
                continue
            count += found
            for number, named in enumerate(parts):
                rows = dataset.read_part(named[image.name]).filter(chosen)
                if not number:  # what was adopted with its failure is really asked for now
                    rows = forget_failures(rows)
                if number == len(writers):
                    writers.append(pq.ParquetWriter(folder / f"{number}.parquet", rows.schema))
                writers[number].write_table(rows)
    finally:
        for writer in writers:
            writer.close()
    return count


def retried(pairs: Table) -> dict[int, frozenset[str]]:
    """Layer -> the classes that its rows had before, for the layers that a retry has made."""
    return {entry["layer"]: frozenset(entry["retry"]) for entry in pairs.about.get("layers", []) if "retry" in entry}


def outcomes(dataset: Dataset, manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """What each later layer of a snapshot came to, by what its rows had been before: `{"layer", "before" (download
    status), "tried", "came"}`, in this order. Rows that no earlier layer has are not counted."""
    images = [part_from(part) for part in manifest["tables"]["images"]["parts"]]
    layers = sorted({part.layer for part in images})
    found: list[dict[str, Any]] = []
    with dataset.spool() as folder:
        connection = connect(folder)
        schema = pa.schema([table_schema("images").field(name) for name in ("uid", "download_status")])
        for layer in layers:
            view_files(connection, dataset, f"images_{layer}", _of(images, layer), schema)
        for place, layer in enumerate(layers[1:], start=1):
            earlier = " UNION ALL ".join(
                f"SELECT {n} AS layer, uid, download_status FROM images_{n}" for n in layers[:place]
            )
            rows = connection.execute(
                f"""
                SELECT before, count(*), count(*) FILTER (n.download_status = 'success')
                FROM images_{layer} n JOIN (
                    SELECT uid, max_by(download_status, layer) AS before FROM ({earlier})
                    WHERE uid IN (SELECT uid FROM images_{layer}) GROUP BY uid
                ) USING (uid) GROUP BY before ORDER BY before"""
            ).fetchall()
            found += [{"layer": layer, "before": before, "tried": n, "came": came} for before, n, came in rows]
        connection.close()
    return found


def _of(parts: list[Part], layer: int) -> list[Part]:
    return [part for part in parts if part.layer == layer]
