"""Pairs from Common Crawl's WAT and WARC files, and from the WARC files of any other crawler."""

import gzip
import io
import logging
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import fsspec
import pyarrow as pa

from vlmdata.errors import DataError, InputError, MachineError
from vlmdata.recipe import CommonCrawlSource
from vlmdata.sources import BATCH_ROWS, DAMAGES, strip_signature, warc, wat
from vlmdata.sources.found import Found, batch

log = logging.getLogger(__name__)

VERSION = 2
_LISTINGS = (".paths.gz", ".paths")
_LARGEST_LISTING = 100_000_000  # bytes, unpacked; a month of Common Crawl has 90,000 lines of 140
_REMOTE = re.compile(r"(?:https?|s3a?|gc?s|az|abfs|hdfs|memory)://")


def check(source: CommonCrawlSource) -> None:
    """Refuse paths that match nothing, and listings that cannot be read. Raises InputError."""
    first = files(source)[0]
    filesystem, path = _filesystem(source, first)
    if not filesystem.exists(path):
        raise InputError(f"sources.{source.name}.paths: there is no file {strip_signature(first)[0]!r}")


def files(source: CommonCrawlSource) -> list[str]:
    """Every WAT or WARC file of the source once, sorted: paths and fsspec URLs. Raises InputError."""
    found: set[str] = set()
    for path in source.paths:
        matches = _matches(source, path)
        if path.lower().endswith(_LISTINGS):
            matches = [line for listing in matches for line in _listed(source, listing)]
        found.update(matches)
    if not found:
        raise InputError(f"sources.{source.name}.paths: the listings name no file")
    return sorted(found)


def identity(source: CommonCrawlSource, file: str) -> str:
    """A hash that changes when the file does: of its size and time, or of what its server says of them."""
    filesystem, path = _filesystem(source, file)
    try:
        return filesystem.ukey(path)
    except FileNotFoundError as error:
        raise DataError(f"sources.{source.name}: there is no file {strip_signature(file)[0]!r}") from error
    except OSError as error:
        raise MachineError(f"sources.{source.name}: {strip_signature(file)[0]}: cannot be reached: {error}") from error


def read_file(source: CommonCrawlSource, file: str, counts: Counter[str]) -> Iterator[pa.RecordBatch]:
    """The rows of one file in the schema ROWS, in batches of some 5,000, in the order of the file.

    counts: takes how many pages were read, and how often what was passed over; damage ends neither a file nor a run.
    Raises MachineError when the file cannot be fetched.
    """
    filesystem, path = _filesystem(source, file)
    reader = warc if source.format == "warc" else wat
    held: list[Found] = []
    rows = 0
    with _Fetched(source, file, filesystem, path) as fetched:
        for page in reader.pages(fetched, source.agent, counts):
            if page.images:
                held.append(page)
                rows += len(page.images)
            if rows >= BATCH_ROWS:
                yield batch(source.name, held)
                held, rows = [], 0
        if held:
            yield batch(source.name, held)
    if damages := [f"{what}: {counts[what]:,}" for what in DAMAGES if counts[what]]:
        log.warning(
            "%s: %s: %s; records read: %d", source.name, strip_signature(file)[0], ", ".join(damages), counts["records"]
        )


def report(source: CommonCrawlSource, counts: Counter[str]) -> None:
    """Tell what all files together held. Raises DataError when there was not one page to read."""
    if not counts["pages"]:
        said = "; ".join(f"{what}: {count:,}" for what, count in sorted(counts.items()) if count) or "no record"
        raise DataError(
            f"sources.{source.name}: no page in its {source.format.upper()} files ({said}); is `format` right?"
        )
    for what, count in sorted(counts.items()):
        level = logging.WARNING if what in DAMAGES or "left out" in what else logging.INFO
        log.log(level, "%s: %s: %s", source.name, what, f"{count:,}")


class _Fetched:
    """A file of any filesystem, whose failures are told from damage in what it holds."""

    def __init__(self, source: CommonCrawlSource, name: str, filesystem: Any, path: str) -> None:
        self.where = f"sources.{source.name}: {strip_signature(name)[0]}"
        self.filesystem, self.path = filesystem, path

    def __enter__(self) -> Any:
        self.file = self._told(self.filesystem.open, self.path, "rb")
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def read(self, size: int = -1) -> bytes:
        return self._told(self.file.read, size)

    def seek(self, offset: int, whence: int = 0) -> int:
        return self._told(self.file.seek, offset, whence)

    def tell(self) -> int:
        return self.file.tell()

    def seekable(self) -> bool:
        return self.file.seekable()

    def _told(self, work: Any, *arguments: Any) -> Any:
        try:
            return work(*arguments)
        except Exception as error:  # every filesystem has errors of its own
            raise MachineError(f"{self.where}: cannot be fetched: {error or type(error).__name__}") from error


def _filesystem(source: CommonCrawlSource, path: str) -> tuple[Any, str]:
    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise InputError(f"sources.{source.name}.paths: {strip_signature(path)[0]!r}: {error}") from error


def _matches(source: CommonCrawlSource, pattern: str) -> list[str]:
    """The files that a path or glob of the recipe means, with their protocol."""
    filesystem, path = _filesystem(source, pattern)
    shown = strip_signature(pattern)[0]
    if pattern.startswith(("http://", "https://")):
        return [pattern]  # a web server lists nothing; `?` begins a query there
    try:
        matches = [match for match in filesystem.glob(path) if not filesystem.isdir(match)]
        if not matches and filesystem.exists(path) and not filesystem.isdir(path):
            matches = [path]  # a file whose name has a glob's signs in it
    except OSError as error:
        raise InputError(f"sources.{source.name}.paths: {shown!r} cannot be reached: {error}") from error
    if not matches:
        raise InputError(
            f"sources.{source.name}.paths: {shown!r} matches no file (for a folder, write folder/*.warc.gz)"
        )
    return matches if "://" not in pattern else [filesystem.unstrip_protocol(match) for match in matches]


def _listed(source: CommonCrawlSource, listing: str) -> Iterator[str]:
    """The files that a `wat.paths.gz` names, behind `base` where they are relative."""
    where = f"sources.{source.name}: {strip_signature(listing)[0]}"
    filesystem, path = _filesystem(source, listing)
    try:
        data = filesystem.cat_file(path)
        if data[:2] == b"\x1f\x8b":
            with gzip.GzipFile(fileobj=io.BytesIO(data)) as packed:
                data = packed.read(_LARGEST_LISTING + 1)
        if len(data) > _LARGEST_LISTING:
            raise ValueError("it is larger than 100 MB")
        lines = data.decode("utf-8").splitlines()
    except (OSError, EOFError, ValueError, zlib.error) as error:
        raise InputError(f"{where}: the listing cannot be read: {error}") from error
    for line in filter(None, map(str.strip, lines)):
        if _REMOTE.match(line):
            yield line
        elif "://" in line or "::" in line or ".." in line.split("/") or line.startswith("/"):
            raise InputError(f"{where}: the listing names {strip_signature(line)[0]!r}, which is no path below `base`")
        elif not source.base:
            raise InputError(f"{where}: its paths are relative: set `base` (https://data.commoncrawl.org/, a folder)")
        else:
            yield f"{source.base.rstrip('/')}/{line}"
