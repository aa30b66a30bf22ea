"""Images that are in files already: the folder sources' pairs, and members of tars."""

import os
import re
from datetime import UTC, datetime
from urllib.parse import unquote_to_bytes

from vlmdata.download.errand import Answer
from vlmdata.download.stored import Stored
from vlmdata.local_files import Refused, open_below

_LOCAL = re.compile(r"([a-z][a-z0-9_]*):/(?!/)(.*)", re.DOTALL)
_CHUNK = 1 << 20


def local_path(url: str, roots: dict[str, str]) -> tuple[bytes, bytes] | None:
    """(root, path below it) of a URL that names a file of one of the sources in `roots`; None for any other URL."""
    match = _LOCAL.fullmatch(url)
    if match is None or match[1] not in roots:
        return None
    return os.fsencode(roots[match[1]]), unquote_to_bytes(match[2])


def read_local(root: bytes, path: bytes, limit: int, stretch: tuple[int, int] | None = None) -> Answer:
    """A file's bytes, or those of its stretch (offset, length), `limit` at most; or why not (see `open_below`). A file
    that ends within the stretch has broken off (`connect`)."""
    now = datetime.now(UTC)

    def failed(status: str, error: str) -> Answer:
        return Answer(status, error, fetched_at=now)

    body = bytearray()
    try:
        with open_below(root, path) as file:
            handle = file.fileno()
            size = os.fstat(handle).st_size if stretch is None else stretch[1]
            if size > limit:
                return failed("too_large", f"{size} bytes; the limit is {limit}")
            if stretch is not None:
                part = os.pread(handle, size, stretch[0])
                if len(part) < size:
                    return failed("connect", f"the file ends {size - len(part)} bytes too early")
                return Answer("success", body=part, fetched_at=now)
            while len(body) <= limit and (chunk := os.read(handle, _CHUNK)):
                body += chunk
    except Refused as refusal:
        return failed(refusal.status, str(refusal))
    except OSError as error:
        return failed("4xx", f"the file cannot be read: {error.strerror}")
    if len(body) > limit:
        return failed("too_large", f"more than {limit} bytes")
    return Answer("success", body=bytes(body), fetched_at=now)


def read_stored(fetch_url: str, stored: Stored, roots: dict[str, str], limit: int) -> Answer:
    """The bytes that a source holds, `limit` at most, or the failure that it has seen; otherwise as `read_local`."""
    if stored.status != "success":
        return Answer(stored.status, stored.error)
    place = local_path(fetch_url.partition("#")[0], roots)
    if place is None:
        return Answer("blocked", "the path leads out of the source's folder")
    answer = read_local(*place, limit, None if stored.offset is None else (stored.offset, stored.length))
    return Answer(answer.status, answer.error, answer.body)  # nothing was asked for now: no time
