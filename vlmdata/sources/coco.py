"""Pairs from a COCO captions file: each annotation is the caption of one image. https://cocodataset.org/#format-data"""

import logging
import os
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

import fsspec
import pyarrow as pa

from vlmdata.download.stored import local_url
from vlmdata.errors import DataError, InputError
from vlmdata.local_files import Refused, real_path
from vlmdata.recipe import FolderSource
from vlmdata.sources import BATCH_ROWS, ROWS
from vlmdata.sources.formats import File
from vlmdata.sources.jsontext import arrays
from vlmdata.sources.urls import clean_text, strip_signature, web_url

log = logging.getLogger(__name__)

_MOST = 1_000_000_000  # bytes that the images and licenses may take in memory, about: COCO's own take 50 million
_EACH = 350  # bytes of an entry without its texts
_Id = int | str


class _Image(NamedTuple):
    """What is the same for all captions of an image."""

    url: str
    fetch_url: str | None
    license: _Id | None


def check(source: FolderSource, annotations: str) -> None:
    """Refuse a file that is not there. Raises InputError; what is in it is looked at by `read` alone."""
    if not os.path.isfile(annotations):
        raise InputError(f"sources.{source.name}.annotations: there is no file {annotations!r}")


def read(source: FolderSource, annotations: str) -> Iterator[pa.RecordBatch]:
    """The annotations in their order. The url is the image's file below the source's folder where it is there, else its
    `coco_url`, else the file all the same: the download then says that it is not there.

    The file is read twice, entry by entry; only its images and licenses are held. Entries that give no pair are counted
    in the log, by reason. Raises DataError for a file that is not COCO's, or whose images do not fit into 1 GB.
    """
    check(source, annotations)
    file = File(source.name, fsspec.filesystem("file"), annotations, "json", None)
    odd = Counter[str]()
    images, licenses = _images(source, file, odd)
    rows: list[dict[str, Any]] = []
    there = False
    for _, entries in arrays(file, {"annotations"}):
        there = True
        for entry in entries:
            about = entry if isinstance(entry, dict) else {}
            image = images.get(_id(about.get("image_id")))
            caption = _text(about.get("caption"))
            if image is None or not caption:
                odd["annotations without a caption" if image else "annotations without an image"] += 1
                continue
            own = _id(about.get("id"))
            row = {
                "url": image.url,
                "fetch_url": image.fetch_url,
                "license": licenses.get(image.license),
                "caption": caption,
                "caption_from": "caption",
                "source": source.name,
                "source_id": None if own is None else clean_text(str(own)),
            }
            rows.append(dict.fromkeys(ROWS.names) | row)
            if len(rows) == BATCH_ROWS:
                yield pa.RecordBatch.from_pylist(rows, ROWS)
                rows = []
    if not there:
        raise DataError(f"{file}: not COCO's: it has no list `annotations`")
    for reason, count in sorted(odd.items()):
        log.warning("%s: %d %s are left aside", source.name, count, reason)
    yield pa.RecordBatch.from_pylist(rows, ROWS)


def _images(
    source: FolderSource, file: File, odd: Counter[str]
) -> tuple[dict[_Id | None, _Image], dict[_Id | None, str | None]]:
    """(id -> image, id -> license); what can be no image is counted in `odd`. Raises DataError."""
    images: dict[_Id | None, _Image] = {}
    licenses: dict[_Id | None, str | None] = {}
    names = set()
    held = 0
    for name, entries in arrays(file, {"images", "licenses"}):
        names.add(name)
        for entry in entries:
            about = entry if isinstance(entry, dict) else {}
            key = _id(about.get("id"))
            if key is None:
                odd[f"{name} without an id"] += 1
            elif name == "licenses":
                licenses[key] = strip_signature(_text(about.get("url")) or _text(about.get("name")))[0] or None
                held += _EACH + len(str(key)) + len(licenses[key] or "")
            elif (image := _image(source, about)) is None:
                odd["images without a URL or a file's name that can be one"] += 1
            else:
                images[key] = image
                held += _EACH + sum(len(str(value or "")) for value in (key, *image))
            if held > _MOST:
                raise DataError(
                    f"{file}: its images take more than {_MOST:,} bytes of memory: write its pairs as a table "
                    "(kind: table), or split the file"
                )
    if "images" not in names:
        raise DataError(f"{file}: not COCO's: it has no list `images`")
    return images, licenses


def _image(source: FolderSource, about: dict[str, Any]) -> _Image | None:
    """None where it has neither a file's name nor a URL."""
    link, name = about.get("coco_url"), about.get("file_name")
    url = web_url(link) if isinstance(link, str) else None
    own, here = _file(source, name) if isinstance(name, str) and name else (None, False)
    license_id = _id(about.get("license"))
    if own is not None and (here or url is None):
        return _Image(own, None, license_id)
    return _Image(*strip_signature(url), license_id) if url else None


def _file(source: FolderSource, name: str) -> tuple[str | None, bool]:
    """(the URL of a file's name, whether it is there); no URL for what no file can be called."""
    try:
        url = local_url(source.name, name)
    except UnicodeEncodeError:  # half a surrogate pair, which JSON can hold
        return None, False
    try:
        return url, os.path.isfile(real_path(source.path, name))
    except Refused:
        return (None if "\0" in name else url), False


def _id(value: Any) -> _Id | None:
    return value if isinstance(value, int | str) else None


def _text(value: Any) -> str:
    return clean_text(value) if isinstance(value, str) else ""
