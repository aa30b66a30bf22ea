"""Pairs from tables: Parquet, CSV, TSV and JSONL files, compressed or not, with a URL and a caption a row."""

import csv
import gzip
import io
import json
import logging
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from typing import Any, BinaryIO

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq

from vlmdata.errors import DataError, InputError
from vlmdata.recipe import TableSource, nearest
from vlmdata.sources import BATCH_ROWS, ROWS
from vlmdata.sources.urls import clean_text, strip_signature

log = logging.getLogger(__name__)

VERSION = 1
_LONGEST_LINE = 16_000_000  # characters
_FORMATS = {".parquet": "parquet", ".csv": "csv", ".tsv": "tsv", ".jsonl": "jsonl", ".ndjson": "jsonl"}
_PACKED = {".gz": "gzip", ".zst": "zstd"}


def check(source: TableSource) -> None:
    """Refuse a path that matches no file, and a first file without the two columns. Raises InputError."""
    filesystem, paths = _files(source)
    next(_texts(source, filesystem, paths[0]), None)


def read(source: TableSource, scratch: str) -> Iterator[pa.RecordBatch]:
    """The rows of all files, in the order of their paths. Memory does not grow with the tables.

    Rows without a URL or a caption are counted and logged, and so are lines that are not JSON.
    Raises InputError for a file without the columns, DataError for one that is corrupt; both name the file.
    """
    filesystem, paths = _files(source)
    empty = 0
    for path in paths:
        for urls, captions in _texts(source, filesystem, path):
            rows = []
            for url, caption in zip(urls, captions, strict=True):
                url, caption = clean_text(url or ""), clean_text(caption or "")
                if url and caption:
                    rows.append((*strip_signature(url), caption))
                else:
                    empty += 1
            yield _batch(source, rows)
    if empty:
        log.info("%s: %d rows without a URL or a caption are left aside", source.name, empty)


def _batch(source: TableSource, rows: list[tuple[str, str | None, str]]) -> pa.RecordBatch:
    urls, fetch_urls, captions = zip(*rows, strict=True) if rows else ((), (), ())
    known: dict[str, Sequence[str | None]] = {"url": urls, "fetch_url": fetch_urls, "caption": captions}
    known |= {"caption_from": [source.caption] * len(rows), "source": [source.name] * len(rows)}
    columns = [
        pa.array(known[field.name], field.type) if field.name in known else pa.nulls(len(rows), field.type)
        for field in ROWS
    ]
    return pa.RecordBatch.from_arrays(columns, schema=ROWS)


def _files(source: TableSource) -> tuple[Any, list[str]]:
    """The filesystem and the files, sorted. Raises InputError."""
    where = f"sources.{source.name}.path"
    try:
        filesystem, path = fsspec.core.url_to_fs(source.path)
        paths = sorted(p for p in filesystem.glob(path) if not filesystem.isdir(p))
        if not paths and filesystem.exists(path):
            paths = [] if filesystem.isdir(path) else [path]  # a file whose name has a glob's signs in it
    except (ImportError, ValueError) as error:
        raise InputError(f"{where}: {source.path!r}: {error}") from error
    except OSError as error:
        raise InputError(f"{where}: {source.path!r} cannot be reached: {error}") from error
    if not paths:
        raise InputError(f"{where}: {source.path!r} matches no file (for a folder, write folder/*.parquet)")
    for name in paths:
        if _form(name)[0] is None:
            raise InputError(
                f"{where}: {name}: what it holds is told by its end: {' '.join(_FORMATS)}, then .gz or .zst"
            )
    return filesystem, paths


def _form(path: str) -> tuple[str | None, str | None]:
    """(format, compression) by the name's end."""
    name = path.lower()
    packed = next((codec for end, codec in _PACKED.items() if name.endswith(end)), None)
    name = name.rpartition(".")[0] if packed else name
    return next((form for end, form in _FORMATS.items() if name.endswith(end)), None), packed


def _texts(source: TableSource, filesystem: Any, path: str) -> Iterator[tuple[list[str | None], list[str | None]]]:
    """Batches of (URLs, captions) of one file."""
    form, packed = _form(path)
    try:
        with ExitStack() as stack:
            file = stack.enter_context(filesystem.open(path, "rb"))
            if form == "parquet":
                yield from _parquet(source, path, file)
                return
            lines = _lines(path, stack.enter_context(_unpacked(file, packed)))
            rows = _jsonl(source, path, lines) if form == "jsonl" else _csv(source, path, lines, form == "tsv")
            held: list[tuple[str | None, str | None]] = []
            for row in rows:
                held.append(row)
                if len(held) == BATCH_ROWS:
                    yield [url for url, _ in held], [caption for _, caption in held]
                    held = []
            yield [url for url, _ in held], [caption for _, caption in held]
    except (OSError, EOFError, zlib.error, pa.ArrowException, csv.Error) as error:
        raise DataError(f"sources.{source.name}: {path}: cannot be read: {error}") from error


def _parquet(source: TableSource, path: str, file: BinaryIO) -> Iterator[tuple[list[str | None], list[str | None]]]:
    with pq.ParquetFile(file) as table:
        _need(source, path, table.schema_arrow.names)
        for batch in table.iter_batches(BATCH_ROWS, columns=list({source.url, source.caption})):
            yield _strings(source, path, batch, source.url), _strings(source, path, batch, source.caption)


def _strings(source: TableSource, path: str, batch: pa.RecordBatch, name: str) -> list[str | None]:
    column = batch.column(name)
    if pa.types.is_nested(column.type):
        raise InputError(f"sources.{source.name}: {path}: the column {name!r} holds {column.type}, not text")
    return [
        value.decode("utf-8", "replace") if isinstance(value, bytes) else None if value is None else str(value)
        for value in _plain(column).to_pylist()
    ]


def _plain(column: pa.Array) -> pa.Array:
    """Text as bytes: a file may hold what is not UTF-8 in a column that says it is."""
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        return column.cast(pa.large_binary())
    return column


def _unpacked(file: BinaryIO, packed: str | None) -> Any:
    if packed == "gzip":
        return gzip.GzipFile(fileobj=file)
    return pa.input_stream(file, compression=packed) if packed else file


def _lines(path: str, file: Any) -> Iterator[str]:
    # PyArrow's streams have no readline: io's buffer gives them one.
    buffered = file if hasattr(file, "peek") else io.BufferedReader(_Raw(file), 1 << 16)
    text = io.TextIOWrapper(buffered, "utf-8-sig", errors="replace", newline="")
    while line := text.readline(_LONGEST_LINE):
        if len(line) == _LONGEST_LINE:
            raise DataError(f"{path}: a line is longer than {_LONGEST_LINE:,} characters")
        yield line


class _Raw(io.RawIOBase):
    """A stream that only has `read`, as one that io's buffers accept."""

    def __init__(self, file: Any) -> None:
        self.file = file

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self.file.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


def _csv(source: TableSource, path: str, lines: Iterator[str], tabs: bool) -> Iterator[tuple[str | None, str | None]]:
    csv.field_size_limit(_LONGEST_LINE)
    rows = csv.reader((line.replace("\0", "") for line in lines), delimiter="\t" if tabs else ",")
    names = next(rows, [])
    _need(source, path, names)
    url, caption = names.index(source.url), names.index(source.caption)
    for row in rows:
        yield (row[url], row[caption]) if len(row) > max(url, caption) else (None, None)


def _jsonl(source: TableSource, path: str, lines: Iterator[str]) -> Iterator[tuple[str | None, str | None]]:
    names: set[str] = set()
    broken = rows = 0
    for line in lines:
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            broken += 1
            continue
        rows += 1
        if rows <= 1_000:  # the first rows say what there is; a key may be left out where it has no value
            names.update(row)
        if rows == 1_000:
            _need(source, path, sorted(names))
        yield _as_text(row.get(source.url)), _as_text(row.get(source.caption))
    if rows < 1_000:
        _need(source, path, sorted(names))
    if broken:
        log.warning("%s: %s: %d lines are not JSON objects and are left aside", source.name, path, broken)


def _as_text(value: Any) -> str | None:
    return value if isinstance(value, str) else str(value) if isinstance(value, int | float) else None


def _need(source: TableSource, path: str, names: list[str]) -> None:
    for option, name in (("url", source.url), ("caption", source.caption)):
        if name not in names:
            known = ", ".join(names[:20]) or "no columns"
            raise InputError(
                f"sources.{source.name}.{option}: {path} has no column {name!r}{nearest(name, names)} (it has {known})"
            )
