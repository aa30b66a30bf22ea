"""The files of a table, whatever they hold and however they are packed, as Arrow batches of the columns asked for.

A file has `columns(file)`, the schema that its first rows tell, and `batches(file, names)`. Columns of Parquet have
their own types; those of text formats are strings, whose schema holds the type that the first rows look like.
"""

import bz2
import csv
import gzip
import io
import logging
import lzma
import shutil
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any, TypeVar

import pyarrow as pa
import pyarrow.parquet as pq
from aiohttp import ClientError

from vlmdata.errors import DataError, InputError
from vlmdata.sources import BATCH_ROWS
from vlmdata.sources.columns import guess
from vlmdata.sources.files import find, name_of
from vlmdata.sources.urls import strip_signature

Row = TypeVar("Row")
log = logging.getLogger(__name__)

FORMATS = {
    ".parquet": "parquet",
    ".csv": "csv",
    ".tsv": "tsv",
    ".json": "json",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".txt": "list",
}
PACKED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
LONGEST = 8_000_000  # bytes of one row or value
MOST_COLUMNS = 10_000
FIRST_ROWS = 1_000  # these tell what there is
BATCH_BYTES = LONGEST  # of text, at which a batch ends whatever rows it has; one row more may be in it
_END = "\0"  # a line that no file has: its NULs are taken out


@dataclass(frozen=True)
class File:
    """One file. `header`: the columns of a CSV or TSV without names, `quotes` whether `"` quotes in it; `captions`: the
    file with the captions of a plain list."""

    source: str
    filesystem: Any
    path: str
    form: str
    packed: str | None
    header: tuple[str, ...] = ()
    quotes: bool = True
    captions: "File | None" = field(default=None)

    def __str__(self) -> str:
        return f"sources.{self.source}: {self.shown}"

    @property
    def shown(self) -> str:
        """The path without what gives access to it."""
        return strip_signature(self.path)[0]


def table_files(source: str, option: str, url: str) -> list[File]:
    """The files that a path, glob or fsspec URL means, sorted. Raises InputError."""
    where = f"sources.{source}.{option}"
    files = []
    for filesystem, path in find(url, where):
        form, packed = _form(path)
        if form is None:
            ends = f"{' '.join(FORMATS)}, then {' '.join(PACKED)} or nothing"
            raise InputError(f"{where}: {strip_signature(path)[0]}: what it holds is told by its end: {ends}")
        files.append(File(source, filesystem, path, form, packed))
    return files


def _form(path: str) -> tuple[str | None, str | None]:
    """(format, compression) by the name's end."""
    name = name_of(path)
    packed = next((codec for end, codec in PACKED.items() if name.endswith(end)), None)
    name = name.rpartition(".")[0] if packed else name
    return next((form for end, form in FORMATS.items() if name.endswith(end)), None), packed


@contextmanager
def reading(file: File) -> Iterator[ExitStack]:
    """What goes wrong with a file's bytes, as DataError that names it."""
    try:
        with ExitStack() as stack:
            yield stack
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, csv.Error, ClientError) as error:
        said = str(error).replace(file.path, file.shown)
        raise DataError(f"{file}: cannot be read: {said or type(error).__name__}") from error


def unpacked(file: File, stack: ExitStack) -> Any:
    """The file's bytes, decompressed as they are read."""
    raw = stack.enter_context(file.filesystem.open(file.path, "rb"))
    if file.packed == "gzip":
        return stack.enter_context(gzip.GzipFile(fileobj=raw))
    if file.packed == "bz2":
        return stack.enter_context(bz2.BZ2File(raw))
    if file.packed == "xz":
        return stack.enter_context(lzma.LZMAFile(raw))
    if file.packed == "zstd":
        # PyArrow's streams have no readline: io's buffer gives them one.
        return io.BufferedReader(_Raw(stack.enter_context(pa.input_stream(raw, compression="zstd"))), 1 << 16)
    return raw


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


def lines(file: File, stack: ExitStack) -> Iterator[str]:
    """The file's lines, with their ends. Raises DataError for one that does not end."""
    text = io.TextIOWrapper(unpacked(file, stack), "utf-8-sig", errors="replace", newline="")
    while line := text.readline(LONGEST):
        if len(line) == LONGEST:
            raise DataError(f"{file}: a line is longer than {LONGEST:,} characters")
        yield line


def batched(rows: Iterator[tuple[Row, int]]) -> Iterator[list[Row]]:
    """Rows, each with its size in characters, as lists that end at BATCH_ROWS rows or BATCH_BYTES."""
    held: list[Row] = []
    size = 0
    for row, its in rows:
        held.append(row)
        size += its
        if len(held) == BATCH_ROWS or size >= BATCH_BYTES:
            yield held
            held, size = [], 0
    if held:
        yield held


def first_of(rows: Iterator[tuple[Row, int]]) -> Iterator[Row]:
    """The first of rows that have their size with them: FIRST_ROWS, or fewer where these are BATCH_BYTES."""
    size = 0
    for row, its in islice(rows, FIRST_ROWS):
        yield row
        size += its
        if size >= BATCH_BYTES:
            return


def not_too_many(file: File, columns: int) -> None:
    """Raises DataError for more columns than a table has."""
    if columns > MOST_COLUMNS:
        raise DataError(f"{file}: more than {MOST_COLUMNS:,} columns: this is no table")


# Parquet


def parquet_columns(file: File) -> pa.Schema:
    with reading(file) as stack:
        return _parquet(file, stack).schema_arrow.remove_metadata()


def parquet_batches(file: File, names: list[str]) -> Iterator[pa.RecordBatch]:
    with reading(file) as stack:
        parquet = _parquet(file, stack)
        for batch in parquet.iter_batches(_rows_at_once(parquet, names), columns=names, use_threads=False):
            yield from sliced(batch)


def _rows_at_once(file: pq.ParquetFile, names: list[str]) -> int:
    """How many rows to decode together, by what a row of these columns has in the row group with the largest."""
    largest = 1
    for place in range(file.num_row_groups):
        group = file.metadata.row_group(place)
        columns = (group.column(column) for column in range(group.num_columns))
        size = sum(c.total_uncompressed_size for c in columns if c.path_in_schema.partition(".")[0] in names)
        largest = max(largest, size // max(1, group.num_rows))
    return max(1, min(BATCH_ROWS, BATCH_BYTES // largest))


def sliced(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    """The batch in halves until each has BATCH_BYTES at most, or one row."""
    if batch.num_rows <= 1 or batch.nbytes <= BATCH_BYTES:
        yield batch
        return
    half = batch.num_rows // 2
    yield from sliced(batch.slice(0, half))
    yield from sliced(batch.slice(half))


def _parquet(file: File, stack: ExitStack) -> pq.ParquetFile:
    if file.packed is None:
        raw = stack.enter_context(file.filesystem.open(file.path, "rb"))
    else:  # Parquet is read from its end: it is unpacked aside first
        raw = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
        shutil.copyfileobj(unpacked(file, stack), raw, 1 << 20)
    return stack.enter_context(pq.ParquetFile(raw, buffer_size=1 << 20, pre_buffer=False))


# CSV and TSV


def csv_columns(file: File) -> pa.Schema:
    with reading(file) as stack:
        names, rows = _named_rows(file, stack)
        not_too_many(file, len(names))
        first = list(first_of(rows))
    columns = [[row[place] if place < len(row) else None for row in first] for place in range(len(names))]
    return pa.schema(
        [(name, guess(pa.array(column, pa.string()))) for name, column in zip(names, columns, strict=True)]
    )


def csv_batches(file: File, names: list[str]) -> Iterator[pa.RecordBatch]:
    """Rows with too many fields keep the first ones; those that lack one that is asked for are left aside, and told.

    Read by the `csv` module: Arrow's reader is twice as fast and holds every row of an odd length until it meets
    another one.
    """
    short = 0
    with reading(file) as stack:
        header, rows = _named_rows(file, stack)
        places = [header.index(name) for name in names] if header else []
        for held in batched(rows):
            whole = [row for row in held if len(row) > max(places, default=0)]
            short += len(held) - len(whole)
            if whole:
                columns = [pa.array([row[place] for row in whole], pa.string()) for place in places]
                yield pa.RecordBatch.from_arrays(columns, names)
    if short:
        log.warning("%s: %d rows with too few fields are left aside", file, short)


def _named_rows(file: File, stack: ExitStack) -> tuple[list[str], Iterator[tuple[list[str], int]]]:
    """The names of the columns, and the rows below them."""
    rows = _fields(file, stack)
    first = next(rows, None)
    if first is None:
        return [], rows
    if not file.header or set(file.header) <= set(first[0]):  # the second: somebody has put the names on top
        return first[0], rows
    return list(file.header), chain([first], rows)


def _fields(file: File, stack: ExitStack) -> Iterator[tuple[list[str], int]]:
    """Each row's fields and how many characters it has; blank lines are no rows.

    Raises DataError for a row that does not end: what is behind a quote that is never closed would be lost in it.
    """
    csv.field_size_limit(LONGEST)
    size = 0

    def counted() -> Iterator[str]:
        nonlocal size
        for line in lines(file, stack):
            size += len(line)
            if size > LONGEST:
                raise DataError(f"{file}: a row is longer than {LONGEST:,} characters")
            yield line.replace("\0", "")
        yield _END

    delimiter = "," if file.form == "csv" else "\t"
    for row in csv.reader(counted(), delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if file.quotes else csv.QUOTE_NONE):
        if row == [_END]:
            return
        if row:
            yield row, size
        size = 0
    raise DataError(f"{file}: a quote in its last row is not closed: from there on the rows would be one")


# Plain lists


def list_columns(file: File) -> pa.Schema:
    """URL and caption. Raises InputError for a list of URLs without captions."""
    if file.captions is None:
        with reading(file) as stack:
            kinds = {"\t" in line for line in islice(lines(file, stack), FIRST_ROWS) if line.strip()}
        if kinds == {False}:
            raise InputError(
                f"{file} is a list of URLs alone, and a pair needs a caption: write `URL<TAB>caption` on each line, or "
                "name the file with a caption a line: `captions: captions.txt`"
            )
    return pa.schema([("url", pa.string()), ("caption", pa.string())])


def list_batches(file: File, names: list[str]) -> Iterator[pa.RecordBatch]:
    """`URL<TAB>caption` on each line; or a URL a line and its caption on the same line of `captions`."""
    with reading(file) as stack:
        urls = lines(file, stack)
        rows: Iterator[tuple[str, str]]
        if file.captions is None:
            rows = ((url, caption) for url, _, caption in (line.partition("\t") for line in urls) if url.strip())
        else:
            rows = _beside(file, urls, lines(file.captions, stack))
        for held in batched((row, len(row[0]) + len(row[1])) for row in rows):
            columns = [pa.array([text.replace("\0", "") for text in column]) for column in zip(*held, strict=True)]
            yield pa.RecordBatch.from_arrays(columns, ["url", "caption"]).select(names)


def _beside(file: File, urls: Iterator[str], captions: Iterator[str]) -> Iterator[tuple[str, str]]:
    for url in urls:
        caption = next(captions, None)
        if caption is None:
            raise DataError(f"{file} has more lines than {file.captions}")
        yield url, caption
    if next(captions, None) is not None:
        raise DataError(f"{file} has fewer lines than {file.captions}")
