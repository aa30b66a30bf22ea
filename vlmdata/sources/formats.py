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
from itertools import islice
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from vlmdata.errors import DataError, InputError
from vlmdata.sources import BATCH_ROWS
from vlmdata.sources.columns import guess

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
FIRST_ROWS = 1_000  # these tell what there is
_HELD_ROWS = 100_000


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
        return f"sources.{self.source}: {self.path}"


def find(source: str, option: str, url: str) -> list[File]:
    """The files that a path, glob or fsspec URL means, sorted. Raises InputError."""
    where = f"sources.{source}.{option}"
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        paths = sorted(p for p in filesystem.glob(path) if not filesystem.isdir(p))
        if not paths and filesystem.exists(path):
            paths = [] if filesystem.isdir(path) else [path]  # a file whose name has a glob's signs in it
    except (ImportError, ValueError) as error:
        raise InputError(f"{where}: {url!r}: {error}") from error
    except OSError as error:
        raise InputError(f"{where}: {url!r} cannot be reached: {error}") from error
    if not paths:
        raise InputError(f"{where}: {url!r} matches no file (for a folder, write folder/*.parquet)")
    files = []
    for path in paths:
        form, packed = _form(path)
        if form is None:
            ends = f"{' '.join(FORMATS)}, then {' '.join(PACKED)} or nothing"
            raise InputError(f"{where}: {path}: what it holds is told by its end: {ends}")
        files.append(File(source, filesystem, path, form, packed))
    return files


def _form(path: str) -> tuple[str | None, str | None]:
    """(format, compression) by the name's end."""
    name = path.lower()
    packed = next((codec for end, codec in PACKED.items() if name.endswith(end)), None)
    name = name.rpartition(".")[0] if packed else name
    return next((form for end, form in FORMATS.items() if name.endswith(end)), None), packed


@contextmanager
def reading(file: File) -> Iterator[ExitStack]:
    """What goes wrong with a file's bytes, as DataError that names it."""
    try:
        with ExitStack() as stack:
            yield stack
    except (OSError, EOFError, zlib.error, lzma.LZMAError, pa.ArrowException, csv.Error) as error:
        raise DataError(f"{file}: cannot be read: {error}") from error


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


class Text(io.RawIOBase):
    """A stream's bytes as UTF-8 without NUL or a byte-order mark; what is none is replaced by U+FFFD."""

    def __init__(self, file: Any) -> None:
        self.decoder = io.TextIOWrapper(file, "utf-8-sig", errors="replace", newline="")
        self.rest = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self.rest:
            text = self.decoder.read(1 << 18)
            if not text:
                return 0
            self.rest = text.encode().replace(b"\0", b"")
        data, self.rest = self.rest[: len(buffer)], self.rest[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)


def lines(file: File, stack: ExitStack) -> Iterator[str]:
    """The file's lines, with their ends. Raises DataError for one that does not end."""
    text = io.TextIOWrapper(unpacked(file, stack), "utf-8-sig", errors="replace", newline="")
    while line := text.readline(LONGEST):
        if len(line) == LONGEST:
            raise DataError(f"{file}: a line is longer than {LONGEST:,} characters")
        yield line


# Parquet


def parquet_columns(file: File) -> pa.Schema:
    with reading(file) as stack:
        return _parquet(file, stack).schema_arrow.remove_metadata()


def parquet_batches(file: File, names: list[str]) -> Iterator[pa.RecordBatch]:
    with reading(file) as stack:
        yield from _parquet(file, stack).iter_batches(BATCH_ROWS, columns=names, use_threads=False)


def _parquet(file: File, stack: ExitStack) -> pq.ParquetFile:
    if file.packed is None:
        raw = stack.enter_context(file.filesystem.open(file.path, "rb"))
    else:  # Parquet is read from its end: it is unpacked aside first
        raw = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115 - the stack closes it
        shutil.copyfileobj(unpacked(file, stack), raw, 1 << 20)
    return stack.enter_context(pq.ParquetFile(raw, buffer_size=1 << 20, pre_buffer=False))


# CSV and TSV


def csv_columns(file: File) -> pa.Schema:
    names, _ = _header(file)
    return told_by_first_rows(csv_batches(file, names), names)


def csv_batches(file: File, names: list[str]) -> Iterator[pa.RecordBatch]:
    """Rows with too many fields keep the first ones; those that lack one that is asked for are left aside, and told."""
    header, skip = _header(file)
    if not header:
        return
    places = [header.index(name) for name in names]
    odd: list[str] = []
    short = 0

    def hold(row: Any) -> str:
        nonlocal short
        if len(odd) < _HELD_ROWS:
            odd.append(row.text)
        else:
            short += 1
        return "skip"

    delimiter = "," if file.form == "csv" else "\t"
    with reading(file) as stack:
        reader = pacsv.open_csv(
            pa.PythonFile(Text(unpacked(file, stack)), "r"),
            pacsv.ReadOptions(
                use_threads=False,
                block_size=LONGEST,
                column_names=[str(place) for place in range(len(header))],
                skip_rows_after_names=skip,
            ),
            pacsv.ParseOptions(
                delimiter=delimiter,
                quote_char='"' if file.quotes else False,
                newlines_in_values=file.quotes,
                invalid_row_handler=hold,
            ),
            pacsv.ConvertOptions(
                column_types={str(place): pa.string() for place in places},
                include_columns=[str(place) for place in places],
            ),
        )
        for block in reader:
            for start in range(0, block.num_rows, BATCH_ROWS):
                batch = block.slice(start, BATCH_ROWS)
                yield pa.RecordBatch.from_arrays(batch.columns, names)
            found, lacking = _first_fields(odd, delimiter, file.quotes, places, names)
            short += lacking
            yield from found
        found, lacking = _first_fields(odd, delimiter, file.quotes, places, names)
        short += lacking
        yield from found
    if short:
        log.warning("%s: %d rows with too few fields are left aside", file, short)


def _first_fields(
    odd: list[str], delimiter: str, quotes: bool, places: list[int], names: list[str]
) -> tuple[list[pa.RecordBatch], int]:
    """Rows whose number of fields is not the header's: those that have what is asked for, and how many have not."""
    rows = list(_fields(odd, delimiter, quotes))
    odd.clear()
    whole = [[row[place] for place in places] for row in rows if len(row) > max(places, default=0)]
    batches = []
    for start in range(0, len(whole), BATCH_ROWS):
        columns = zip(*whole[start : start + BATCH_ROWS], strict=True)
        batches.append(pa.RecordBatch.from_arrays([pa.array(column, pa.string()) for column in columns], names))
    return batches, len(rows) - len(whole)


def _header(file: File) -> tuple[list[str], int]:
    """The names of the columns, and how many rows at the beginning hold them."""
    csv.field_size_limit(LONGEST)
    with reading(file) as stack:
        head = (line.replace("\0", "") for line in lines(file, stack))
        first = next(_fields(head, "," if file.form == "csv" else "\t", file.quotes), [])
    if not file.header:
        return first, 1
    if set(file.header) <= set(first):  # somebody has put the names on top
        return first, 1
    return list(file.header) if first else [], 0


def _fields(text: Any, delimiter: str, quotes: bool) -> Iterator[list[str]]:
    return csv.reader(text, delimiter=delimiter, quoting=csv.QUOTE_MINIMAL if quotes else csv.QUOTE_NONE)


# Plain lists


def list_columns(file: File) -> pa.Schema:
    """URL and caption. Raises InputError for a list of URLs without captions."""
    if file.captions is None:
        with reading(file) as stack:
            first = [line for line in islice(lines(file, stack), FIRST_ROWS) if line.strip()]
        if first and not any("\t" in line for line in first):
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
        while held := list(islice(rows, BATCH_ROWS)):
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


def told_by_first_rows(batches: Iterator[pa.RecordBatch], names: list[str]) -> pa.Schema:
    """The schema of a text format: the types that its first rows look like."""
    first = next(batches, None)
    kinds = [guess(first.column(place).slice(0, FIRST_ROWS)) if first else pa.string() for place in range(len(names))]
    return pa.schema(list(zip(names, kinds, strict=True)))
