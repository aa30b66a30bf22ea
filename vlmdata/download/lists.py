"""Lists that the user supplies, of what must not be fetched or stored: read, hashed and sorted into compact files.

An entry becomes 8 bytes (a PDQ hash 32), so that a list of 100 million lines is a file of 0.8 GB, which workers map
into memory and search by bisection. A pair meets an entry that is not its own with a probability of 5e-12 in such a
list; then it is refused without need. The lists' texts are not kept in the dataset.
"""

import csv
import gzip
import hashlib
import io
import re
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np
from aiohttp import ClientError

from vlmdata.dataset import Dataset
from vlmdata.errors import InputError
from vlmdata.parts import make_key
from vlmdata.sources import files
from vlmdata.sources.urls import strip_signature

VERSION = 2
_AT_ONCE = 1 << 20  # entries that are hashed before they go to the disk
_LONGEST_LINE = 16_384  # characters
_HEX = {"md5": 32, "sha1": 40, "sha256": 64, "pdq": 64, "phash": 16}  # digits
_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_HEADER = "the first line has to name the columns (url, domain, sha256; of known images md5, sha1, pdq, phash)"
File = tuple[Any, str]
Parse = Callable[[str, str], list[tuple[str, bytes]]]


class Lists:
    """Sorted entries by kind: uint64 [n], for `pdq` uint64 [n, 4]."""

    def __init__(self, hashes: Mapping[str, np.ndarray] | None = None) -> None:
        self._hashes = {kind: array for kind, array in (hashes or {}).items() if len(array)}

    @property
    def kinds(self) -> frozenset[str]:
        return frozenset(self._hashes)

    def all(self, kind: str) -> np.ndarray:
        return self._hashes[kind]

    def hold(self, kind: str, entries: Sequence[int] | np.ndarray) -> np.ndarray:
        """bool [n]: which of these hashes (uint64 [n]) stand in the lists."""
        wanted = np.asarray(entries, np.uint64)
        known = self._hashes.get(kind)
        if known is None or not len(wanted):
            return np.zeros(len(wanted), np.bool_)
        places = np.minimum(np.searchsorted(known, wanted), len(known) - 1)
        return known[places] == wanted


def find(patterns: Sequence[str], where: str) -> list[File]:
    """The files of paths and globs, any fsspec URL. Raises InputError: a list that is not there would be obeyed by
    nobody."""
    return [file for pattern in patterns for file in files.find(pattern, where)]


def digest(found: Sequence[File]) -> str:
    """What the files hold, whatever they are called and in whatever order; nothing for no file."""
    digests = set()
    for filesystem, path in found:
        with _opened(filesystem, path) as file:
            digests.add(hashlib.file_digest(file, "sha256").hexdigest())
    return hashlib.sha256("".join(sorted(digests)).encode()).hexdigest() if digests else ""


def prepare(dataset: Dataset, name: str, found: Sequence[File], parse: Parse, content: str) -> str:
    """Make the compact files of some lists, once for each content, and return their folder in the dataset.

    name: `optout` or `known`. parse: (kind, text) -> entries; see `entries`. content: the `digest` of the files.
    Files of an earlier content go. Raises InputError for a line that is no entry.
    """
    folder = f"work_lists/{name}/{make_key(name, VERSION, content, [])}"
    if dataset.exists(f"{folder}/done.json"):
        return folder
    dataset.remove(f"work_lists/{name}")
    with dataset.spool() as spool:
        counts = _write(found, parse, spool)
        for kind in counts:
            dataset.commit(spool / f"{kind}.bin", f"{folder}/{kind}.bin")
    dataset.write_json(f"{folder}/done.json", counts)
    return folder


def load(dataset: str, folder: str) -> Lists:
    """The lists that `prepare` has made; mapped and not read where the disk is local."""
    return _load(dataset, folder) if folder else Lists()


@lru_cache(4)
def _load(url: str, folder: str) -> Lists:
    dataset = Dataset(url)
    found = {}
    for kind, count in dataset.read_json(f"{folder}/done.json").items():
        path = f"{folder}/{kind}.bin"
        if not count:
            continue
        if dataset.local:
            array: np.ndarray = np.memmap(dataset.path(path), "<u8", "r")
        else:
            array = np.frombuffer(dataset.read_bytes(path), "<u8")
        found[kind] = array.reshape(-1, 4) if kind == "pdq" else array
    return Lists(found)


def hex_entry(kind: str, text: str) -> bytes | None:
    """A hash as its entry: all bytes of a perceptual one, the first 8 of another; None for what is none."""
    if len(text) != _HEX[kind] or not re.fullmatch(r"[0-9a-f]+", text):
        return None
    return bytes.fromhex(text if kind == "pdq" else text[:16])


def _write(found: Sequence[File], parse: Parse, spool: Path) -> dict[str, int]:
    """Hash every entry, then sort each kind and drop what is there twice; kind -> how many."""
    raw: dict[str, IO[bytes]] = {}
    try:
        for filesystem, path in found:
            held: dict[str, list[bytes]] = {}
            for count, (kind, entry) in enumerate(_entries(filesystem, path, parse)):
                held.setdefault(kind, []).append(entry)
                if count % _AT_ONCE == _AT_ONCE - 1:
                    _spill(held, raw, spool)
            _spill(held, raw, spool)
    finally:
        for file in raw.values():
            file.close()
    counts = {}
    for kind in sorted(raw):
        entries = np.fromfile(spool / f"{kind}.raw", ">u8").astype("<u8")
        if kind == "pdq":
            distinct = np.unique(entries.reshape(-1, 4), axis=0)
        else:
            entries.sort()
            distinct = entries[np.append(True, entries[1:] != entries[:-1])]
        (spool / f"{kind}.bin").write_bytes(distinct.data)
        counts[kind] = len(distinct)
    return counts


def _spill(held: dict[str, list[bytes]], raw: dict[str, IO[bytes]], spool: Path) -> None:
    for kind, entries in held.items():
        if kind not in raw:
            raw[kind] = (spool / f"{kind}.raw").open("wb")
        raw[kind].write(b"".join(entries))
    held.clear()


def _entries(filesystem: Any, path: str, parse: Parse) -> Iterator[tuple[str, bytes]]:
    """The entries of one file: a line each, or in the columns that its first line names. `#` begins a comment.

    Raises InputError for every line that would be obeyed in part or not at all.
    """
    shown = strip_signature(path)[0]
    number = 0
    columns: dict[int, str] = {}
    width = 1
    with _opened(filesystem, path) as file, _text(path, file) as lines:
        try:
            for number, row in _rows(path, lines):
                while row and not row[-1].strip():
                    row.pop()
                if not row or row[0].lstrip().startswith("#"):
                    continue
                if not columns:
                    columns, width = _columns(row), len(row)
                    if columns:
                        continue
                    columns, width = {0: ""}, 1
                if len(row) > width:
                    needed = "quote a value that holds the delimiter" if columns != {0: ""} else _HEADER
                    raise InputError(f"{shown}, line {number}: {len(row)} values, not {width}: {needed}")
                named = [(kind, row[place]) for place, kind in columns.items() if place < len(row)]
                if not any(text.strip() for _, text in named):
                    raise InputError(f"{shown}, line {number}: nothing stands in the columns {_listed(columns)}")
                for kind, text in named:
                    yield from _parsed(shown, number, kind, text, parse)
        except UnicodeDecodeError as error:
            raise InputError(f"{shown}: after line {number}: not UTF-8; save the list as UTF-8") from error
        except (csv.Error, EOFError, zlib.error, OSError, ClientError) as error:
            raise InputError(f"{shown}: after line {number}: cannot be read: {_said(error, path)}") from error


def _rows(path: str, lines: Iterator[str]) -> Iterator[tuple[int, list[str]]]:
    """(number of its last line, fields) of each row; a line is one field, but in a CSV, a TSV, and below a first line
    that names columns."""
    delimiter = _DELIMITERS.get(PurePosixPath(files.name_of(path).removesuffix(".gz")).suffix)
    number = 1
    for first in lines:
        if first.strip() and not first.lstrip().startswith("#"):
            break
        number += 1
    else:
        return
    rest = chain([first], lines)
    if delimiter is None and not _columns(first.split(",")):
        yield from ((place, [line]) for place, line in enumerate(rest, number))
        return
    # strict: a quote that is not closed would swallow what is behind it
    reader = csv.reader(rest, delimiter=delimiter or ",", strict=True)
    for row in reader:
        yield number - 1 + reader.line_num, row


def _columns(row: Sequence[str]) -> dict[int, str]:
    """Place -> kind of the columns that a first line names; nothing where it names none."""
    names = [name.strip().strip('"').lower() for name in row]
    return {place: name for place, name in enumerate(names) if name in {"url", "domain", *_HEX}}


def _listed(columns: Mapping[int, str]) -> str:
    return ", ".join(dict.fromkeys(columns.values()))


def _parsed(shown: str, number: int, kind: str, text: str, parse: Parse) -> list[tuple[str, bytes]]:
    text = text.strip()
    if not text:
        return []
    try:
        if len(text) > _LONGEST_LINE:
            raise ValueError(f"more than {_LONGEST_LINE} characters")
        return parse(kind, text)
    except ValueError as error:
        raise InputError(f"{shown}, line {number}: {error}: a list is taken as a whole; mend the line") from error


def _opened(filesystem: Any, path: str) -> Any:
    try:
        return filesystem.open(path, "rb")
    except (OSError, ClientError) as error:
        raise InputError(f"{strip_signature(path)[0]}: cannot be read: {_said(error, path)}") from error


def _said(error: Exception, path: str) -> str:
    said = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return said.replace(path, strip_signature(path)[0])


def _text(path: str, file: IO[bytes]) -> IO[str]:
    plain: Any = gzip.GzipFile(fileobj=file) if files.name_of(path).endswith(".gz") else file
    return io.TextIOWrapper(plain, "utf-8-sig", newline="")
