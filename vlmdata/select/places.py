"""The place of each kept pair: its split by its image, its shard and index by its uid."""

import duckdb

from vlmdata.recipe import Shards


def place(connection: duckdb.DuckDBPyConnection, shards: Shards) -> dict[str, int]:
    """Make the table `placed` (place, split, shard, index) of the kept rows of `verdict`; samples of each split.

    Kept pairs go to the splits by a seeded hash of the image's sha256 (so that one image is never in two), and to
    shards by one of the uid.
    """
    connection.execute(
        f"""
        CREATE TABLE placed AS
        SELECT place, split, rank // $samples AS shard, rank % $samples AS index FROM (
            SELECT place, split, row_number() OVER (PARTITION BY split ORDER BY md5($seed || uid), uid) - 1 AS rank
            FROM (SELECT place, uid, {_split(shards)} AS split FROM verdict WHERE reason IS NULL)
        )""",
        {"seed": f"{shards.seed}\0", "samples": shards.samples},
    )
    splits = dict(connection.sql("SELECT split, count(*) FROM placed GROUP BY split").fetchall())
    return {name: splits.get(name, 0) for name in shards.splits}


def _split(shards: Shards) -> str:
    """SQL that gives a kept pair's split: a seeded hash of the image's sha256 against the splits' shares."""
    share = f"(('0x' || left(md5('{shards.seed} split ' || sha256), 8))::UBIGINT / 4294967296.0)"
    names = list(shards.splits)
    cases, up_to = "", 0.0
    for name in names[:-1]:
        up_to += shards.splits[name]
        cases += f"WHEN {share} < {up_to!r} THEN '{name}' "
    return f"CASE {cases}ELSE '{names[-1]}' END" if cases else f"'{names[0]}'"
