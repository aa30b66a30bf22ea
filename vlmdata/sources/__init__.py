"""Where pairs come from, one file a kind: `read(source, scratch)` yields Arrow batches, `check` refuses beforehand.

A source of many large files has, instead of `read`, what `vlmdata.pipelines.extract` spreads over workers: `files`
names them, `identity` says whether one has changed, `read_file(source, file, counts)` yields the batches of one, and
`report` tells what all held.
"""

import importlib
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from vlmdata.recipe import Source
from vlmdata.schemas import table_schema
from vlmdata.sources.urls import clean_text, strip_signature

__all__ = ["BATCH_ROWS", "DAMAGES", "ROWS", "by_file", "check", "clean_text", "read", "strip_signature"]

# What a source yields: ingest adds uid, captions and occurrences to `pairs`, and moves crawled_at to `observations`.
ROWS = pa.schema(
    [field for field in table_schema("pairs") if field.name not in ("uid", "captions", "occurrences")]
    + [pa.field("crawled_at", pa.timestamp("ms", tz="UTC"))]
)
BATCH_ROWS = 5_000
# What a source that is read file by file counts where a file was not whole.
DAMAGES = ("damaged places", "files cut off")


def check(source: Source) -> None:
    """Refuse a source before work starts: a path that is not there, a glob that matches nothing, no captions.

    Raises InputError, which says what to do.
    """
    _module(source).check(source)


def by_file(source: Source) -> Any:
    """The module of a source that is read file by file, or None for one that has `read`."""
    module = _module(source)
    return module if hasattr(module, "read_file") else None


def read(source: Source, scratch: str) -> Iterator[pa.RecordBatch]:
    """The rows of a source in batches of at most some 5,000, in the schema `ROWS`, in any order.

    scratch: a folder for the source's temporary files. Every text is valid UTF-8 without NUL; `url` and `caption`
    are never null or empty; signatures stand in `fetch_url` alone.
    Raises InputError for a source that cannot be what the recipe says, DataError for one that holds nothing.
    """
    for batch in _module(source).read(source, scratch):
        if not batch.schema.equals(ROWS):
            raise ValueError(f"vlmdata.sources.{source.kind} does not yield the columns of ROWS: {batch.schema}")
        if batch.num_rows:
            yield batch


def _module(source: Source) -> Any:
    return importlib.import_module(f"vlmdata.sources.{source.kind}")
