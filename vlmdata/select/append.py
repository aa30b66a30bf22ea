"""The verdicts on the pairs of a new layer, beside what is published: nothing earlier changes.

New pairs are judged by what the last full selection settled: `top` (the smallest key that is in, see `top.keys`) and
`sample` (see `sample.reject_later`); a balancing by its entries' probabilities. A pair that is published beats its new
duplicates; one that was rejected earlier stands in nobody's way.
"""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from vlmdata.ingest import connect
from vlmdata.recipe import Shards
from vlmdata.select import captions, places, sample
from vlmdata.select import duplicates as groups
from vlmdata.select import top as tops
from vlmdata.select.choice import Choice
from vlmdata.select.settle import Balancing, balance, cut

if TYPE_CHECKING:
    import pyarrow.dataset as pads

STANDING = pa.schema([("uid", pa.string()), ("sha256", pa.string()), ("split", pa.string())])


def append(
    judged: "pads.Dataset",
    standing: pa.Table,
    duplicates: "pads.Dataset | None",
    sizes: list[int],
    choice: Choice,
    shards: Shards,
    first: Mapping[str, int],
    settled: Mapping[str, Any],
    spill: Path,
    balancing: Balancing | None = None,
    near: Mapping[str, "pads.Dataset"] | None = None,
) -> tuple[Iterator[pa.Table], dict[str | None, int], dict[str, int]]:
    """The verdicts on new pairs, part by part; how many have each reason (None: kept); samples in each split.

    judged, sizes, near: of the new pairs, as in `settle`. standing: STANDING, the published pairs that share a group of
    duplicates with a new one. duplicates: the groups over all pairs. first: each split's first new shard.
    """
    connection = connect(spill)
    connection.register("judged", judged)
    connection.register("standing", standing)
    connection.execute(
        "CREATE TABLE verdict AS SELECT row_number() OVER () AS place, * "
        + ("EXCLUDE (captions)" if choice.merging else "")
        + ", 1 AS copies, true AS fresh, NULL::VARCHAR AS split FROM judged"
    )
    connection.execute(
        "INSERT INTO verdict BY NAME SELECT uid, sha256, split, false AS fresh, 0 AS copies, "
        "row_number() OVER () + (SELECT count(*) FROM judged) AS place FROM standing"
    )
    alike = list(near or {})
    if duplicates is not None:
        connection.register("duplicates", duplicates)
        for method, pairs in (near or {}).items():
            connection.register(f"near_{method}", pairs)
        groups.rank(connection, choice, ahead="v.fresh, ")
        groups.reject(connection, choice, alike, whom="fresh")
    if choice.top is not None:
        tops.reject_below(connection, settled["top"])
    if balancing is not None:
        balance(connection, sizes, balancing)
    if choice.sample is not None:
        sample.reject_later(connection, choice.sample, settled["sample"])
    captions.merge(connection, choice)
    splits = places.place(connection, shards, alike, first)
    counts = dict(connection.sql("SELECT reason, count(*) FROM verdict WHERE fresh GROUP BY reason").fetchall())
    connection.execute("ALTER TABLE verdict DROP split")  # that of the places is the one
    return cut(connection, sizes), counts, splits
