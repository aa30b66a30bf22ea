"""The survivors among duplicates: of those that pass so far the first by the recipe's order.

Of a connected group one, of a group found by decontamination none, or by SemDeDup's rule (Abbas et al. 2023) each that
no earlier one in the order is near to, whether that one stays or not.
"""

from collections.abc import Collection
from itertools import accumulate
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlmdata.select.choice import SURVIVORS, Choice

# part, row: where the row stands in `samples`, both from 0.
GROUPED = pa.schema(
    [
        ("part", pa.int32()),
        ("row", pa.int32()),
        ("uid", pa.string()),
        ("dup_method", pa.string()),
        ("dup_group", pa.string()),
        ("rank", pa.int64()),
    ]
)
_WRITTEN = 65_536  # rows in a row group, about
_LATER = """
    SELECT uid, rank, first_value(uid) OVER (PARTITION BY dup_group ORDER BY rank) AS survivor
    FROM members QUALIFY uid <> survivor"""
# Each row with the earliest other that it is near to, where that stands before it and is one of those asked for.
# Rows of one value have the same neighbours: the first of them stands for all.
_LATER_AND_NEAR = """
    WITH valued AS (
        SELECT r.uid, r.rank, coalesce(n.other, r.uid) AS value
        FROM members r LEFT JOIN {near} n ON n.uid = r.uid AND n.equal
    ),
    first AS (SELECT value, min((rank, uid)) AS row FROM valued WHERE {asked} GROUP BY value),
    met AS (
        SELECT uid AS value, other FROM {near} WHERE NOT equal
        UNION ALL SELECT other, uid FROM {near} WHERE NOT equal
        UNION ALL SELECT value, value FROM first
    ),
    earliest AS (
        SELECT met.value, min(first.row) AS row FROM met JOIN first ON first.value = met.other GROUP BY met.value
    )
    SELECT v.uid, v.rank, e.row[2] AS survivor FROM valued v JOIN earliest e USING (value) WHERE v.rank > e.row[1]"""


def rank(connection: duckdb.DuckDBPyConnection, choice: Choice, ahead: str = "") -> None:
    """Make the table `grouped` (place, uid, dup_method, dup_group, rank): the members of all groups, and in which order
    those of a method stand, ties by uid. It hangs on no rule: any that pass keep this order among themselves.

    connection: has the table `verdict` (see `settle`) with the survivor's terms term_0, …, and `duplicates`.
    ahead: terms of an order that come before the recipe's.
    """
    terms = [f"term_{place}" for place in range(len(choice.survivor))]
    order = ahead + (SURVIVORS[choice.ahead] if choice.ahead else "")
    order += "".join(f"{term} {by.direction} NULLS LAST, " for term, by in zip(terms, choice.survivor, strict=True))
    connection.execute(
        f"""
        CREATE TABLE grouped AS
        SELECT v.place, v.uid, d.dup_method, d.dup_group,
               row_number() OVER (PARTITION BY d.dup_method ORDER BY {order} v.uid) AS rank
        FROM verdict v JOIN duplicates d ON d.uid = v.uid"""
    )


def write(connection: duckdb.DuckDBPyConnection, sizes: list[int], path: Path) -> None:
    """Write the table `grouped` as a Parquet file, so that `reconsider` need not look for its rows: GROUPED.

    sizes: the parts' rows.
    """
    starts = np.array([0, *accumulate(sizes)][:-1], np.int64)
    rows = connection.sql("SELECT * FROM grouped ORDER BY dup_method, dup_group, rank")
    with pq.ParquetWriter(path, GROUPED, compression="zstd") as writer:
        for batch in rows.to_arrow_reader(_WRITTEN):
            table = pa.Table.from_batches([batch])
            place = table["place"].to_numpy() - 1
            part = np.searchsorted(starts, place, side="right") - 1
            table = table.append_column("part", pa.array(part)).append_column("row", pa.array(place - starts[part]))
            writer.write_table(table.select(GROUPED.names).cast(GROUPED))


def reject(
    connection: duckdb.DuckDBPyConnection, choice: Choice, near: Collection[str] = (), whom: str = "true"
) -> None:
    """Give all but the survivors the reason `duplicate: <method>`, method after method.

    connection: has the tables `verdict` (see `settle`) and `grouped` (see `rank`), and what `begin` makes.
    near: the methods that follow SemDeDup's rule; `near_<method>` has their pairs of rows that are alike (uid, other,
    equal), rows of one value with the first of them alone. whom: SQL of those of `verdict` that may be rejected.
    Makes the table `replaced` (uid, survivor, method, rank) for `captions.merge`.
    """
    connection.execute("CREATE TABLE replaced (uid VARCHAR, survivor VARCHAR, method INTEGER, rank BIGINT)")
    for number, method in enumerate(choice.methods):
        connection.execute(
            """
            CREATE OR REPLACE TEMP TABLE members AS
            SELECT place, g.uid, g.dup_group, g.rank FROM grouped g SEMI JOIN remaining USING (place)
            WHERE g.dup_method = $method""",
            {"method": method},
        )
        if method == "decontaminate":
            later = "SELECT uid FROM members"
        else:
            later = _LATER_AND_NEAR.format(near=f"near_{method}", asked="true") if method in near else _LATER
        connection.execute(
            "INSERT INTO rejected SELECT place, 'duplicate: ' || $method FROM remaining "
            f"WHERE {whom} AND place IN (SELECT place FROM members WHERE uid IN (SELECT uid FROM ({later})))",
            {"method": method},
        )
        if method in choice.merging:
            if method in near:  # only one that it is itself near to stands for it, where any such stays
                stays = "uid IN (SELECT m.uid FROM members m SEMI JOIN remaining USING (place))"
                later = _LATER_AND_NEAR.format(near=f"near_{method}", asked=stays)
            connection.execute(  # those that are not rejected, since they are published, are replaced by none
                f"INSERT INTO replaced SELECT uid, survivor, {number}, rank FROM ({later}) "
                "WHERE uid IN (SELECT m.uid FROM members m ANTI JOIN remaining USING (place))"
            )
