"""Pairs from Common Crawl's WAT and WARC files, and from the WARC files of any other crawler."""

import gzip
import io
import logging
import os
import re
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import fsspec
import pyarrow as pa
from fsspec.utils import tokenize

from vlmdata.errors import DataError, InputError, MachineError
from vlmdata.recipe import CommonCrawlSource
from vlmdata.sources import BATCH_ROWS, DAMAGES, strip_signature, warc, wat
from vlmdata.sources.files import find, name_of
from vlmdata.sources.found import Found, batch

log = logging.getLogger(__name__)

VERSION = 2
_LISTINGS = (".paths.gz", ".paths")
_LARGEST_LISTING = 100_000_000  # bytes, unpacked; a month of Common Crawl has 90,000 lines of 140
_WEB = ("http://", "https://")
_WEB_IDENTITY = ("size", "ETag", "Content-MD5", "Digest", "Last-Modified")
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
        if name_of(path).endswith(_LISTINGS):
            matches = [line for listing in matches for line in _listed(source, listing)]
        found.update(matches)
    if not found:
        raise InputError(f"sources.{source.name}.paths: the listings name no file")
    return sorted(found)


def states(source: CommonCrawlSource) -> dict[str, str | None]:
    """The files that there are now; a local one with its size and time. What an archive on the web has published it
    does not change, so that there the name alone counts and not one request is made."""
    return {
        strip_signature(file)[0]: "listed" if file.startswith(_WEB) else identity(source, file)
        for file in files(source)
    }


def identity(source: CommonCrawlSource, file: str) -> str:
    """A hash of what the filesystem says of a file; of a web server, whom a request asks, its length, ETag, digests and
    Last-Modified. A server that says none of these, or the same of another file, is not seen through.

    Raises DataError where there is no such file, MachineError where nobody can say.
    """
    filesystem, path = _filesystem(source, file)
    shown = strip_signature(file)[0]
    try:
        if not file.startswith(_WEB):
            return filesystem.ukey(path)
        said = filesystem.info(path)  # its ukey is of the URL alone
        return tokenize(shown, [said.get(name) for name in _WEB_IDENTITY])
    except OSError as error:
        missing = isinstance(error, FileNotFoundError)
        if file.startswith(_WEB):  # there this error is every failure's
            missing = getattr(error.__cause__, "status", None) in (404, 410)
        if missing:
            raise DataError(f"sources.{source.name}: there is no file {shown!r}") from error
        why = _why(error, file)
        raise MachineError(f"sources.{source.name}: {shown}: cannot be reached: {why}") from error


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
        self.name, self.filesystem, self.path = name, filesystem, path

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
            raise MachineError(f"{self.where}: cannot be fetched: {_why(error, self.name)}") from error


def _why(error: Exception, file: str) -> str:
    """A failure in words; of a file on the web without the library's own, which repeat the URL with its signature."""
    if not file.startswith(_WEB):
        return str(error) or type(error).__name__
    cause = error.__cause__ or error
    status = getattr(cause, "status", None)
    return f"the server answered {status}" if status else type(cause).__name__


def _filesystem(source: CommonCrawlSource, path: str) -> tuple[Any, str]:
    try:
        return fsspec.core.url_to_fs(path)
    except (ImportError, ValueError) as error:
        raise InputError(f"sources.{source.name}.paths: {strip_signature(path)[0]!r}: {error}") from error


def _matches(source: CommonCrawlSource, pattern: str) -> list[str]:
    """The files that a path or glob of the recipe means, with their protocol."""
    found = find(pattern, f"sources.{source.name}.paths")
    return [path if "://" not in pattern else filesystem.unstrip_protocol(path) for filesystem, path in found]


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
            # A worker's working folder may be another one.
            base = source.base if "://" in source.base or "::" in source.base else os.path.abspath(source.base)
            yield f"{base.rstrip('/')}/{line}"
