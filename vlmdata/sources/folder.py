"""Pairs from a folder: images with a .json or .txt file of the same name beside them.

Where the folder has ImageFolder's metadata files, or the recipe names COCO's annotations, these say what there is.
"""

import json
import logging
import os
from collections import Counter
from collections.abc import Collection, Iterator
from typing import Any

import pyarrow as pa

from vlmdata.download.stored import local_url
from vlmdata.errors import DataError, InputError
from vlmdata.local_files import NO_SUCH_FILE, Refused, is_below, open_below
from vlmdata.recipe import FolderSource, VideoSource
from vlmdata.sources import BATCH_ROWS, ROWS, coco, imagefolder
from vlmdata.sources.files import named, stamps
from vlmdata.sources.urls import clean_text, shorten, strip_signature

log = logging.getLogger(__name__)

VERSION = 2
EXTENSIONS = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
_LARGEST_TEXT = 1_000_000  # bytes of a .json or .txt file
CONTEXT = 300
_LONGEST_SENTENCE = 20  # words


def check(source: FolderSource) -> None:
    """Refuse a folder that is not there, holds no image, or no caption beside an image. Raises InputError."""
    if not os.path.isdir(source.path):
        raise InputError(f"sources.{source.name}.path: there is no folder {source.path!r}")
    if source.annotations is not None:
        coco.check(source, source.annotations)
    elif listed := imagefolder.metadata(source.path):
        for path in listed:
            imagefolder.check(source, path)
    else:
        _begin(source)


def states(source: FolderSource) -> dict[str, str | None]:
    """Size and time of each image and of what stands beside it; where they are listed, of the lists."""
    root = os.path.realpath(source.path)
    if source.annotations is not None:
        return {source.annotations: stamps("", [source.annotations])}
    if listed := imagefolder.metadata(source.path):
        return {named(path): stamps(root, [path]) for path in listed}
    stems = ((path, os.path.splitext(path)[0]) for path in files(source, EXTENSIONS))
    return {named(path): stamps(root, [path, f"{stem}.json", f"{stem}.txt"]) for path, stem in stems}


def read(source: FolderSource, scratch: str, chosen: Collection[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The images with captions, the first `limit` of them: in the order of their paths, or as they are listed.

    Metadata files and annotations, where there are any, are read alone. Otherwise the caption is the .json file's
    caption, else its title with what its description adds, else the .txt file's text; caption_from is that key, or
    `file:txt`. The JSON's keywords become the context, its license the license.
    The url is `<source name>:/<path>`, the path from the source's root, percent-encoded.
    Symbolic links to folders are not followed, those to files only where they stay in the folder; files beside images
    that are not read for that or another reason are counted in the log.
    chosen: of `states` what to read; lists are read whole.
    Raises InputError as `check` does, DataError where the folder cannot be read to its end.
    """
    check(source)
    if source.annotations is not None:
        batches = coco.read(source, source.annotations)
    elif listed := imagefolder.metadata(source.path):
        batches = (batch for path in listed for batch in imagefolder.read(source, path, scratch))
    else:
        batches = _beside(source, None if source.limit else chosen)
    left = source.limit
    for batch in batches:
        yield batch.slice(0, left)
        if left is not None and (left := left - batch.num_rows) <= 0:
            return


def _beside(source: FolderSource, chosen: Collection[str] | None) -> Iterator[pa.RecordBatch]:
    rows: list[dict[str, Any]] = []
    silent = 0
    unread = Counter[str]()
    for path in _begin(source):
        if chosen is not None and named(path) not in chosen:
            continue
        found = caption_beside(source.path, path, unread)
        if found is None:
            silent += 1
            continue
        rows.append(_row(source, path, *found))
        if len(rows) == BATCH_ROWS:
            yield pa.RecordBatch.from_pylist(rows, ROWS)
            rows = []
    if silent:
        log.info("%s: %d images have no caption beside them and are left aside", source.name, silent)
    tell_unread(source.name, unread)
    yield pa.RecordBatch.from_pylist(rows, ROWS)


def tell_unread(name: str, unread: Counter[str]) -> None:
    """Log how many files beside a source's images or videos were not read, by reason."""
    for reason, count in sorted(unread.items()):
        log.warning("%s: %d files with captions are not read: %s", name, count, reason)


def _begin(source: FolderSource) -> Iterator[str]:
    """The images' paths from the root, after a look that there are captions. Raises InputError."""
    number = 0
    for path in files(source, EXTENSIONS):
        number += 1
        if caption_beside(source.path, path, Counter()) is not None:
            return files(source, EXTENSIONS)
    if not number:
        raise InputError(f"sources.{source.name}: {source.path!r} holds no image ({' '.join(EXTENSIONS)})")
    raise InputError(
        f"sources.{source.name}: none of the {number} images in {source.path!r} has a caption: "
        "a .txt file, or a .json file with a caption, title or description, of the same name beside it; "
        "or metadata.jsonl or .csv with `file_name` and `text`"
    )


def files(source: FolderSource | VideoSource, extensions: tuple[str, ...]) -> Iterator[str]:
    """The paths, from the source's root, of the files below it that end so, in their order.

    Symbolic links as in `read`. Raises DataError for a folder that cannot be read.
    """
    root = os.path.realpath(source.path)
    waiting = [""]
    while waiting:
        path = waiting.pop()
        whole = os.path.join(root, path) if path else root
        if path and not os.path.isdir(whole):
            yield path
            continue
        try:
            with os.scandir(whole) as entries:
                names = [entry.name for entry in entries if _wanted(entry, root, extensions)]
        except OSError as error:
            raise DataError(f"sources.{source.name}: {whole!r} cannot be read: {error.strerror}") from error
        waiting += [os.path.join(path, name) for name in sorted(names, reverse=True)]


def _wanted(entry: "os.DirEntry[str]", root: str, extensions: tuple[str, ...]) -> bool:
    if entry.is_dir(follow_symlinks=False):
        return True
    if not entry.name.lower().endswith(extensions) or not entry.is_file():
        return False
    return not entry.is_symlink() or is_below(root, os.path.relpath(entry.path, root))


def caption_beside(root: str, path: str, unread: Counter[str]) -> tuple[str, str, dict[str, Any]] | None:
    """(caption, caption_from, the JSON file's content) of an image or another file below the root, or None.

    unread: counts, by reason, the files beside it that are there and cannot be read.
    """
    stem = os.path.splitext(path)[0]
    about = _json(root, f"{stem}.json", unread)
    for key in ("caption", "title", "description"):
        if caption := _string(about, key):
            if key == "title":
                return *_with_description(caption, _string(about, "description")), about
            return caption, key, about
    caption = clean_text(read_small(root, f"{stem}.txt", unread).decode("utf-8-sig", "replace"))
    return (caption, "file:txt", about) if caption else None


def _with_description(title: str, description: str) -> tuple[str, str]:
    """A title with the first sentence of its description, where that says more: (caption, caption_from).

    A long sentence tells a story behind the picture rather than what is in it.
    """
    sentence = description.partition(". ")[0].rstrip(".")
    if (
        not 2 <= len(sentence.split()) <= _LONGEST_SENTENCE
        or sentence.casefold() in title.casefold()
        or "://" in sentence
    ):
        return title, "title"
    if title.casefold() in sentence.casefold():
        return sentence, "description"
    return f"{title.rstrip('.')}. {sentence}", "title+description"


def _row(source: FolderSource, path: str, caption: str, caption_from: str, about: dict[str, Any]) -> dict[str, Any]:
    return dict.fromkeys(ROWS.names) | {
        "url": local_url(source.name, path),
        "caption": caption,
        "caption_from": caption_from,
        "source": source.name,
        **context_and_license(about),
    }


def context_and_license(about: dict[str, Any]) -> dict[str, str | None]:
    """These two columns from a JSON file's keywords and license."""
    keywords = about.get("keywords")
    words = [clean_text(word) for word in keywords if isinstance(word, str)] if isinstance(keywords, list) else []
    return {
        "context": shorten(", ".join(filter(None, words)), CONTEXT) or None,
        "license": strip_signature(_string(about, "license"))[0] or None,
    }


def _string(about: dict[str, Any], key: str) -> str:
    value = about.get(key)
    return clean_text(value) if isinstance(value, str) else ""


def _json(root: str, path: str, unread: Counter[str]) -> dict[str, Any]:
    data = read_small(root, path, unread)
    if not data:
        return {}
    try:
        about = json.loads(data.decode("utf-8-sig", "replace"))
    except (ValueError, RecursionError) as error:
        log.warning("%s: not JSON: %s", path, error)
        return {}
    return about if isinstance(about, dict) else {}


def read_small(root: str, path: str, unread: Counter[str]) -> bytes:
    """The bytes of a file below the root; none where it is not there, leads out of the root, or holds more than a
    caption's file can, which but for the first is counted in `unread`."""
    try:
        with open_below(root, path) as file:
            content = file.read(_LARGEST_TEXT + 1)
    except (Refused, OSError) as error:
        reason = str(error) if isinstance(error, Refused) else error.strerror or type(error).__name__
        if reason != NO_SUCH_FILE:
            unread[reason] += 1
        return b""
    if len(content) > _LARGEST_TEXT:
        unread[f"more than {_LARGEST_TEXT:,} bytes"] += 1
        return b""
    return content
