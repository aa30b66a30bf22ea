"""The files that a recipe names: paths, globs and URLs of any filesystem that fsspec knows."""

import glob
import os
import re
from contextlib import nullcontext
from typing import Any
from urllib.parse import urlsplit

import fsspec
from fsspec.utils import tokenize

from vlmdata.errors import InputError, MachineError
from vlmdata.sources.urls import strip_signature
from vlmdata.storage import reaching

_WEB = re.compile(r"https?://", re.IGNORECASE)
_VALIDATORS = ("ETag", "Last-Modified", "Content-MD5", "Digest")


def find(url: str, where: str) -> list[tuple[Any, str]]:
    """The files that a path, glob or URL means, each as (filesystem, path), sorted by path.

    An http(s) URL is one file, which is not looked for here: a web server lists nothing, and `?` begins a query.
    where: the option that names it, for messages; these show no secret of the URL. Raises InputError.
    """
    shown = strip_signature(url)[0]
    try:
        filesystem, path = fsspec.core.url_to_fs(url)
        if _WEB.match(path):
            return [(filesystem, path)]
        with reaching(shown) if "://" in url else nullcontext():
            paths = sorted(match for match in filesystem.glob(path) if not filesystem.isdir(match))
            if not paths and filesystem.exists(path) and not filesystem.isdir(path):
                paths = [path]  # a file whose name has a glob's signs in it
    except (ImportError, ValueError, OSError) as error:
        said = str(error).replace(url, shown)
        raise InputError(f"{where}: {shown!r} cannot be reached: {said}") from error
    if not paths:
        raise InputError(f"{where}: {shown!r} matches no file (for a folder, write folder/*)")
    return [(filesystem, path) for path in paths]


def literal(path: str) -> str:
    """The pattern that means this very path, whatever signs are in it."""
    return glob.escape(path)


def name_of(path: str) -> str:
    """The path whose end tells what a file holds, in lower case: of an http(s) URL without the query."""
    return (urlsplit(path).path if _WEB.match(path) else path).lower()


def version(filesystem: Any, path: str, where: str) -> str | None:
    """A hash of what the filesystem says of a file (size, time and the like), another one when it has changed; of a web
    server, whom a request asks, of its validators and the length. None where it gives no validator.

    where: for messages. Raises MachineError where nobody can say.
    """
    try:
        if not _WEB.match(path):
            return filesystem.ukey(path)
        said = filesystem.info(path)
    except OSError as error:
        shown = strip_signature(path)[0]
        raise MachineError(f"{where}: {shown}: cannot be reached: {error.strerror or type(error).__name__}") from error
    if not any(said.get(name) for name in _VALIDATORS):
        return None
    return tokenize([said.get(name) for name in ("size", *_VALIDATORS)])


def stamps(root: str, paths: list[str]) -> str:
    """Size and time of change of local files below a root; of one that is not there a dash."""
    found = []
    for path in paths:
        try:
            about = os.stat(os.path.join(root, path))
            found.append(f"{about.st_size}:{about.st_mtime_ns}")
        except OSError:
            found.append("-")
    return " ".join(found)


def named(path: str) -> str:
    """A local path as text, another one for each, whatever bytes it has."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
