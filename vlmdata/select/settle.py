"""What only a look at all pairs decides, step by step, and the verdicts that come of it."""

from collections.abc import Callable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlmdata.ingest import connect
from vlmdata.recipe import Shards
from vlmdata.schemas import table_schema
from vlmdata.select import captions, places, sample
from vlmdata.select import duplicates as groups
from vlmdata.select import top as tops
from vlmdata.select.choice import Choice
from vlmdata.select.funnel import funnel

if TYPE_CHECKING:
    import pyarrow.dataset as pads

_VERDICT = table_schema("verdict").remove(table_schema("verdict").get_field_index("captions"))
# What `settle` gives: merged are the captions that a survivor gets from others, null for most.
SETTLED = _VERDICT.append(pa.field("merged", pa.list_(pa.string())))
# For each part, which rows are left (bool, not null) -> which of them the balancing keeps.
Balancing = Callable[[list[pa.BooleanArray]], list[pa.BooleanArray]]


def settle(
    judged: "pads.Dataset",
    duplicates: "pads.Dataset | None",
    sizes: list[int],
    choice: Choice,
    shards: Shards,
    spill: Path,
    balancing: Balancing | None = None,
    near: Mapping[str, "pads.Dataset"] | None = None,
    grouped: Path | None = None,
    settled: dict[str, Any] | None = None,
) -> tuple[Iterator[pa.Table], list[dict[str, Any]], dict[str, int]]:
    """What only a look at all pairs decides: survivors of duplicate groups, and the place of each kept pair.

    judged: the parts of `judge_part`, in order, of `sizes` rows. spill: a folder that DuckDB may write to.
    balancing: looks at the captions of the pairs that are left, where the choice is to balance. near: see
    `duplicates.reject`. grouped: a Parquet file to write to, where there are duplicates: see `duplicates.write`.
    settled: takes what later pairs are judged by (see `append`).
    Returns the verdicts, part by part in the order of the rows; the funnel; and how many samples each split has.
    """
    connection = connect(spill, 128_000_000 + 100 * sum(sizes))  # what is updated cannot spill
    connection.register("judged", judged)
    connection.execute(
        "CREATE TABLE verdict AS SELECT row_number() OVER () AS place, * "
        + ("EXCLUDE (captions)" if choice.merging else "")
        + ", 1 AS copies FROM judged"
    )
    connection.execute("CREATE VIEW uids AS SELECT place, uid FROM verdict")
    if duplicates is not None:
        connection.register("duplicates", duplicates)
        for method, pairs in (near or {}).items():
            connection.register(f"near_{method}", pairs)
        groups.rank(connection, choice)
        if grouped is not None:
            groups.write(connection, sizes, grouped)
    found = reject(connection, choice, sizes, balancing, duplicates is not None, list(near or {}))
    if settled is not None:
        settled.update(found)
    captions.merge(connection, choice)
    splits = places.place(connection, shards, list(near or {}))
    counts = dict(connection.sql("SELECT reason, count(*) FROM verdict GROUP BY reason").fetchall())
    return cut(connection, sizes), funnel(counts, choice), splits


def reject(
    connection: duckdb.DuckDBPyConnection,
    choice: Choice,
    sizes: list[int],
    balancing: Balancing | None,
    grouped: bool,
    near: list[str],
) -> dict[str, Any]:
    """Give rows of the table `verdict` their reason, one step after the other: duplicate, top, balance, sample.

    verdict: place (from 1, the order of the rows), uid, reason (null where nothing rejects the row so far) and what
    `judge_part` adds for the steps. grouped, near: see `duplicates.reject`; the view `uids`: see `top.reject`. A step
    is a file of this room with a function `reject`, which looks only at rows without a reason, and needs no more than
    `choice` and these tables. Returns what `top` and `sample` settled for later pairs.
    """
    settled: dict[str, Any] = {}
    if grouped:
        groups.reject(connection, choice, near)
    if choice.top is not None:
        settled["top"] = tops.reject(connection, choice.top)
    if balancing is not None:
        balance(connection, sizes, balancing)
    if choice.sample is not None:
        settled["sample"] = sample.reject(connection, choice.sample)
    return settled


def balance(connection: duckdb.DuckDBPyConnection, sizes: list[int], balancing: Balancing) -> None:
    """Give the reason `balance` to those that are left and not kept by `balancing`, which sees them part by part."""
    reader = connection.sql("SELECT reason IS NULL FROM verdict ORDER BY place").to_arrow_reader(1_000_000)
    starts = [0, *accumulate(sizes)]
    # a bit a row; behind them stand those that `append` compares with
    whole = pa.concat_arrays([batch.column(0) for batch in reader] or [pa.array([], pa.bool_())]).slice(0, starts[-1])
    left = [whole.slice(start, size) for start, size in zip(starts, sizes, strict=False)]
    kept = pa.concat_arrays(balancing(left) or [pa.array([], pa.bool_())])
    gone = np.flatnonzero(pc.and_not(whole, kept).to_numpy(zero_copy_only=False)) + 1
    connection.register("gone", pa.table({"place": gone}))
    connection.execute("UPDATE verdict SET reason = 'balance' WHERE place IN (SELECT place FROM gone)")
    connection.unregister("gone")


def cut(connection: duckdb.DuckDBPyConnection, sizes: list[int]) -> Iterator[pa.Table]:
    """The verdicts in the order of the rows, in tables of `sizes` rows; the connection ends with them."""
    rows = connection.sql(
        """
        SELECT uid, reason IS NULL AS kept, reason,
               split || '-' || lpad(shard::VARCHAR, 7, '0') AS shard, index::INTEGER AS index, split,
               CASE WHEN reason IS NULL THEN copies ELSE 0 END AS copies, further_copies, merged
        FROM verdict LEFT JOIN placed USING (place) LEFT JOIN merged USING (uid) ORDER BY place"""
    )
    reader = rows.to_arrow_reader(65_536)
    held = reader.schema.empty_table()
    for size in sizes:
        while held.num_rows < size:
            held = pa.concat_tables([held, pa.Table.from_batches([reader.read_next_batch()])])
        yield held.slice(0, size).select(SETTLED.names).cast(SETTLED)
        held = held.slice(size)
    connection.close()
