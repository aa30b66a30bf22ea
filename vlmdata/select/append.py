"""The verdicts on the pairs of a new layer, beside what is published: nothing earlier changes.

New pairs are judged by what the last full selection settled: `top` (the smallest key that is in, see `top.keys`) and
`sample` (see `sample.reject_later`); a balancing by its entries' probabilities. A pair that is published beats its new
duplicates; one that was rejected earlier stands in nobody's way.
"""

from collections.abc import Collection, Iterator, Mapping
from typing import Any

import duckdb
import pyarrow as pa

from vlmdata.recipe import Shards
from vlmdata.select import captions, places, sample
from vlmdata.select import duplicates as groups
from vlmdata.select import top as tops
from vlmdata.select.choice import Choice
from vlmdata.select.settle import Balancing, balance, begin, count, cut

STANDING = pa.schema([("uid", pa.string()), ("sha256", pa.string()), ("split", pa.string())])


def append(
    connection: duckdb.DuckDBPyConnection,
    standing: pa.Table,
    sizes: list[int],
    choice: Choice,
    shards: Shards,
    first: Mapping[str, int],
    settled: Mapping[str, Any],
    balancing: Balancing | None = None,
    duplicates: bool = False,
    near: Collection[str] = (),
) -> tuple[Iterator[pa.Table], dict[str | None, int], dict[str, int]]:
    """The verdicts on new pairs, part by part; how many have each reason (None: kept); samples in each split.

    connection, sizes: of the new pairs, as in `settle`; `duplicates` has the groups over all pairs. standing: STANDING,
    the published pairs that share a group of duplicates with a new one. first: each split's first new shard.
    """
    connection.register("standing", standing)
    connection.execute(
        "CREATE TABLE verdict AS SELECT row_number() OVER () AS place, * "
        + ("EXCLUDE (captions)" if choice.merging else "")
        + ", true AS fresh, NULL::VARCHAR AS published FROM judged"
    )
    connection.execute(
        "INSERT INTO verdict BY NAME SELECT uid, sha256, split AS published, false AS fresh, "
        "row_number() OVER () + (SELECT count(*) FROM judged) AS place FROM standing"
    )
    begin(connection)
    if duplicates:
        groups.rank(connection, choice, ahead="v.fresh, ")
        groups.reject(connection, choice, near, whom="fresh")
    if choice.top is not None:
        tops.reject_below(connection, settled["top"])
    if balancing is not None:
        balance(connection, sizes, balancing)
    if choice.sample is not None:
        sample.reject_later(connection, choice.sample, settled["sample"])
    captions.merge(connection, choice)
    splits = places.place(connection, shards, near, first)
    return cut(connection, sizes), count(connection, "fresh"), splits
