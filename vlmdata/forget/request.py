"""What somebody asks to be forgotten, as it is typed or listed."""

import csv
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import fsspec

from vlmdata.download.forgotten import Entry, Forgotten, phash_of, url_entries
from vlmdata.download.optout import domain_form, url_form
from vlmdata.errors import InputError

NAMED = ("uid", "url", "domain", "sha256")
_MOST_PIXELS = 100_000_000
_HEX = {"uid": 32, "sha256": 64}


@dataclass
class Request:
    """Values by kind: uids and SHA-256s in lower-case hex, URLs in their `url_form`, domains in their `domain_form`.

    looks: perceptual hashes, of which those that differ in at most `distance` of 64 bits are the same picture's.
    """

    uid: set[str] = field(default_factory=set)
    url: set[str] = field(default_factory=set)
    domain: set[str] = field(default_factory=set)
    sha256: set[str] = field(default_factory=set)
    looks: set[int] = field(default_factory=set)
    distance: int = 4

    def __bool__(self) -> bool:
        return any((self.uid, self.url, self.domain, self.sha256, self.looks))

    def entries(self, forgotten: Forgotten) -> set[Entry]:
        """What is refused from now on, whether a pair matches it today or not."""
        named: set[Entry] = {
            (kind, forgotten.keyed(kind, value), None) for kind in NAMED for value in getattr(self, kind)
        }
        for form in self.url:
            named |= url_entries(forgotten, form)
        return named | {("phash", f"{look:016x}", self.distance) for look in self.looks}


def request(
    given: Iterable[tuple[str, str]], like: Iterable[Path] = (), lists: Iterable[str] = (), distance: int = 4
) -> Request:
    """given: (kind, value). Raises InputError for a value that is none of its kind; of lists with file and line."""
    asked = Request(distance=distance)
    for kind, text in given:
        try:
            _add(asked, kind, text.strip())
        except ValueError as error:
            raise InputError(f"--{kind} {text}: {error}") from error
    asked.looks |= {_look(path) for path in like}
    for name in lists:
        _read(asked, name)
    return asked


def _add(asked: Request, kind: str, text: str) -> None:
    """kind: '' where the text itself has to tell. Raises ValueError, which shows nothing of the text."""
    lower = text.lower().removeprefix("sha256:")
    kinds = [kind] if kind else [name for name, length in _HEX.items() if re.fullmatch(f"[0-9a-f]{{{length}}}", lower)]
    kind = kinds[0] if kinds else "url" if "/" in text else "domain"
    if kind in _HEX:
        if not re.fullmatch(f"[0-9a-f]{{{_HEX[kind]}}}", lower):
            raise ValueError(f"no {kind} ({_HEX[kind]} hex digits)")
        getattr(asked, kind).add(lower)
    elif kind == "url":
        if "/" not in text or re.search(r"[\r\n]", text):
            raise ValueError("no URL (https://example.org/a.jpg, or <source>:/<path> of a local file)")
        asked.url.add(url_form(text))
    else:
        domain = domain_form(text)
        if domain is None or "/" in text:
            raise ValueError("no URL, domain, SHA-256 or uid" if not kinds else "no domain (example.org)")
        asked.domain.add(domain)


def _read(asked: Request, path: str) -> None:
    """A list: an entry a line, or a CSV whose first line names columns; `#` begins a comment."""
    try:
        with fsspec.open(path, "rb") as file:
            text = file.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"--from {path}: not UTF-8; save the list as UTF-8") from error
    except (OSError, ValueError, ImportError) as error:
        raise InputError(f"--from {path}: cannot be read: {error}") from error
    columns: list[str] = []
    reader = csv.reader(io.StringIO(text), strict=True)
    try:
        for row in reader:
            if not "".join(row).strip() or row[0].lstrip().startswith("#"):
                continue
            names = [name.strip().lower() for name in row]
            if not columns:
                columns = names if set(names) & set(NAMED) else [""]
                if columns == names:
                    continue
            if columns == [""]:
                _add(asked, "", ",".join(row).strip())
                continue
            entries = [(kind, value.strip()) for kind, value in zip(columns, row, strict=False) if kind in NAMED]
            if not any(value for _, value in entries):
                raise ValueError("nothing in the columns that the first line names")
            for kind, value in entries:
                if value:
                    _add(asked, kind, value)
    except (ValueError, csv.Error) as error:
        raise InputError(f"--from {path}, line {reader.line_num}: {error}: nothing was forgotten; mend it") from error


def _look(path: Path) -> int:
    """The perceptual hash of an image file. Raises InputError where it tells nothing."""
    from vlmdata.dedup.perceptual import MIN_BITS
    from vlmdata.download.decode import to_jpeg
    from vlmdata.download.header import ImageError

    try:
        look = phash_of(to_jpeg(path.read_bytes(), 512, 95, _MOST_PIXELS).jpeg)
    except OSError as error:
        raise InputError(f"--like {path}: cannot be read: {error.strerror}") from error
    except ImageError as error:
        raise InputError(f"--like {path}: no image that can be read: {error}") from error
    if look.bit_count() < MIN_BITS:
        raise InputError(f"--like {path}: too flat to be told from other flat images; use --sha256 or --url")
    return look
