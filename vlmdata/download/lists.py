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
from pathlib import Path
from typing import IO, Any

import fsspec
import numpy as np

from vlmdata.dataset import Dataset, make_key
from vlmdata.errors import InputError

VERSION = 1
_AT_ONCE = 1 << 20  # entries that are hashed before they go to the disk
_LONGEST_LINE = 16_384  # characters
_HEX = {"md5": 32, "sha1": 40, "sha256": 64, "pdq": 64, "phash": 16}  # digits
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
    files: list[File] = []
    for pattern in patterns:
        try:
            filesystem, path = fsspec.core.url_to_fs(pattern)
            paths = sorted(p for p in filesystem.glob(path) if not filesystem.isdir(p))
            if not paths and filesystem.exists(path) and not filesystem.isdir(path):
                paths = [path]  # a file whose name has a glob's signs in it
        except (ImportError, ValueError, OSError) as error:
            raise InputError(f"{where}: {pattern!r} cannot be reached: {error}") from error
        if not paths:
            raise InputError(f"{where}: {pattern!r} matches no file (for a folder, write folder/*.csv)")
        files += [(filesystem, path) for path in paths]
    return files


def digest(files: Sequence[File]) -> str:
    """What the files hold, whatever they are called and in whatever order; nothing for no file."""
    found = set()
    for filesystem, path in files:
        with _opened(filesystem, path) as file:
            found.add(hashlib.file_digest(file, "sha256").hexdigest())
    return hashlib.sha256("".join(sorted(found)).encode()).hexdigest() if found else ""


def prepare(dataset: Dataset, name: str, files: Sequence[File], parse: Parse, content: str) -> str:
    """Make the compact files of some lists, once for each content, and return their folder in the dataset.

    name: `optout` or `known`. parse: (kind, text) -> entries; see `entries`. content: the `digest` of the files.
    Files of an earlier content go. Raises InputError for a line that is no entry.
    """
    folder = f"work_lists/{name}/{make_key(name, VERSION, content, [])}"
    if dataset.exists(f"{folder}/done.json"):
        return folder
    dataset.remove(f"work_lists/{name}")
    with dataset.spool() as spool:
        counts = _write(files, parse, spool)
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


def _write(files: Sequence[File], parse: Parse, spool: Path) -> dict[str, int]:
    """Hash every entry, then sort each kind and drop what is there twice; kind -> how many."""
    raw: dict[str, IO[bytes]] = {}
    try:
        for filesystem, path in files:
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
        distinct.tofile(spool / f"{kind}.bin")
        counts[kind] = len(distinct)
    return counts


def _spill(held: dict[str, list[bytes]], raw: dict[str, IO[bytes]], spool: Path) -> None:
    for kind, entries in held.items():
        if kind not in raw:
            raw[kind] = (spool / f"{kind}.raw").open("wb")
        raw[kind].write(b"".join(entries))
    held.clear()


def _entries(filesystem: Any, path: str, parse: Parse) -> Iterator[tuple[str, bytes]]:
    """The entries of one file: a line each, or in the columns that its first line names. `#` begins a comment."""
    with _opened(filesystem, path) as file, _text(path, file) as lines:
        number = 0
        try:
            first = next(lines, "")
            header = _header(first, path)
            if header is None:
                for number, line in enumerate(_chain(first, lines), 1):
                    yield from _parsed(path, number, "", line, parse)
                return
            columns, delimiter = header
            rows = csv.reader(lines, delimiter=delimiter)
            for row in rows:
                number = rows.line_num + 1
                if row and row[0].lstrip().startswith("#"):
                    continue
                for place, kind in columns.items():
                    if place < len(row):
                        yield from _parsed(path, number, kind, row[place], parse)
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: after line {number}: not UTF-8; save the list as UTF-8") from error
        except (csv.Error, EOFError, zlib.error, OSError) as error:
            raise InputError(f"{path}: after line {number}: cannot be read: {error}") from error


def _parsed(path: str, number: int, kind: str, text: str, parse: Parse) -> list[tuple[str, bytes]]:
    text = text.strip()
    if not text or (not kind and text.startswith("#")):
        return []
    try:
        if len(text) > _LONGEST_LINE:
            raise ValueError(f"more than {_LONGEST_LINE} characters")
        return parse(kind, text)
    except ValueError as error:
        raise InputError(f"{path}, line {number}: {error}: a list is taken as a whole; mend the line") from error


def _header(line: str, path: str) -> tuple[dict[int, str], str] | None:
    """Place -> kind of the columns that the first line names, and the delimiter; None where it names none."""
    delimiter = "\t" if re.search(r"\.tsv(\.gz)?$", path, re.IGNORECASE) else ","
    names = [name.strip().strip('"').lower() for name in line.split(delimiter)]
    columns = {place: name for place, name in enumerate(names) if name in {"url", "domain", *_HEX}}
    return (columns, delimiter) if columns else None


def _chain(first: str, lines: Iterator[str]) -> Iterator[str]:
    yield first
    yield from lines


def _opened(filesystem: Any, path: str) -> Any:
    try:
        return filesystem.open(path, "rb")
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _text(path: str, file: IO[bytes]) -> IO[str]:
    plain: Any = gzip.GzipFile(fileobj=file) if path.lower().endswith(".gz") else file
    return io.TextIOWrapper(plain, "utf-8-sig", newline="")
