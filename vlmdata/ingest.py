"""From what sources yield to the `pairs` table: signatures and uids, equal pairs united, rows in order, parts cut."""

import hashlib
import logging
import os
import shutil
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlmdata.catalog import view_files, view_local, view_parts
from vlmdata.dataset import Dataset
from vlmdata.download import forgotten
from vlmdata.forget.tombstones import bury
from vlmdata.ordered import in_order
from vlmdata.parts import FIRST_LAYER, Part, Table, make_key, noted, part_name, table_folder
from vlmdata.recipe import Source
from vlmdata.schemas import table_schema
from vlmdata.sources import read, signals, states, visited
from vlmdata.sources.urls import LONGEST_CAPTION, shorten

log = logging.getLogger(__name__)
progress = logging.getLogger("vlmdata.progress")

VERSION = 2
_FOUND_VERSION = 1  # apart, since another way of uniting must not crawl again
_PAIRS = table_schema("pairs")
# What a source yields: the rest of a pair's columns are made here.
FOUND = pa.schema([f for f in _PAIRS if f.name not in ("captions", "occurrences")])
_PART_ROWS = 100_000
MOST = 2_000_000_000  # bytes that DuckDB may hold
_OF_A_THREAD = 256_000_000  # bytes: rows of 2 kB
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
        table = record(dataset, source, key, raw, {}, earlier)
        pages = visited(source, str(scratch))
        note_seen(dataset, source, key, now if pages is None else pages)
        return table


def note_seen(dataset: Dataset, source: Source, key: str, states: Mapping[str, str | None]) -> None:
    """Record what a source consists of, in the place of what was recorded before; nothing of what is forgotten."""
    schema = table_schema("seen")
    refused = forgotten.load(dataset)
    states = {file: state for file, state in states.items() if not refused.names(source.name, file)}
    before = dataset.read_table("seen", key)
    rows = pa.table({"file": list(states), "state": list(states.values())}, schema=schema)
    name = part_name(0, before.layer + 1 if before else FIRST_LAYER)
    parts = (dataset.write_part("seen", key, name, rows, {}),)
    dataset.write_table(Table("seen", key, parts, about={"source": source.name}))
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
    raw: Path | Sequence[Part],
    counts: dict[str, int],
    earlier: Table | None = None,
) -> Table:
    """Write the tables `found` and `observations` of what a source yielded: a file or parts, rows in its `raw_schema`.

    `found` is in the order of its columns, so that it does not depend on the order of reading. counts: what the source
    tells of itself, kept in the manifest. earlier: what was found before: the pairs that it does not have become a
    layer of their own, where there are any.
    """
    layer = earlier.layer + 1 if earlier else FIRST_LAYER
    schema = pa.schema([field for field in raw_schema(source) if field.name != "crawled_at"])
    with dataset.spool() as folder:
        connection = connect(folder)
        if isinstance(raw, Path):
            view_local(connection, "yielded", raw)
        else:
            view_parts(connection, dataset, "yielded", raw, raw_schema(source))
        rows = "SELECT * FROM yielded"
        if earlier is not None:
            view_parts(connection, dataset, "earlier", earlier.parts, pa.schema([FOUND.field("uid")]))
            rows += " WHERE uid NOT IN (SELECT uid FROM earlier)"
        connection.execute(f"CREATE VIEW raw AS {rows}")
        if earlier is not None and not connection.sql("SELECT 1 FROM raw LIMIT 1").fetchall():
            return earlier
        every = "SELECT * EXCLUDE (crawled_at) FROM raw"
        ordered = in_order(connection, every, "uid", "SELECT * EXCLUDE (share) FROM dealt ORDER BY ALL", folder)
        parts = write_parts(dataset, {"found": schema}, key, ordered, _PART_ROWS, layer=layer)
        observed = in_order(
            connection,
            "SELECT uid, crawled_at FROM raw WHERE crawled_at IS NOT NULL",
            "uid",
            "SELECT uid, min(crawled_at) AS crawled_at, NULL::TIMESTAMPTZ AS fetched_at FROM dealt "
            "GROUP BY uid ORDER BY uid",
            folder,
        )
        times = {"observations": table_schema("observations")}
        seen_at = write_parts(dataset, times, key, observed, _PART_ROWS, layer=layer)
        connection.close()
    before = dataset.read_table("observations", key) if earlier else None
    dataset.write_table(Table("observations", key, (*(before.parts if before else ()), *seen_at["observations"])))
    about = {"source": source.name} | ({"counts": dict(sorted(counts.items()))} if counts else {})
    table = Table("found", key, (*(earlier.parts if earlier else ()), *parts["found"]), about=about)
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
        united = united_pairs(connection, dataset, [list(table.parts) for table in found], brings, folder, limit)
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
    folder: Path,
    limit: int | None = None,
    known: Sequence[Part] = (),
) -> Iterator[pa.Table]:
    """The united rows of all sources' parts, as `unite` describes them, in their order.

    folder: for files of its own. known: parts of pairs to leave out. Grouping in DuckDB would hold every group's
    columns in memory; here equal rows are neighbours.
    """
    schema = pa.schema([*FOUND, *brings])
    rest = ", ".join(name for name in schema.names if name not in ("uid", "page_url", "caption_from"))
    every = []
    for place, parts in enumerate(found):
        if parts:
            view_parts(connection, dataset, f"found_{place}", parts, schema)
            every.append(f"SELECT {place} AS place, * FROM found_{place}")
    apart = ""
    if known:
        view_files(connection, dataset, "known", known, pa.schema([_PAIRS.field("uid")]))
        apart = "WHERE uid NOT IN (SELECT uid FROM known)"
    connection.execute(f"CREATE VIEW every AS {' UNION ALL '.join(every)}")
    # What one source may not bring back, no other brings: the row without a URL stands first, among such rows.
    gone = "SELECT uid FROM every WHERE url IS NULL"
    rows = f"SELECT *, CASE WHEN uid NOT IN ({gone}) THEN md5(url) END AS hash FROM every {apart}"
    ordered = f"""
        SELECT * EXCLUDE (place, hash, share) FROM dealt
        ORDER BY hash, uid, url IS NOT NULL, place, coalesce(page_url, ''), caption_from, {rest}"""
    return _first(_united(in_order(connection, rows, "hash", ordered, folder)), limit)


def _first(tables: Iterator[pa.Table], limit: int | None) -> Iterator[pa.Table]:
    left = limit
    for rows in tables:
        yield rows.slice(0, left)
        if left is not None and (left := left - rows.num_rows) <= 0:
            return


def _united(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The first row of each uid, with what all of its rows say; they are neighbours."""
    held: tuple[pa.Table, np.ndarray, np.ndarray] | None = None  # the last row: it may go on in the next batch
    for batch in batches:
        uid, rows = batch["uid"], pa.Table.from_batches([batch])
        starts = np.flatnonzero([True, *pc.not_equal(uid[1:], uid[:-1]).to_numpy(zero_copy_only=False)])
        count = np.diff(starts, append=len(uid))
        said = np.maximum.reduceat(_said(batch["page_consent"]), starts)
        rows = rows.take(pa.array(starts))
        if held is not None:
            if held[0]["uid"][0] == rows["uid"][0]:
                rows = pa.concat_tables([held[0], rows.slice(1)])
                count[0] += held[1][0]
                said[0] = np.maximum(said[0], held[2][0])
            else:
                yield _pairs(*held)
        yield _pairs(rows.slice(0, len(rows) - 1), count[:-1], said[:-1])
        held = rows.slice(len(rows) - 1), count[-1:], said[-1:]
    if held is not None:
        yield _pairs(*held)


_CONSENT = _PAIRS.field("page_consent").type
_WORDS = pa.array([None, "allow", "deny"])  # of several pages the strictest counts


def _said(consent: pa.Array) -> np.ndarray:
    """int8 [n, words + 1]: what each page says by each word, its place in _WORDS, and whether it says anything."""
    words = [pc.fill_null(pc.index_in(pc.struct_field(consent, field.name), _WORDS), 0) for field in _CONSENT]
    return np.stack([*words, consent.is_valid().cast(pa.int8())], axis=1).astype(np.int8)


def _pairs(rows: pa.Table, count: np.ndarray, said: np.ndarray) -> pa.Table:
    """`found` rows as `pairs` has them. count, said: of all rows that each stands for."""
    gone = rows["url"].is_null().combine_chunks()
    mask = pc.or_(gone, pa.array(said[:, -1] == 0))
    consent = pa.StructArray.from_arrays(
        [_WORDS.take(pa.array(said[:, place])) for place in range(len(_CONSENT))], fields=list(_CONSENT), mask=mask
    )
    rows = rows.set_column(rows.column_names.index("page_consent"), "page_consent", consent)
    offsets = pa.array(np.arange(len(rows) + 1), pa.int32())
    captions = pa.ListArray.from_arrays(offsets, rows["caption"].combine_chunks(), mask=gone)
    occurrences = pc.if_else(gone, pa.scalar(None, pa.int32()), pa.array(count, pa.int32()))
    return rows.append_column("captions", captions).append_column("occurrences", occurrences)


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


def connect(folder: Path, limit: int = MOST) -> duckdb.DuckDBPyConnection:
    """DuckDB that spills to `folder`, so that memory does not grow with the dataset; limit: bytes, MOST at most."""
    limit = min(MOST, limit)
    # What is sorted comes to every thread in blocks of 122,880 rows, which cannot spill while they are worked on.
    threads = min(os.cpu_count() or 1, max(2, limit // _OF_A_THREAD))
    spill = str(folder / "spill")
    return duckdb.connect(":memory:", config={"temp_directory": spill, "memory_limit": f"{limit}B", "threads": threads})


def write_parts(
    dataset: Dataset,
    tables: dict[str, pa.Schema],
    key: str,
    result: Iterable[pa.Table | pa.RecordBatch],
    rows: int,
    together: str | None = None,
    layer: int = FIRST_LAYER,
) -> dict[str, list[Part]]:
    """The result's columns as the parts of each table, in one pass over its rows."""
    parts: dict[str, list[Part]] = {table: [] for table in tables}
    every = {column.name: column for schema in tables.values() for column in schema}
    for number, chunk in enumerate(chunks(result, rows, together, pa.schema(every.values()).empty_table())):
        for table, schema in tables.items():
            columns = chunk.select(schema.names).cast(schema)
            parts[table].append(dataset.write_part(table, key, part_name(number, layer), columns, {}))
    return parts


def chunks(
    result: Iterable[pa.Table | pa.RecordBatch], rows: int, together: str | None, empty: pa.Table
) -> Iterator[pa.Table]:
    """The result in tables of at most `rows` rows; the empty table when there are none.

    together: a column whose equal neighbours stay in one table, unless they alone are more than `rows`.
    """
    held: pa.Table | None = None
    any_yet = False
    for batch in result:
        came = batch if isinstance(batch, pa.Table) else pa.Table.from_batches([batch])
        held = came if held is None else pa.concat_tables([held, came])
        while held.num_rows > rows:  # one row more than fits, to see whether it belongs to those before it
            cut = rows if together is None else _cut_before(pc.fill_null(held[together].slice(0, rows + 1), ""))
            yield held.slice(0, cut)
            any_yet, held = True, held.slice(cut)
    if held is not None and held.num_rows:
        yield held
    elif not any_yet:
        yield empty


def _cut_before(values: pa.ChunkedArray) -> int:
    """How many of the values but the last fit into one part, so that the last one's equals are not parted from it."""
    last = values[len(values) - 1]
    first_equal = pc.index(values, last).as_py()  # equal values are neighbours
    return first_equal or len(values) - 1
