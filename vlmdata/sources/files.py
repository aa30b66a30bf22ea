"""The files that a recipe names: paths, globs and URLs of any filesystem that fsspec knows."""

import glob
import re
from contextlib import nullcontext
from typing import Any
from urllib.parse import urlsplit

import fsspec

from vlmdata.errors import InputError
from vlmdata.sources.urls import strip_signature
from vlmdata.storage import reaching

_WEB = re.compile(r"https?://", re.IGNORECASE)


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
