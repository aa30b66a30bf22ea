"""Where pairs come from, one file a kind.

A kind's module has `VERSION`, `check(source)`, which refuses beforehand, and `read(source, scratch)`, which yields
Arrow batches. One whose sources bring signals of their own also has `signals(source)`, the schema of these further
columns, told before anything is read: its batches hold the columns of `ROWS`, then these. They become the table
`source_signals`, which rules read like any other signal.

A source of many large files has, instead of `read`, what `vlmdata.pipelines.extract` spreads over workers: `files`
names them, `identity` says whether one has changed, `read_file(source, file, counts)` yields the batches of one, and
`report` tells what all held.

For a refresh a kind has `states(source)`, what its files are now (file -> a text that changes with it, None where
nobody can say), and its `read` takes `chosen`, those of them to read.
"""

import importlib
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import pyarrow as pa

from vlmdata.errors import InputError
from vlmdata.recipe import Source
from vlmdata.schemas import table_schema
from vlmdata.sources.urls import clean_text, strip_signature

__all__ = [
    "BATCH_ROWS",
    "DAMAGES",
    "ROWS",
    "SIGNAL_TYPES",
    "by_file",
    "check",
    "clean_text",
    "read",
    "signal_column",
    "signals",
    "states",
    "strip_signature",
    "unite_signals",
    "visited",
]

# What a source yields: ingest adds uid, captions and occurrences to `pairs`, and moves crawled_at to `observations`.
ROWS = pa.schema(
    [field for field in table_schema("pairs") if field.name not in ("uid", "captions", "occurrences")]
    + [pa.field("crawled_at", pa.timestamp("ms", tz="UTC"))]
)
BATCH_ROWS = 5_000
# Of the columns that `signals` tells.
SIGNAL_TYPES = (pa.string(), pa.bool_(), pa.int64(), pa.uint64(), pa.float32(), pa.float64())
_NUMBERS = (pa.int64(), pa.float32(), pa.float64())
# What a source that is read file by file counts where a file was not whole.
DAMAGES = ("damaged places", "files cut off")


def check(source: Source) -> None:
    """Refuse a source before work starts: a path that is not there, a glob that matches nothing, no captions.

    Raises InputError, which says what to do.
    """
    _module(source).check(source)


def signals(source: Source) -> pa.Schema:
    """The columns that a source brings beside those of `ROWS`, in order; none for most kinds.

    Names begin with `source_` and are none of `pairs`; types are those of SIGNAL_TYPES. A file may be opened to find
    them out, its rows are not read. Raises InputError where the source cannot tell.
    """
    module = _module(source)
    schema: pa.Schema = module.signals(source) if hasattr(module, "signals") else pa.schema([])
    for column in schema:
        known = column.type in SIGNAL_TYPES and re.fullmatch(r"source_[a-z0-9_]+", column.name)
        if not known or column.name in ROWS.names or schema.names.count(column.name) > 1:
            raise ValueError(f"vlmdata.sources.{source.kind}: {column} cannot be a column of source_signals")
    return schema


def signal_column(name: str) -> str:
    """The column for what a source calls `name`: `source_clip_score` for `CLIP score`.

    Raises InputError for a name without an ASCII letter or digit, and for one that `pairs` has (`source_id`).
    """
    column = f"source_{re.sub(r'[^a-z0-9]+', '_', name.lower()).strip('_')}"
    if column == "source_" or column in ROWS.names:
        raise InputError(
            f"{name!r} cannot be kept as a signal: {column!r} is "
            + ("no name" if column == "source_" else "a column of pairs")
        )
    return column


def unite_signals(schemas: Mapping[str, pa.Schema]) -> pa.Schema:
    """The columns of the table `source_signals` but for uid: those of all sources (name -> schema) together.

    A column that is int64 here and a float there is float64. Raises InputError where one is text here and a number
    there.
    """
    types: dict[str, tuple[str, pa.DataType]] = {}
    for source, schema in schemas.items():
        for column in schema:
            first, kind = types.setdefault(column.name, (source, column.type))
            if kind == column.type:
                continue
            if kind not in _NUMBERS or column.type not in _NUMBERS:
                raise InputError(
                    f"sources.{source}: its column {column.name!r} is {column.type}, but {kind} in the source "
                    f"{first!r}: give them one type, or leave the column out of one"
                )
            types[column.name] = (first, pa.float64())
    return pa.schema([(name, kind) for name, (_, kind) in types.items()])


def by_file(source: Source) -> Any:
    """The module of a source that is read file by file, or None for one that has `read`."""
    module = _module(source)
    return module if hasattr(module, "read_file") else None


def states(source: Source) -> dict[str, str | None]:
    """What a source's files are now; nothing for a crawl, whose pages are known by its frontier."""
    module = _module(source)
    return module.states(source) if hasattr(module, "states") else {}


def visited(source: Source, scratch: str) -> dict[str, str] | None:
    """After `read`, a crawl's pages with what tells that they have changed; None for a source of files."""
    module = _module(source)
    return module.visited(source, scratch) if hasattr(module, "visited") else None


def read(source: Source, scratch: str, chosen: Collection[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The rows of a source in batches of at most some 5,000, in any order: the columns of `ROWS`, then `signals`.

    scratch: a folder for the source's files; after a kill the next run finds it as it was. chosen: of `states` the
    files to read, all otherwise; of a crawl the pages to ask about, with what `visited` gave.
    Every text is valid UTF-8 without NUL; `url` and `caption` are never null or empty; signatures stand in
    `fetch_url` alone.
    Raises InputError for a source that cannot be what the recipe says, DataError for one that holds nothing.
    """
    schema = pa.schema([*ROWS, *signals(source)])
    chosen_only = {} if chosen is None else {"chosen": chosen}
    for batch in _module(source).read(source, scratch, **chosen_only):
        if not batch.schema.equals(schema):
            raise ValueError(f"vlmdata.sources.{source.kind} does not yield the columns of ROWS: {batch.schema}")
        if batch.num_rows:
            yield batch


def _module(source: Source) -> Any:
    return importlib.import_module(f"vlmdata.sources.{source.kind}")
