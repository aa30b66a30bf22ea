"""The place of each kept pair: its split by its image, its shard and index by its uid."""

import duckdb

from vlmdata.recipe import Shards


def place(connection: duckdb.DuckDBPyConnection, shards: Shards) -> dict[str, int]:
    """Make the table `placed` (place, split, shard, index, further_copies) of the kept rows of `verdict`; samples of
    each split.

    Kept pairs go to the splits by a seeded hash of the image's sha256 (so that one image is never in two), and to
    shards by one of the uid. Further copies of a pair (`verdict.copies`) have places of their own in the same order, so
    that they do not stand side by side: `<shard>:<index>` with blanks between them.
    """
    connection.execute(
        f"""
        CREATE TEMP TABLE ranked AS
        SELECT place, copy, split, rank // $samples AS shard, rank % $samples AS index FROM (
            SELECT place, copy, split,
                   row_number() OVER (PARTITION BY split ORDER BY md5($seed || uid || again), uid, copy) - 1 AS rank
            FROM (
                SELECT place, uid, split, copy, CASE WHEN copy > 1 THEN '_' || copy ELSE '' END AS again FROM (
                    SELECT place, uid, {_split(shards)} AS split, unnest(range(1, copies + 1)) AS copy
                    FROM verdict WHERE reason IS NULL
                )
            )
        )""",
        {"seed": f"{shards.seed}\0", "samples": shards.samples},
    )
    connection.execute(
        """
        CREATE TABLE placed AS
        SELECT first.place, first.split, first.shard, first.index, further_copies
        FROM (SELECT * FROM ranked WHERE copy = 1) first LEFT JOIN (
            SELECT place, string_agg(split || '-' || lpad(shard::VARCHAR, 7, '0') || ':' || index, ' ' ORDER BY copy)
                AS further_copies
            FROM ranked WHERE copy > 1 GROUP BY place
        ) USING (place)"""
    )
    splits = dict(connection.sql("SELECT split, count(*) FROM ranked GROUP BY split").fetchall())
    connection.execute("DROP TABLE ranked")
    return {name: splits.get(name, 0) for name in shards.splits}


def _split(shards: Shards) -> str:
    """SQL that gives a kept pair's split: a seeded hash of the image's sha256 against the splits' shares."""
    share = f"(('0x' || left(md5('{shards.seed} split ' || coalesce(sha256, uid)), 8))::UBIGINT / 4294967296.0)"
    names = list(shards.splits)
    cases, up_to = "", 0.0
    for name in names[:-1]:
        up_to += shards.splits[name]
        cases += f"WHEN {share} < {up_to!r} THEN '{name}' "
    return f"CASE {cases}ELSE '{names[-1]}' END" if cases else f"'{names[0]}'"
