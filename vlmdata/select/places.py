"""The place of each kept pair: its split by its image, its shard and index by its uid."""

from collections.abc import Collection, Mapping

import duckdb
import numpy as np
import pyarrow as pa

from vlmdata.dedup.components import components
from vlmdata.recipe import Shards


def place(
    connection: duckdb.DuckDBPyConnection,
    shards: Shards,
    near: Collection[str] = (),
    first: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Make the table `placed` (place, split, shard, index, copies, further_copies) of what is `remaining` (see
    `settle.begin`); samples of each split.

    Kept pairs go to the splits by a seeded hash of the image's sha256 (so that one image is never in two), and to
    shards by one of the uid. near: the methods of which several of a group may stay; a split does not cut these groups
    either: all of one go by the smallest sha256 of them. Further copies of a pair (the table `drawn`) have places of
    their own in the same order, so that they do not stand side by side: `<shard>:<index>` with blanks between them.

    first: a split's first shard, where earlier ones are out. Then `verdict` has rows (not `fresh`) that stand in those,
    `published` with their split: no place is given to them, and the rows of their groups go to the same split.
    """
    connection.register("kin", _kin(connection, near))
    fresh, inherited = "true", "SELECT NULL::VARCHAR AS first, NULL::VARCHAR AS published WHERE false"
    if first is not None:
        fresh = "fresh"
        inherited = (
            "SELECT coalesce(first, image) AS first, min_by(published, image) AS published "
            "FROM (SELECT coalesce(sha256, uid) AS image, published FROM verdict WHERE NOT fresh) "
            "LEFT JOIN kin USING (image) GROUP BY 1"
        )
    begin = "".join(f" WHEN '{name}' THEN {number}" for name, number in (first or {}).items())
    connection.execute(
        f"""
        CREATE TEMP TABLE ranked AS
        SELECT place, copy, split, rank // $samples + CASE split{begin or " WHEN '' THEN 0"} ELSE 0 END AS shard,
               rank % $samples AS index FROM (
            SELECT place, copy, split,
                   row_number() OVER (PARTITION BY split ORDER BY md5($seed || uid || again), uid, copy) - 1 AS rank
            FROM (
                SELECT place, uid, split, copy, CASE WHEN copy > 1 THEN '_' || copy ELSE '' END AS again FROM (
                    SELECT place, uid, coalesce(published, {_split(shards)}) AS split,
                           unnest(range(1, copies + 1)) AS copy
                    FROM (
                        SELECT place, uid, coalesce(copies, 1) AS copies, coalesce(sha256, uid) AS image
                        FROM remaining LEFT JOIN drawn USING (place) WHERE {fresh}
                    )
                    LEFT JOIN kin USING (image)
                    LEFT JOIN ({inherited}) inherited ON inherited.first = coalesce(kin.first, image)
                )
            )
        )""",
        {"seed": f"{shards.seed}\0", "samples": shards.samples},
    )
    connection.execute(
        """
        CREATE TABLE placed AS
        SELECT first.place, first.split, first.shard, first.index, coalesce(copies, 1) AS copies, further_copies
        FROM (SELECT * FROM ranked WHERE copy = 1) first LEFT JOIN (
            SELECT place, max(copy) AS copies,
                   string_agg(split || '-' || lpad(shard::VARCHAR, 7, '0') || ':' || index, ' ' ORDER BY copy)
                       AS further_copies
            FROM ranked WHERE copy > 1 GROUP BY place
        ) USING (place)"""
    )
    splits = dict(connection.sql("SELECT split, count(*) FROM ranked GROUP BY split").fetchall())
    connection.execute("DROP TABLE ranked")
    connection.unregister("kin")
    return {name: splits.get(name, 0) for name in shards.splits}


def _kin(connection: duckdb.DuckDBPyConnection, near: Collection[str]) -> pa.Table:
    """image, first: for each image (its sha256, else the uid) in a group of these methods the smallest of those that
    it is linked with, be it over several groups. Of kept pairs and others, so that it does not hang on the rules."""
    if not near:
        return pa.table({"image": pa.array([], pa.string()), "first": pa.array([], pa.string())})
    members = connection.sql(
        "SELECT coalesce(v.sha256, v.uid) AS image, d.dup_method || d.dup_group AS name "
        "FROM verdict v JOIN duplicates d USING (uid) WHERE list_contains($near, d.dup_method) ORDER BY image",
        params={"near": list(near)},
    ).to_arrow_table()
    # coded in the order of images, so that a component's smallest number is its smallest image; groups behind them
    image, group = (members[name].combine_chunks().dictionary_encode() for name in ("image", "name"))
    count = len(image.dictionary)
    i, j = image.indices.to_numpy().astype(np.int64), group.indices.to_numpy().astype(np.int64) + count
    first = components(count + len(group.dictionary), i, j)[:count]
    return pa.table({"image": image.dictionary, "first": image.dictionary.take(pa.array(first))})


def _split(shards: Shards) -> str:
    """SQL that gives a kept pair's split: a seeded hash of what goes together against the splits' shares."""
    share = f"(('0x' || left(md5('{shards.seed} split ' || coalesce(kin.first, image)), 8))::UBIGINT / 4294967296.0)"
    names = list(shards.splits)
    cases, up_to = "", 0.0
    for name in names[:-1]:
        up_to += shards.splits[name]
        cases += f"WHEN {share} < {up_to!r} THEN '{name}' "
    return f"CASE {cases}ELSE '{names[-1]}' END" if cases else f"'{names[0]}'"
