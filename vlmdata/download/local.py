"""Images that are in files already: the folder sources' pairs, and members of tars."""

import os
import re
import stat
from datetime import UTC, datetime
from urllib.parse import unquote_to_bytes

from vlmdata.download.errand import Answer
from vlmdata.download.stored import Stored

_LOCAL = re.compile(r"([a-z][a-z0-9_]*):/(?!/)(.*)", re.DOTALL)
_CHUNK = 1 << 20


def local_path(url: str, roots: dict[str, str]) -> tuple[bytes, bytes] | None:
    """(root, path below it) of a URL that names a file of one of the sources in `roots`; None for any other URL."""
    match = _LOCAL.fullmatch(url)
    if match is None or match[1] not in roots:
        return None
    return os.fsencode(roots[match[1]]), unquote_to_bytes(match[2])


def open_local(root: bytes, path: bytes) -> int | Answer:
    """A plain file below the root, open for reading (a descriptor), or why not. What is outside of the root, links
    followed, or no plain file is `blocked`; what is not there or not readable is `4xx`, as it would be on a server."""
    now = datetime.now(UTC)

    def failed(status: str, error: str) -> Answer:
        return Answer(status, error, fetched_at=now)

    try:
        real_root = os.path.realpath(root)
        real = os.path.realpath(os.path.join(real_root, path))
        if os.path.commonpath([real_root, real]) != real_root:
            return failed("blocked", "the path leads out of the source's folder")
        # Not blocking: a named pipe would wait for its writer.
        handle = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError):
        return failed("4xx", "no such file")
    except PermissionError:
        return failed("4xx", "the file may not be read")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "the path is not one"
        return failed("blocked", f"the file cannot be opened: {reason}")
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        return failed("blocked", "not a plain file")
    return handle


def read_local(root: bytes, path: bytes, limit: int, stretch: tuple[int, int] | None = None) -> Answer:
    """A file's bytes, or those of its stretch (offset, length), `limit` at most; or why not (see `open_local`). A file
    that ends within the stretch has broken off (`connect`)."""
    now = datetime.now(UTC)
    handle = open_local(root, path)
    if isinstance(handle, Answer):
        return handle

    def failed(status: str, error: str) -> Answer:
        return Answer(status, error, fetched_at=now)

    try:
        facts = os.fstat(handle)
        size = facts.st_size if stretch is None else stretch[1]
        if size > limit:
            return failed("too_large", f"{size} bytes; the limit is {limit}")
        if stretch is not None:
            part = os.pread(handle, size, stretch[0])
            if len(part) < size:
                return failed("connect", f"the file ends {size - len(part)} bytes too early")
            return Answer("success", body=part, fetched_at=now)
        body = bytearray()
        while len(body) <= limit and (chunk := os.read(handle, _CHUNK)):
            body += chunk
    except OSError as error:
        return failed("4xx", f"the file cannot be read: {error.strerror}")
    finally:
        os.close(handle)
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
