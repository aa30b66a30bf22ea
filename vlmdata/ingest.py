"""From what sources yield to the `pairs` table: signatures and uids, equal pairs united, rows in order, parts cut."""

import hashlib
import logging
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlmdata.dataset import FIRST_LAYER, Dataset, Part, Table, make_key, noted, part_name, table_folder
from vlmdata.download import forgotten
from vlmdata.forget.tombstones import bury
from vlmdata.recipe import Source
from vlmdata.schemas import table_schema
from vlmdata.sources import read, signals, states, visited
from vlmdata.sources.urls import LONGEST_CAPTION, shorten

if TYPE_CHECKING:
    import pyarrow.dataset as pads

log = logging.getLogger(__name__)
progress = logging.getLogger("vlmdata.progress")

VERSION = 2
_FOUND_VERSION = 1  # apart, since another way of uniting must not crawl again
_PAIRS = table_schema("pairs")
# What a source yields: the rest of a pair's columns are made here.
FOUND = pa.schema([f for f in _PAIRS if f.name not in ("captions", "occurrences")])
_PART_ROWS = 100_000
_NOTHING = pa.schema([])


def source_key(source: Source, version: int, brings: pa.Schema) -> str:
    """The key of what a source yields; `version` is its module's, `brings` the signals of its own."""
    columns = [[[column.name, str(column.type)] for column in brings]] if brings else []
    return make_key("found", _FOUND_VERSION, [version, source.keyed(), *columns], [])


def raw_schema(source: Source) -> pa.Schema:
    """What is written while a source is read: the columns of `found`, the source's signals the last, then the time."""
    return pa.schema([*FOUND, *signals(source), pa.field("crawled_at", pa.timestamp("ms", tz="UTC"))])


def read_source(dataset: Dataset, source: Source, key: str) -> Table:
    """Read one source to its end and record what it yields, once: the tables `found`, `observations` and `seen`."""
    progress.info("ingest: %s", source.name, extra={"stage": "ingest", "done": 0, "total": None})
    before = states(source)  # first: what changes meanwhile is read by the next refresh
    return read_files(dataset, source, key, before, None, None)


def read_files(
    dataset: Dataset,
    source: Source,
    key: str,
    now: dict[str, str | None],
    chosen: Collection[str] | None,
    earlier: Table | None,
) -> Table:
    """Read a source, of its files those `chosen`, and record what it yields. now: its `states`, to record as seen.

    earlier: what is found already, for `record`.
    """
    schema = raw_schema(source)
    with dataset.spool() as folder, dataset.kept(f"reading/{key}") as scratch:
        raw = folder / "raw.parquet"
        refused = forgotten.load(dataset)
        with pq.ParquetWriter(raw, schema) as writer:
            for batch in read(source, str(scratch), chosen):
                writer.write_table(with_uid(batch, schema, refused))
        import pyarrow.dataset as pads  # it imports pandas, which most commands never need

        table = record(dataset, source, key, pads.dataset(str(raw)), {}, earlier)
        pages = visited(source, str(scratch))
        note_seen(dataset, key, now if pages is None else pages)
        return table


def note_seen(dataset: Dataset, key: str, states: Mapping[str, str | None]) -> None:
    """Record what a source consists of, in the place of what was recorded before."""
    schema = table_schema("seen")
    before = dataset.read_table("seen", key)
    rows = pa.table({"file": list(states), "state": list(states.values())}, schema=schema)
    name = part_name(0, before.layer + 1 if before else FIRST_LAYER)
    dataset.write_table(Table("seen", key, (dataset.write_part("seen", key, name, rows, {}),)))
    for part in before.parts if before else ():
        dataset.remove(part.path)


def seen(dataset: Dataset, key: str) -> dict[str, str | None]:
    """What a source consisted of when it was read last; nothing where nobody has recorded it."""
    table = dataset.read_table("seen", key)
    rows = [dataset.read_part(part) for part in table.parts] if table else []
    return {file: state for part in rows for file, state in zip(*part.to_pydict().values(), strict=True)}


def clean(dataset: Dataset) -> None:
    """Remove what a kill has left of sources that are read to their end. Only the holder of the lock may call it."""

    def done(key: str) -> bool:
        return dataset.exists(f"{table_folder('found', key)}/manifest.json")

    for key in filter(done, dataset.keys_of("extracted")):
        dataset.remove(table_folder("extracted", key))
    for folder in dataset.kept_folder("reading").glob("*"):
        if done(folder.name):
            shutil.rmtree(folder, ignore_errors=True)


def record(
    dataset: Dataset,
    source: Source,
    key: str,
    raw: "pads.Dataset",
    counts: dict[str, int],
    earlier: Table | None = None,
) -> Table:
    """Write the tables `found` and `observations` of what a source yielded, rows in its `raw_schema`.

    `found` is in the order of its columns, so that it does not depend on the order of reading. counts: what the source
    tells of itself, kept in the manifest. earlier: what was found before: the pairs that it does not have become a
    layer of their own, where there are any.
    """
    layer = earlier.layer + 1 if earlier else FIRST_LAYER
    schema = pa.schema([field for field in raw_schema(source) if field.name != "crawled_at"])
    with dataset.spool() as folder:
        connection = connect(folder)
        connection.register("yielded", raw)
        rows = "SELECT * FROM yielded"
        if earlier is not None:
            connection.register("earlier", dataset.scan(list(earlier.parts), pa.schema([FOUND.field("uid")])))
            rows += " WHERE uid NOT IN (SELECT uid FROM earlier)"
        connection.execute(f"CREATE VIEW raw AS {rows}")
        if earlier is not None and not connection.sql("SELECT 1 FROM raw LIMIT 1").fetchall():
            return earlier
        found = connection.sql("SELECT * EXCLUDE (crawled_at) FROM raw ORDER BY ALL")
        parts = write_parts(dataset, {"found": schema}, key, found, _PART_ROWS, layer=layer)["found"]
        observed = connection.sql(
            "SELECT uid, min(crawled_at) AS crawled_at, NULL::TIMESTAMPTZ AS fetched_at "
            "FROM raw WHERE crawled_at IS NOT NULL GROUP BY uid ORDER BY uid"
        )
        times = {"observations": table_schema("observations")}
        seen_at = write_parts(dataset, times, key, observed, _PART_ROWS, layer=layer)["observations"]
        connection.close()
    before = dataset.read_table("observations", key) if earlier else None
    dataset.write_table(Table("observations", key, (*(before.parts if before else ()), *seen_at)))
    about = {"source": source.name} | ({"counts": dict(sorted(counts.items()))} if counts else {})
    table = Table("found", key, (*(earlier.parts if earlier else ()), *parts), about=about)
    dataset.write_table(table)
    return table


def unite(
    dataset: Dataset, found: list[Table], key: str, rows: int, limit: int | None, brings: pa.Schema = _NOTHING
) -> Table:
    """Unite equal (url, caption) pairs of all sources, in the recipe's order, and cut the `pairs` table into parts.

    Of equal pairs the columns come from the occurrence with the smallest (source's place in the recipe, page_url,
    caption_from); page_consent is the strictest of all. Rows are ordered by (hash of url, uid); `limit` takes the first
    so many. A part has at most `rows` rows, and one URL's captions share a part where it can hold them.
    brings: the signals of all sources, as `sources.unite_signals` gives them; null where a source has none such. They
    make the table `source_signals` under the same key, part for part and row for row as `pairs`; it is there first.
    """
    tables = {"pairs": _PAIRS}
    if brings:
        tables = {"source_signals": pa.schema([*table_schema("source_signals"), *brings]), **tables}
    with dataset.spool() as folder:
        connection = connect(folder)
        united = united_pairs(connection, dataset, [list(table.parts) for table in found], brings, limit)
        parts = write_parts(dataset, tables, key, united, rows, together="url")
        connection.close()
    written = [Table(name, key, tuple(parts[name]), noted(found), {"rows": rows}) for name in tables]
    for table in written:
        dataset.write_table(table)
    return written[-1]


def united_pairs(
    connection: duckdb.DuckDBPyConnection,
    dataset: Dataset,
    found: list[list[Part]],
    brings: pa.Schema,
    limit: int | None = None,
    known: "pads.Dataset | None" = None,
) -> duckdb.DuckDBPyRelation:
    """The united rows of all sources' parts, as `unite` describes them, in their order. known: pairs to leave out."""
    schema = pa.schema([*FOUND, *brings])
    rest = ", ".join(name for name in schema.names if name not in ("uid", "page_url", "caption_from"))
    columns = ", ".join(f"'{name}': {name}" for name in schema.names if name not in ("uid", "page_consent"))
    # Of several pages the strictest counts: one that says no is not outvoted by where the others stand.
    words = [field.name for field in FOUND.field("page_consent").type]
    deny = "CASE WHEN bool_or(page_consent.{0} = 'deny') THEN 'deny' ELSE any_value(page_consent.{0}) END"
    consent = ", ".join(f"'{word}': {deny.format(word)}" for word in words)
    whole = "bool_and(url IS NOT NULL)"  # what one source may not bring back, no other brings
    every = []
    for place, parts in enumerate(found):
        if parts:
            connection.register(f"found_{place}", dataset.scan(parts, schema))
            every.append(f"SELECT {place} AS place, * FROM found_{place}")
    apart = ""
    if known is not None:
        connection.register("known", known)
        apart = "WHERE uid NOT IN (SELECT uid FROM known)"
    return connection.sql(
        f"""
        WITH pairs AS (
            SELECT uid, CASE WHEN {whole} THEN count(*)::INTEGER END AS occurrences,
                   CASE WHEN {whole} AND count(page_consent) > 0 THEN {{{consent}}} END AS page_consent,
                   min_by({{{columns}}}, row(
                       url IS NOT NULL, place, coalesce(page_url, ''), caption_from, {rest})) AS first
            FROM ({" UNION ALL ".join(every)}) {apart} GROUP BY uid
        )
        SELECT * EXCLUDE (first)
        FROM (
            SELECT uid, occurrences, page_consent,
                   CASE WHEN first.url IS NOT NULL THEN [first.caption] END AS captions, first, unnest(first)
            FROM pairs
        )
        ORDER BY md5(url), uid LIMIT $limit
        """,
        params={"limit": limit},
    )


def with_uid(batch: pa.RecordBatch, schema: pa.Schema, refused: forgotten.Forgotten) -> pa.Table:
    """A source's rows with their uids, in the source's `raw_schema`. No caption has more than LONGEST_CAPTION
    characters, whatever the source: a longer one is cut at a space. What is refused is a tombstone: a uid alone."""
    rows = pa.table(batch)
    captions = batch["caption"]
    long = pc.greater(pc.utf8_length(captions), LONGEST_CAPTION)
    if pc.any(long).as_py():
        cut = [shorten(caption, LONGEST_CAPTION) for caption in captions.filter(long).to_pylist()]
        captions = pc.replace_with_mask(captions, long, pa.array(cut, captions.type))
        rows = rows.set_column(rows.schema.get_field_index("caption"), "caption", captions)
    # BLAKE2b has no vectorised form in Arrow or DuckDB; it takes a microsecond a row.
    uids = [
        hashlib.blake2b(f"{url}\0{caption}".encode(), digest_size=16).hexdigest()
        for url, caption in zip(rows["url"].to_pylist(), rows["caption"].to_pylist(), strict=True)
    ]
    rows = rows.append_column("uid", pa.array(uids, pa.string())).select(schema.names).cast(schema)
    gone = refused.rows(uids, rows["url"].to_pylist(), rows["page_url"].to_pylist())
    return bury(rows, gone)


def connect(folder: Path) -> duckdb.DuckDBPyConnection:
    """DuckDB that spills to `folder`, so that memory does not grow with the dataset."""
    return duckdb.connect(":memory:", config={"temp_directory": str(folder / "spill"), "memory_limit": "2GB"})


def write_parts(
    dataset: Dataset,
    tables: dict[str, pa.Schema],
    key: str,
    result: duckdb.DuckDBPyRelation,
    rows: int,
    together: str | None = None,
    layer: int = FIRST_LAYER,
) -> dict[str, list[Part]]:
    """The result's columns as the parts of each table, in one pass over its rows."""
    parts: dict[str, list[Part]] = {table: [] for table in tables}
    for number, chunk in enumerate(_chunks(result.to_arrow_reader(min(rows, 65_536)), rows, together)):
        for table, schema in tables.items():
            columns = chunk.select(schema.names).cast(schema)
            parts[table].append(dataset.write_part(table, key, part_name(number, layer), columns, {}))
    return parts


def _chunks(reader: pa.RecordBatchReader, rows: int, together: str | None) -> Iterator[pa.Table]:
    """The reader's rows in tables of at most `rows` rows; one empty table when there are none.

    together: a column whose equal neighbours stay in one table, unless they alone are more than `rows`.
    """
    held = reader.schema.empty_table()
    any_yet = False
    for batch in reader:
        held = pa.concat_tables([held, pa.Table.from_batches([batch])])
        while held.num_rows > rows:  # one row more than fits, to see whether it belongs to those before it
            cut = rows if together is None else _cut_before(pc.fill_null(held[together].slice(0, rows + 1), ""))
            yield held.slice(0, cut)
            any_yet, held = True, held.slice(cut)
    if held.num_rows or not any_yet:
        yield held


def _cut_before(values: pa.ChunkedArray) -> int:
    """How many of the values but the last fit into one part, so that the last one's equals are not parted from it."""
    last = values[len(values) - 1]
    first_equal = pc.index(values, last).as_py()  # equal values are neighbours
    return first_equal or len(values) - 1
