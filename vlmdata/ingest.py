"""From what sources yield to the `pairs` table: signatures and uids, equal pairs united, rows in order, parts cut."""

import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from vlmdata.dataset import FIRST_LAYER, Dataset, Part, Table, make_key, noted, part_name
from vlmdata.recipe import Source
from vlmdata.schemas import table_schema
from vlmdata.sources import read

log = logging.getLogger(__name__)

VERSION = 1
_PAIRS = table_schema("pairs")
# What a source yields: the rest of a pair's columns are made here.
FOUND = pa.schema([f for f in _PAIRS if f.name not in ("captions", "occurrences")])
_PART_ROWS = 100_000


def source_key(source: Source, version: int) -> str:
    """The key of what a source yields; `version` is its module's."""
    return make_key("found", VERSION, [version, source.model_dump(mode="json")], [])


def read_source(dataset: Dataset, source: Source, key: str) -> Table:
    """Read one source to its end and record what it yields, once: the tables `found` and `observations`.

    `found` is in the order of its columns, so that it does not depend on the order of crawling.
    """
    with dataset.spool() as folder:
        raw = folder / "raw.parquet"
        with pq.ParquetWriter(raw, FOUND.append(pa.field("crawled_at", pa.timestamp("ms", tz="UTC")))) as writer:
            for batch in read(source, str(folder)):
                writer.write_table(_with_uid(pa.table(batch)).select(writer.schema.names).cast(writer.schema))
        import pyarrow.dataset as pads  # it imports pandas, which most commands never need

        connection = connect(folder)
        connection.register("raw", pads.dataset(str(raw)))
        found = connection.sql("SELECT * EXCLUDE (crawled_at) FROM raw ORDER BY ALL")
        parts = write_parts(dataset, "found", key, found, FOUND, _PART_ROWS)
        observed = connection.sql(
            "SELECT uid, min(crawled_at) AS crawled_at, NULL::TIMESTAMPTZ AS fetched_at "
            "FROM raw WHERE crawled_at IS NOT NULL GROUP BY uid ORDER BY uid"
        )
        seen = write_parts(dataset, "observations", key, observed, table_schema("observations"), _PART_ROWS)
        connection.close()
    dataset.write_table(Table("observations", key, tuple(seen)))
    table = Table("found", key, tuple(parts), about={"source": source.name})
    dataset.write_table(table)
    return table


def unite(dataset: Dataset, found: list[Table], key: str, rows: int, limit: int | None) -> Table:
    """Unite equal (url, caption) pairs of all sources, in the recipe's order, and cut the `pairs` table into parts.

    Of equal pairs the columns come from the occurrence with the smallest (source's place in the recipe, page_url,
    caption_from); page_consent is the strictest of all. Rows are ordered by (hash of url, uid); `limit` takes the first
    so many.
    """
    rest = ", ".join(name for name in FOUND.names if name not in ("uid", "page_url", "caption_from"))
    columns = ", ".join(f"'{name}': {name}" for name in FOUND.names if name not in ("uid", "page_consent"))
    # Of several pages the strictest counts: one that says no is not outvoted by where the others stand.
    words = [field.name for field in FOUND.field("page_consent").type]
    deny = "CASE WHEN bool_or(page_consent.{0} = 'deny') THEN 'deny' ELSE any_value(page_consent.{0}) END"
    consent = ", ".join(f"'{word}': {deny.format(word)}" for word in words)
    with dataset.spool() as folder:
        connection = connect(folder)
        for place, table in enumerate(found):
            connection.register(f"found_{place}", dataset.scan(list(table.parts), FOUND))
        every = " UNION ALL ".join(f"SELECT {place} AS place, * FROM found_{place}" for place in range(len(found)))
        united = connection.sql(
            f"""
            WITH pairs AS (
                SELECT uid, count(*)::INTEGER AS occurrences,
                       CASE WHEN count(page_consent) > 0 THEN {{{consent}}} END AS page_consent,
                       min_by({{{columns}}}, row(place, coalesce(page_url, ''), caption_from, {rest})) AS first
                FROM ({every}) GROUP BY uid
            )
            SELECT * EXCLUDE (first)
            FROM (SELECT uid, occurrences, page_consent, [first.caption] AS captions, first, unnest(first) FROM pairs)
            ORDER BY md5(url), uid LIMIT $limit
            """,
            params={"limit": limit},
        )
        parts = write_parts(dataset, "pairs", key, united, _PAIRS, rows)
        connection.close()
    table = Table("pairs", key, tuple(parts), noted(found))
    dataset.write_table(table)
    return table


def _with_uid(rows: pa.Table) -> pa.Table:
    # BLAKE2b has no vectorised form in Arrow or DuckDB; it takes a microsecond a row.
    uids = [
        hashlib.blake2b(f"{url}\0{caption}".encode(), digest_size=16).hexdigest()
        for url, caption in zip(rows["url"].to_pylist(), rows["caption"].to_pylist(), strict=True)
    ]
    return rows.append_column("uid", pa.array(uids, pa.string()))


def connect(folder: Path) -> duckdb.DuckDBPyConnection:
    """DuckDB that spills to `folder`, so that memory does not grow with the dataset."""
    return duckdb.connect(":memory:", config={"temp_directory": str(folder / "spill"), "memory_limit": "2GB"})


def write_parts(
    dataset: Dataset,
    table: str,
    key: str,
    result: duckdb.DuckDBPyRelation,
    schema: pa.Schema,
    rows: int,
    layer: int = FIRST_LAYER,
) -> list[Part]:
    """Cut a query's answer into a table's parts of `rows` rows each."""
    parts = []
    for number, chunk in enumerate(_chunks(result.to_arrow_reader(min(rows, 65_536)), rows)):
        parts.append(
            dataset.write_part(table, key, part_name(number, layer), chunk.select(schema.names).cast(schema), {})
        )
    return parts


def _chunks(reader: pa.RecordBatchReader, rows: int) -> Iterator[pa.Table]:
    """The reader's rows in tables of `rows` rows, the last one shorter; one empty table when there are none."""
    held: list[pa.RecordBatch] = []
    count, any_yet = 0, False
    for batch in reader:
        held.append(batch)
        count += batch.num_rows
        while count >= rows:
            whole = pa.Table.from_batches(held, reader.schema)
            yield whole.slice(0, rows)
            any_yet = True
            held, count = whole.slice(rows).to_batches(), count - rows
    if count or not any_yet:
        yield pa.Table.from_batches(held, reader.schema)
