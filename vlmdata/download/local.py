"""Images that are files already: the folder sources' pairs."""

import os
import re
import stat
from datetime import UTC, datetime
from urllib.parse import unquote_to_bytes

from vlmdata.download.errand import Answer

_LOCAL = re.compile(r"([a-z][a-z0-9_]*):/(?!/)(.*)", re.DOTALL)
_CHUNK = 1 << 20


def local_path(url: str, roots: dict[str, str]) -> tuple[bytes, bytes] | None:
    """(root, path below it) of a URL that names a file of one of the sources in `roots`; None for any other URL."""
    match = _LOCAL.fullmatch(url)
    if match is None or match[1] not in roots:
        return None
    return os.fsencode(roots[match[1]]), unquote_to_bytes(match[2])


def read_local(root: bytes, path: bytes, limit: int) -> Answer:
    """A file's bytes, `limit` at most. What is outside of the root, links followed, or no plain file is `blocked`;
    what is not there or not readable is `4xx`, as it would be on a server."""
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
    try:
        facts = os.fstat(handle)
        if not stat.S_ISREG(facts.st_mode):
            return failed("blocked", "not a plain file")
        if facts.st_size > limit:
            return failed("too_large", f"{facts.st_size} bytes; the limit is {limit}")
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
