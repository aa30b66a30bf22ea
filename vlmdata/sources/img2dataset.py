"""What img2dataset's Parquet files say of each URL: the columns that it writes itself, and what became of a download.

The messages are those of img2dataset 1.47 and of Python's urllib, which it fetches with.
"""

import glob
import json
import os
import re
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlmdata.download.header import exif_date
from vlmdata.local_files import is_below
from vlmdata.sources.columns import as_text, kind_of
from vlmdata.sources.urls import clean_text, shorten

# Beside the columns of the list that it was given (https://github.com/rom1504/img2dataset, downloader.py).
OWN = frozenset({"url", "caption", "key", "status", "error_message", "width", "height", "original_width"})
OWN |= {"original_height", "exif", "sha256", "md5"}
_CLASSES = (
    ("robots", r"X-Robots-Tag"),
    ("hash_mismatch", r"^hash mismatch"),
    ("pixels", r"^image too small|^image area too large|^aspect ratio too large"),
    ("decode", r"^image decoding error|^blurrer not defined"),
    ("5xx", r"^HTTP Error 5\d\d"),
    ("4xx", r"^HTTP Error \d"),
    ("timeout", r"timed out|timeout"),
    (
        "dns",
        r"name or service|name resolution|address associated|nodename|getaddrinfo|no such host|idna|label (empty|t)",
    ),
    ("tls", r"certificate|SSL|EOF occurred in violation|tlsv?1|handshake"),
    (
        "blocked",
        r"unknown url type|no host given|control characters|nonnumeric port|not.* ascii|codec can't|not a valid|"
        r"invalid (ipv6|url)|no host|netloc",
    ),
)
_PATTERNS = [(kind, re.compile(pattern, re.IGNORECASE)) for kind, pattern in _CLASSES]
_LONGEST = 200
_LONGEST_EXIF = 1_000_000
# exifread's words for the orientations 1 to 8
_TURNS = ["Horizontal (normal)", "Mirrored horizontal", "Rotated 180", "Mirrored vertical"]
_TURNS += ["Mirrored horizontal then rotated 90 CCW", "Rotated 90 CW", "Mirrored horizontal then rotated 90 CW"]
_TURNS += ["Rotated 90 CCW"]
_IDS = ("uid", "id", "license")  # a list's own columns that pairs have a place for
_BATCH = 5_000


def is_output(parquet: str) -> bool:
    """Whether a Parquet file is one that img2dataset writes beside a tar.

    Raises ArrowException for one that is not whole, as a run that was killed leaves it.
    """
    return {"url", "key", "status", "error_message"} <= set(pq.read_schema(parquet).names)


def without_images(folder: str) -> str | None:
    """What is wrong with a folder that holds such files and no images; None for one without such files."""
    for name in sorted(glob.glob("*.parquet", root_dir=folder)):
        with suppress(pa.ArrowException, OSError):
            if is_below(folder, name) and is_output(os.path.join(folder, name)):
                return (
                    "is img2dataset's output without its images as tars or files: of its values for output_format "
                    "`webdataset` and `files` are read, `parquet` and `tfrecord` are not"
                )
    return None


def signal_types(parquet: str) -> dict[str, pa.DataType]:
    """The scalar columns that are none of img2dataset's own, with the type that each has as a signal."""
    fields = [column for column in pq.read_schema(parquet) if column.name not in OWN and _is_scalar(column.type)]
    return {column.name: kind_of(column.type) for column in fields}


def rows(parquet: str, keys: list[str] | None) -> Iterator[dict[str, Any]]:
    """The rows of such a file, of its scalar columns those that are img2dataset's own and `keys`; None for all."""
    with pq.ParquetFile(parquet) as file:
        wanted = [
            column.name
            for column in file.schema_arrow
            if (keys is None or column.name in {*OWN, *_IDS, *keys}) and _is_scalar(column.type)
        ]
        for batch in file.iter_batches(_BATCH, columns=wanted):
            columns = [_values(column) for column in batch.columns]
            for row in zip(*columns, strict=True):
                yield dict(zip(wanted, row, strict=True))


def outcome(status: object, message: object) -> tuple[str, str | None]:
    """(`success`, None), or an error class and words for a row's `status` and `error_message`.

    What matches no known message is `decode` where the image had come (`failed_to_resize`), else `connect`.
    """
    if status == "success":
        return "success", None
    words = clean_text(message) if isinstance(message, str) else ""
    kind = next((kind for kind, pattern in _PATTERNS if pattern.search(words)), None)
    kind = kind or ("decode" if status == "failed_to_resize" else "connect")
    if kind == "blocked":
        words = re.split(r"['\":]", words)[0].strip()  # behind it stands the URL, which may give access
    words = re.sub(r"\S+://\S+", "a URL", words)
    return kind, f"img2dataset: {shorten(words, _LONGEST) or 'no word'}"


def noted(exif: object) -> tuple[int | None, str | None]:
    """Orientation and date (`header.Facts`) from the column `exif`: JSON of the names and words of the package exifread
    (https://github.com/ianare/exif-py)."""
    try:
        tags = json.loads(exif) if isinstance(exif, str) and len(exif) < _LONGEST_EXIF else None
    except (ValueError, RecursionError):
        return None, None
    if not isinstance(tags, dict):
        return None, None
    turn = tags.get("Image Orientation")
    dates = map(exif_date, map(tags.get, ("EXIF DateTimeOriginal", "EXIF DateTimeDigitized", "Image DateTime")))
    return _TURNS.index(turn) + 1 if turn in _TURNS else None, next(filter(None, dates), None)


def _is_scalar(kind: pa.DataType) -> bool:
    return not (pa.types.is_nested(kind) or pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def _values(column: pa.Array) -> list[Any]:
    """A column's values: numbers and bool as they are, decimals as numbers, anything else as text."""
    if pa.types.is_decimal(column.type):
        column = column.cast(pa.float64())
    kind = column.type
    plain = pa.types.is_boolean(kind) or pa.types.is_integer(kind) or pa.types.is_floating(kind)
    return (column if plain else as_text(column)).to_pylist()
