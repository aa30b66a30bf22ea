"""Images that a source already holds: where their bytes are, or what came of them, written in `fetch_url`.

`<source>:/<percent-encoded path>#offset=1536&length=8123&sha256=…&original=640x480` is a stretch of a file below the
source's folder (a tar's member; without offset the whole file), with what the source knows of the image that was
received once. `#status=4xx&error=HTTP+Error+404` is a download that the source has seen fail.
Only rows of that very source can name its files: a list of URLs from a stranger cannot.
"""

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from urllib.parse import parse_qs, quote_from_bytes, urlencode

import pyarrow as pa

from vlmdata.download import header

SAFE = "/!$&'()*+,;=:@-._~"  # in the path of a local URL, beside letters and digits
_LOCAL = re.compile(r"[a-z][a-z0-9_]*:/(?!/)")
_NUMBER = re.compile(r"\d{1,18}")
_SIZE = re.compile(r"(\d{1,9})x(\d{1,9})")


@dataclass(frozen=True)
class Stored:
    """offset: in the file, None for a whole file. sha256: of the bytes received once. original: (width, height) then.
    exif_orientation, exif_date: what those bytes noted (see `header.Facts`).
    status: what became of a failed download, with `error` in words; fetch_url: the signed URL that it was asked at."""

    offset: int | None = None
    length: int = 0
    sha256: str | None = None
    original: tuple[int, int] | None = None
    status: str = "success"
    error: str | None = None
    fetch_url: str | None = None
    exif_orientation: int | None = None
    exif_date: str | None = None


def is_local(url: str) -> bool:
    """Whether a URL is none of the web but a name below a source's folder."""
    return _LOCAL.match(url) is not None


def local_url(source: str, path: str) -> str:
    """The URL of a file below a source's folder."""
    return f"{source}:/{quote_from_bytes(os.fsencode(path), safe=SAFE)}"


def stored_url(source: str, path: str, stored: Stored) -> str:
    """What stands in `fetch_url` for an image that is stored in the file `path` below the source's folder."""
    values: dict[str, object] = {}
    if stored.offset is not None:
        values |= {"offset": stored.offset, "length": stored.length}
    if stored.original:
        values["original"] = "{}x{}".format(*stored.original)
    if stored.status != "success":
        values |= {"status": stored.status, "error": stored.error or stored.status}
    values |= {"orientation": stored.exif_orientation} if stored.exif_orientation else {}
    values |= {"date": stored.exif_date} if stored.exif_date else {}
    values |= {"sha256": stored.sha256} if stored.sha256 else {}
    values |= {"url": stored.fetch_url} if stored.fetch_url else {}
    return f"{local_url(source, path)}#{urlencode(values)}"


def parse(fetch_url: str) -> Stored:
    """Raises ValueError for what `stored_url` has not made."""
    values = {key: value for key, (value, *_) in parse_qs(fetch_url.partition("#")[2]).items()}
    size = _SIZE.fullmatch(values.get("original", ""))
    offset, length = values.get("offset"), values.get("length", "0")
    if not all(_NUMBER.fullmatch(number) for number in (offset or "0", length)):
        raise ValueError(f"{fetch_url!r} does not say where an image is stored")
    return Stored(
        None if offset is None else int(offset),
        int(length),
        values.get("sha256"),
        (int(size[1]), int(size[2])) if size else None,
        values.get("status", "success"),
        values.get("error"),
        values.get("url"),
        header.orientation(int(turn)) if _NUMBER.fullmatch(turn := values.get("orientation", "")) else None,
        header.exif_date(values.get("date")),
    )


def find(source: str, fetch_url: str | None, roots: Mapping[str, str]) -> Stored | None:
    """What a row's `fetch_url` says of an image that the row's own source holds; None for any other row."""
    if not fetch_url or "#" not in fetch_url or not fetch_url.startswith(f"{source}:/") or source not in roots:
        return None
    return parse(fetch_url)


def forget_failures(pairs: pa.Table) -> pa.Table:
    """`pairs` whose failed downloads can be tried again: their `fetch_url` is the signed URL, or null."""
    urls = pairs["fetch_url"].to_pylist()
    for row, (source, url) in enumerate(zip(pairs["source"].to_pylist(), urls, strict=True)):
        stored = find(source, url, {source: ""})
        if stored is not None and stored.status != "success":
            urls[row] = stored.fetch_url
    return pairs.set_column(pairs.column_names.index("fetch_url"), "fetch_url", pa.array(urls, pa.string()))
