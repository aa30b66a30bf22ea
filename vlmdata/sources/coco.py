"""Pairs from a COCO captions file: each annotation is the caption of one image. https://cocodataset.org/#format-data"""

import json
import logging
import os
from collections.abc import Iterator
from typing import Any

import pyarrow as pa

from vlmdata.download.stored import local_url
from vlmdata.errors import DataError, InputError
from vlmdata.recipe import FolderSource
from vlmdata.sources import BATCH_ROWS, ROWS
from vlmdata.sources.urls import clean_text, strip_signature, web_url

log = logging.getLogger(__name__)

_LARGEST = 2_000_000_000  # bytes; COCO's own has 90 million. It is read whole.


def check(source: FolderSource, annotations: str) -> None:
    """Refuse a file that is not there. Raises InputError; what is in it is looked at by `read` alone."""
    if not os.path.isfile(annotations):
        raise InputError(f"sources.{source.name}.annotations: there is no file {annotations!r}")
    if os.path.getsize(annotations) > _LARGEST:
        raise InputError(f"sources.{source.name}.annotations: {annotations!r} has more than {_LARGEST:,} bytes")


def read(source: FolderSource, annotations: str) -> Iterator[pa.RecordBatch]:
    """The annotations in their order. The url is the image's file below the source's folder where it is there, else its
    `coco_url`, else the file all the same: the download then says that it is not there.

    Raises DataError for a file that is not COCO's.
    """
    check(source, annotations)
    where = f"sources.{source.name}.annotations: {annotations!r}"
    try:
        with open(annotations, "rb") as file:
            data = json.load(file)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{where}: not JSON: {error}") from error
    if not isinstance(data, dict) or not all(isinstance(data.get(key), list) for key in ("images", "annotations")):
        raise DataError(f"{where}: not COCO's: the lists `images` and `annotations` are expected")
    licenses: dict[int | str, str | None] = {
        one["id"]: strip_signature(clean_text(str(one.get("url") or one.get("name") or "")))[0] or None
        for one in _with_id(data, "licenses")
    }
    images = {image["id"]: _image(source, image, licenses) for image in _with_id(data, "images")}
    rows: list[dict[str, Any]] = []
    silent = 0
    for annotation in data["annotations"]:
        about = annotation if isinstance(annotation, dict) else {}
        key = about.get("image_id")
        image = images.get(key) if isinstance(key, int | str) else None
        caption = clean_text(about["caption"]) if isinstance(about.get("caption"), str) else ""
        if image is None or not caption:
            silent += 1
            continue
        own = about.get("id")
        own = str(own) if isinstance(own, int | str) else None
        rows.append(dict.fromkeys(ROWS.names) | image | {"caption": caption, "source_id": own and clean_text(own)})
        if len(rows) == BATCH_ROWS:
            yield pa.RecordBatch.from_pylist(rows, ROWS)
            rows = []
    if silent:
        log.info("%s: %d annotations without an image or a caption are left aside", source.name, silent)
    yield pa.RecordBatch.from_pylist(rows, ROWS)


def _with_id(data: dict[str, Any], key: str) -> list[dict[str, Any]]:
    entries = data.get(key)
    entries = entries if isinstance(entries, list) else []
    return [entry for entry in entries if isinstance(entry, dict) and isinstance(entry.get("id"), int | str)]


def _image(source: FolderSource, image: dict[str, Any], licenses: dict[int | str, str | None]) -> dict[str, Any] | None:
    """What is the same for all captions of an image; None where it has neither a file's name nor a URL."""
    name, link = image.get("file_name"), image.get("coco_url")
    url = web_url(link) if isinstance(link, str) else None
    name = name if isinstance(name, str) and "\0" not in name else ""
    if not name and url is None:
        return None
    here = not url or (bool(name) and os.path.isfile(os.path.join(source.path, name)))
    clean, signed = strip_signature(url) if url else ("", None)
    license_id = image.get("license")
    return {
        "url": local_url(source.name, name) if here else clean,
        "fetch_url": None if here else signed,
        "caption_from": "caption",
        "source": source.name,
        "license": licenses.get(license_id) if isinstance(license_id, int | str) else None,
    }
