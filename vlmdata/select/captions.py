"""A survivor's captions: its own, and those of the duplicates that it stands for where a method merges them."""

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlmdata.select.choice import Choice

MERGED = 16  # captions that a survivor gets from others of its groups, at most


def merge(connection: duckdb.DuckDBPyConnection, choice: Choice) -> None:
    """Make the table `merged`: place of a kept pair, in order, and the captions that it gets from those it replaces."""
    connection.execute("CREATE TABLE merged (place BIGINT, merged VARCHAR[])")
    if not choice.merging:
        return
    # A survivor may be replaced itself by a later method: each step follows one of these.
    for _ in choice.merging:
        connection.execute(
            "CREATE OR REPLACE TABLE replaced AS "
            "SELECT r.* REPLACE (coalesce(later.survivor, r.survivor) AS survivor) "
            "FROM replaced r LEFT JOIN replaced later ON later.uid = r.survivor"
        )
    connection.execute(
        f"""
        INSERT INTO merged
        WITH said AS (
            SELECT uid, captions FROM judged
            WHERE uid IN (SELECT uid FROM replaced UNION ALL SELECT survivor FROM replaced)),
        given AS (
            SELECT r.survivor, r.method, r.rank, r.uid, unnest(s.captions) AS caption,
                   generate_subscripts(s.captions, 1) AS place
            FROM replaced r JOIN said s ON s.uid = r.uid JOIN remaining v ON v.uid = r.survivor),
        once AS (
            SELECT survivor, caption, min((method, rank, uid, place)) AS order_of
            FROM given GROUP BY survivor, caption),
        bounded AS (
            SELECT o.survivor, o.caption, row_number() OVER (PARTITION BY o.survivor ORDER BY o.order_of) AS number
            FROM once o JOIN said s ON s.uid = o.survivor WHERE NOT list_contains(s.captions, o.caption))
        SELECT place, list(caption ORDER BY number) FROM bounded JOIN remaining ON remaining.uid = survivor
        WHERE number <= {MERGED} GROUP BY place ORDER BY place"""
    )


def with_merged(captions: pa.ChunkedArray, merged: pa.ChunkedArray) -> pa.Array:
    """list<string> [n]: each row's own captions, and behind them those that it got, where there are any."""
    own, got = captions.combine_chunks(), merged.combine_chunks()
    counts = pc.add(*(pc.fill_null(pc.list_value_length(lists), 0) for lists in (own, got)))
    offsets = np.concatenate([[0], np.cumsum(counts.to_numpy())]).astype(np.int32)
    rows = pa.chunked_array([pc.list_parent_indices(own), pc.list_parent_indices(got)])
    values = pa.chunked_array([own.flatten(), got.flatten()])
    order = np.argsort(rows.to_numpy(), kind="stable")  # a row's own stand before those it got
    united = pa.ListArray.from_arrays(pa.array(offsets), values.take(pa.array(order)).combine_chunks())
    return united if not own.null_count else pc.if_else(own.is_valid(), united, None)  # tombstones have none
