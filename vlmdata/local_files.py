"""Files below a source's folder, opened so that nothing else is read, whatever names and symbolic links say."""

import os
import stat
from typing import BinaryIO


class Refused(Exception):
    """Why a file is not opened, in words. status: the download's class for it, `blocked` or `4xx`."""

    def __init__(self, status: str, words: str) -> None:
        super().__init__(words)
        self.status = status


NO_SUCH_FILE = "no such file"


def real_path(root: str | bytes, path: str | bytes) -> bytes:
    """Where a path from the root leads, links followed; it need not be there.

    Raises Refused (`blocked`) for one that leads out of the root, by `..`, as an absolute path or by a link, and for
    what can be no path.
    """
    try:
        real_root, name = os.path.realpath(os.fsencode(root)), os.fsencode(path)
        real = os.path.realpath(os.path.join(real_root, name))
    except (OSError, ValueError) as error:  # a NUL, or half a surrogate pair
        raise Refused("blocked", "the path is not one") from error
    if os.path.isabs(name) or os.path.commonpath([real_root, real]) != real_root:
        raise Refused("blocked", "the path leads out of the source's folder")
    return real


def is_below(root: str | bytes, path: str | bytes) -> bool:
    """Whether a path from the root stays in it, links followed."""
    try:
        real_path(root, path)
    except Refused:
        return False
    return True


def open_below(root: str | bytes, path: str | bytes) -> BinaryIO:
    """A plain file below the root, open for reading.

    Raises Refused: `blocked` as `real_path` does and for what is no plain file; `4xx`, as it would be on a server, for
    what is not there or may not be read.
    """
    real = real_path(root, path)
    try:
        # Not blocking: a named pipe would wait for its writer. O_NOFOLLOW: a link put there since is not followed.
        handle = os.open(real, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOFOLLOW)
    except (FileNotFoundError, NotADirectoryError) as error:
        raise Refused("4xx", NO_SUCH_FILE) from error
    except PermissionError as error:
        raise Refused("4xx", "the file may not be read") from error
    except OSError as error:
        raise Refused("blocked", f"the file cannot be opened: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise Refused("blocked", "not a plain file")
    return os.fdopen(handle, "rb")
