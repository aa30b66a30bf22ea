"""What only a look at all pairs decides, step by step, and the verdicts that come of it."""

from collections.abc import Callable, Collection, Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa

from vlmdata.recipe import Shards
from vlmdata.schemas import table_schema
from vlmdata.select import captions, places, sample
from vlmdata.select import duplicates as groups
from vlmdata.select import top as tops
from vlmdata.select.choice import Choice
from vlmdata.select.funnel import funnel

_VERDICT = table_schema("verdict").remove(table_schema("verdict").get_field_index("captions"))
# What `settle` gives: merged are the captions that a survivor gets from others, null for most.
SETTLED = _VERDICT.append(pa.field("merged", pa.list_(pa.string())))
_STRETCH = 100_000  # rows
# For each part, which rows are left (bool, not null) -> which of them the balancing keeps.
Balancing = Callable[[list[pa.BooleanArray]], list[pa.BooleanArray]]


def settle(
    connection: duckdb.DuckDBPyConnection,
    sizes: list[int],
    choice: Choice,
    shards: Shards,
    balancing: Balancing | None = None,
    duplicates: bool = False,
    near: Collection[str] = (),
    grouped: Path | None = None,
    settled: dict[str, Any] | None = None,
) -> tuple[Iterator[pa.Table], list[dict[str, Any]], dict[str, int]]:
    """What only a look at all pairs decides: survivors of duplicate groups, and the place of each kept pair.

    connection: to DuckDB that may hold `memory` and ends with the verdicts; has as views `judged`, the parts of
    `judge_part` in order, of `sizes` rows, `duplicates` where it is said so, and what `near` asks for (see
    `duplicates.reject`). balancing: looks at the captions of the pairs that are left, where the choice is to balance.
    grouped: a Parquet file to write to, where there are duplicates: see `duplicates.write`. settled: takes what later
    pairs are judged by (see `append`).
    Returns the verdicts, part by part in the order of the rows; the funnel; and how many samples each split has.
    """
    connection.execute(
        "CREATE TABLE verdict AS SELECT row_number() OVER () AS place, * "
        + ("EXCLUDE (captions)" if choice.merging else "")
        + " FROM judged"
    )
    connection.execute("CREATE VIEW uids AS SELECT place, uid FROM verdict")
    begin(connection)
    if duplicates:
        groups.rank(connection, choice)
        if grouped is not None:
            groups.write(connection, sizes, grouped)
    found = reject(connection, choice, sizes, balancing, duplicates, near)
    if settled is not None:
        settled.update(found)
    captions.merge(connection, choice)
    splits = places.place(connection, shards, near)
    return cut(connection, sizes), funnel(count(connection), choice), splits


def memory(rows: int) -> int:
    """Bytes that DuckDB may hold: four million rows pass with 256 MB, sorting what they ended with needs most of it."""
    return max(256_000_000, 64 * rows)


def begin(connection: duckdb.DuckDBPyConnection) -> None:
    """Make what the steps write to: rejected (place, reason), and drawn (place, copies) of those that have copies of
    their own; and the view `remaining`, the rows of the table `verdict` that nothing has rejected so far.

    Rows of `verdict` stay as they are: DuckDB cannot spill what was updated.
    """
    connection.execute("CREATE TABLE rejected (place BIGINT, reason VARCHAR)")
    connection.execute("CREATE TABLE drawn (place BIGINT, copies INTEGER)")
    connection.execute(
        "CREATE VIEW remaining AS FROM verdict ANTI JOIN rejected USING (place) WHERE verdict.reason IS NULL"
    )


def reject(
    connection: duckdb.DuckDBPyConnection,
    choice: Choice,
    sizes: list[int],
    balancing: Balancing | None,
    grouped: bool,
    near: Collection[str],
) -> dict[str, Any]:
    """Reject rows of the table `verdict`, one step after the other: duplicate, top, balance, sample.

    verdict: place (from 1, the order of the rows), uid, reason (null where the part's own look rejects nothing) and
    what `judge_part` adds for the steps. grouped, near: see `duplicates.reject`; the view `uids`: see `top.reject`. A
    step is a file of this room with a function `reject`, which looks at what is `remaining` (see `begin`) and adds to
    `rejected`, and needs no more than `choice` and these tables. Returns what `top` and `sample` settled for later
    pairs.
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
    starts = [0, *accumulate(sizes)]
    whole = np.zeros(starts[-1], bool)
    # behind them stand those that `append` compares with
    places = connection.sql(f"SELECT place FROM remaining WHERE place <= {starts[-1]}").to_arrow_reader(1_000_000)
    for batch in places:
        whole[batch["place"].to_numpy() - 1] = True
    left = [pa.array(whole[start : start + size]) for start, size in zip(starts, sizes, strict=False)]
    kept = pa.concat_arrays(balancing(left) or [pa.array([], pa.bool_())]).to_numpy(zero_copy_only=False)
    gone = np.flatnonzero(whole & ~kept) + 1
    connection.register("gone", pa.table({"place": gone}))
    connection.execute("INSERT INTO rejected SELECT place, 'balance' FROM gone")
    connection.unregister("gone")


def count(connection: duckdb.DuckDBPyConnection, which: str = "true") -> dict[str | None, int]:
    """How many rows of `verdict` have each reason; None: kept. which: SQL of those that are counted."""
    rows = connection.sql(
        f"""
        SELECT reason, count(*) FROM (
            SELECT reason FROM verdict WHERE reason IS NOT NULL AND {which}
            UNION ALL SELECT reason FROM rejected
            UNION ALL SELECT NULL FROM remaining WHERE {which}
        ) GROUP BY reason"""
    )
    return dict(rows.fetchall())


def cut(connection: duckdb.DuckDBPyConnection, sizes: list[int]) -> Iterator[pa.Table]:
    """The verdicts in the order of the rows, in tables of `sizes` rows; the connection ends with them."""
    # A row that the part's own look did not reject is in one of these; in their order DuckDB finds a stretch of places
    # without a look at the rest, and never joins all rows with all.
    connection.execute(
        """
        CREATE TABLE ended AS FROM (
            SELECT place, reason, NULL::VARCHAR AS split, NULL::BIGINT AS shard, NULL::BIGINT AS index,
                   0 AS copies, NULL::VARCHAR AS further_copies
            FROM rejected
            UNION ALL SELECT place, NULL, split, shard, index, copies, further_copies FROM placed
        ) ORDER BY place"""
    )
    start = 0
    for stretch in _stretches(sizes):
        found = connection.sql(
            """
            SELECT v.uid, coalesce(v.reason, e.reason) AS reason, e.place IS NOT NULL AND e.reason IS NULL AS kept,
                   e.split || '-' || lpad(e.shard::VARCHAR, 7, '0') AS shard, e.index::INTEGER AS index, e.split,
                   coalesce(e.copies, 0) AS copies, e.further_copies, merged
            FROM (FROM verdict WHERE place > $start AND place <= $end) v
            LEFT JOIN (FROM ended WHERE place > $start AND place <= $end) e USING (place)
            LEFT JOIN (FROM merged WHERE place > $start AND place <= $end) m USING (place) ORDER BY place""",
            params={"start": start, "end": start + sum(stretch)},
        ).to_arrow_table()
        rows = found.select(SETTLED.names).cast(SETTLED)
        for end, size in zip(accumulate(stretch), stretch, strict=True):
            yield rows.slice(end - size, size)
        start += sum(stretch)
    connection.close()


def _stretches(sizes: list[int]) -> Iterator[list[int]]:
    """Neighbouring parts that have some _STRETCH rows together."""
    held: list[int] = []
    for size in sizes:
        held.append(size)
        if sum(held) >= _STRETCH:
            yield held
            held = []
    if held:
        yield held
