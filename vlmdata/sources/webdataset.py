"""Pairs from WebDataset tars and from img2dataset's output: their images are here already and are not fetched again.

Nothing is extracted: a pair's `fetch_url` says where in which file its image stands (see vlmdata/download/stored.py).
"""

import glob
import json
import logging
import os
import re
from collections import Counter
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, BinaryIO

import pyarrow as pa

from vlmdata.download.stored import Stored, local_url, stored_url
from vlmdata.errors import DataError, InputError
from vlmdata.local_files import Refused, is_below, open_below
from vlmdata.recipe import WebdatasetSource, nearest
from vlmdata.sources import BATCH_ROWS, ROWS, img2dataset, signal_column
from vlmdata.sources.files import named, stamps
from vlmdata.sources.scalars import fit, type_of
from vlmdata.sources.tar import BrokenTar, Member, members
from vlmdata.sources.urls import clean_text, strip_signature

log = logging.getLogger(__name__)

VERSION = 3
IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif")
_LARGEST_TEXT = 1_000_000  # bytes of a .txt or .json member
_SAMPLES = 1_000  # the first so many say which signals there are
_MOST_FILES = 100  # of one sample
_SHA256 = re.compile(r"[0-9a-fA-F]{64}")


@dataclass
class Shard:
    """A tar, or img2dataset's folder of files, and the Parquet file beside it. Paths from the source's root."""

    path: str
    parquet: str | None = None
    fault: str | None = None  # why a Parquet file that is there is not read

    @property
    def is_tar(self) -> bool:
        return self.path.endswith(".tar")


@dataclass
class _Sample:
    """Neighbours in a tar whose names agree up to the first dot: extension -> member."""

    key: str
    files: dict[str, Member] = field(default_factory=dict)

    def find(self, *extensions: str) -> Member | None:
        """`jpg` before `seg.jpg`."""
        names = [name for name in self.files if name.rpartition(".")[2].lower() in extensions]
        return self.files[min(names, key=len)] if names else None


@dataclass
class _Pair:
    """What a shard says of a pair: its JSON or Parquet row, its caption, the image's name from the root, and where
    its bytes are or what became of its download."""

    about: dict[str, Any]
    caption: str
    caption_from: str
    name: str
    file: str
    stored: Stored


def root(path: str) -> str:
    """The folder that a source's path begins with: all of it, or what stands before the file's name or the glob."""
    while path and not os.path.isdir(path):
        path = os.path.dirname(path)
    return path or "."


def check(source: WebdatasetSource) -> None:
    """Refuse a path that matches no tar, and tars without an image that has a caption. Raises InputError."""
    found = shards(source)
    for shard in found:
        if shard.parquet is not None:
            rows = img2dataset.rows(os.path.join(root(source.path), shard.parquet), [])
            there = any(_clean(row.get("caption")) and _clean(row.get("url")) for row in rows)
        else:
            there = any(True for _ in _tar_pairs(source, shard))
        if there:
            return
    raise InputError(
        f"sources.{source.name}: no image in the {len(found)} shards of {source.path!r} has a caption: a .txt, or a "
        ".json with a `caption`, of the same name in the tar; or a column `caption` in img2dataset's Parquet files"
    )


def signals(source: WebdatasetSource) -> pa.Schema:
    """The columns that the first shard brings: scalars of the JSON, or the further columns of img2dataset's Parquet
    file; of them those that `keep` names. A type is what the first 1,000 samples have: whole numbers, numbers, bool or
    text; what fits none is left out. Raises InputError for a name in `keep` that no sample has."""
    return pa.schema(list(_columns(source).values()))


def states(source: WebdatasetSource) -> dict[str, str | None]:
    """Size and time of each shard and of the Parquet file beside it."""
    folder = root(source.path)
    return {
        named(shard.path): stamps(folder, [shard.path, *([shard.parquet] if shard.parquet else [])])
        for shard in shards(source)
    }


def read(source: WebdatasetSource, scratch: str, chosen: Collection[str] | None = None) -> Iterator[pa.RecordBatch]:
    """The pairs of all shards in the order of their paths, those that img2dataset could not download too.

    The caption is the .txt member, else the JSON's `caption` or `text`; beside img2dataset's Parquet file its column.
    The url is the JSON's or the Parquet file's own, else `<source name>:/<tar>/<member>`, percent-encoded.
    A tar that breaks off gives what stands before that place, and is told; so are pairs without a caption. A value that
    is not of its column's type is null, and is counted.
    Raises InputError as `check` does, DataError for a file that cannot be read.
    """
    columns = _columns(source)
    schema = pa.schema([*ROWS, *columns.values()])
    rows, odd = list[dict[str, Any]](), Counter[str]()
    for shard in shards(source):
        if chosen is not None and named(shard.path) not in chosen:
            continue
        if shard.fault:
            log.warning("%s: %s: of %s what is stored is read", source.name, shard.fault, shard.path)
        for pair in _pairs(source, shard, list(columns)):
            row = _row(source, pair)
            for key, column in columns.items():
                value = pair.about.get(key)
                row[column.name] = fit(value, column.type)
                if value is not None and row[column.name] is None:
                    odd[key] += 1
            rows.append(row)
            if len(rows) == BATCH_ROWS:
                yield pa.RecordBatch.from_pylist(rows, schema)
                rows = []
    for key, count in odd.items():
        log.warning(
            "%s: %d values of %r are not %s, as the first were: null", source.name, count, key, columns[key].type
        )
    yield pa.RecordBatch.from_pylist(rows, schema)


def shards(source: WebdatasetSource) -> list[Shard]:
    """The tars that the path matches, and in a folder img2dataset's folders of files, in the order of their paths.

    Raises InputError where there are none, for a compressed tar, and for a link that leads out of the folder.
    """
    folder = root(source.path)
    inside = os.path.relpath(source.path, folder)
    pattern = "*" if inside == "." else inside
    found = []
    for path in sorted(glob.glob(pattern, root_dir=folder, recursive=True)):
        stem, end = os.path.splitext(path)
        about, whole = f"{stem}.parquet", os.path.join(folder, path)
        is_tar = end == ".tar" and os.path.isfile(whole)
        if not is_tar and not (end == "" and os.path.isdir(whole)):
            continue
        fault, output = None, False
        if os.path.isfile(os.path.join(folder, about)):
            _refuse_outside(source, folder, about)
            try:
                output = img2dataset.is_output(os.path.join(folder, about))
            except (pa.ArrowException, OSError) as error:
                fault = f"{about} is not whole: {error}"
        if is_tar or output or fault:
            found.append(Shard(path, about if output else None, fault))
    if not found:
        wrong = img2dataset.without_images(folder) or "is, holds and matches no .tar file (where compressed, unpack it)"
        raise InputError(f"sources.{source.name}.path: {source.path!r} {wrong}")
    for shard in found:
        _refuse_outside(source, folder, shard.path)
    return found


def _refuse_outside(source: WebdatasetSource, folder: str, path: str) -> None:
    if not is_below(folder, path):
        wrong = f"is a link that leads out of {folder!r}: name its own folder"
        raise InputError(f"sources.{source.name}.path: {path!r} {wrong}")


def _columns(source: WebdatasetSource) -> dict[str, pa.Field]:
    """Key in the JSON or the Parquet file -> the column of source_signals."""
    types: dict[str, pa.DataType] = {}
    for shard in shards(source):
        if shard.parquet is not None:
            types = img2dataset.signal_types(os.path.join(root(source.path), shard.parquet))
            break
        abouts = [pair.about for pair in islice(_tar_pairs(source, shard), _SAMPLES)]
        if abouts:
            names = dict.fromkeys(key for about in abouts for key in about if key not in img2dataset.OWN)
            types = {key: kind for key in names if (kind := type_of(about.get(key) for about in abouts))}
            break
    for key in source.keep or ():
        if key not in types:
            raise InputError(f"sources.{source.name}.keep: the first samples have no {key!r}{nearest(key, types)}")
    columns: dict[str, pa.Field] = {}
    for key in types if source.keep is None else source.keep:
        with suppress(InputError):  # a key whose column pairs has (`id`), or that is no name
            column = pa.field(signal_column(key.removeprefix("source_")), types[key])
            if column.name not in {other.name for other in columns.values()}:
                columns[key] = column
    return columns


def _pairs(source: WebdatasetSource, shard: Shard, keys: list[str]) -> Iterator[_Pair]:
    if shard.parquet is None:
        yield from _tar_pairs(source, shard)
        return
    path = os.path.join(root(source.path), shard.parquet)
    places = _places(source, shard)
    silent = 0
    try:
        for about in img2dataset.rows(path, keys):
            caption, key = _clean(about.get("caption")), about.get("key")
            file, member = places.pop(key, (shard.path, None)) if isinstance(key, str) else (shard.path, None)
            if not caption or not _clean(about.get("url")):
                silent += 1
                continue
            status, error = img2dataset.outcome(about.get("status"), about.get("error_message"))
            if status == "success" and file == shard.path and member is None:
                status, error = "connect", f"{shard.path} has no image for this row: it breaks off, or is not the row's"
            yield _Pair(about, caption, "caption", file, file, _stored(about, member, status, error))
    except (pa.ArrowException, OSError) as error:
        log.warning("%s: %s cannot be read to its end: %s", source.name, path, error)
    if silent:
        log.info("%s: %s: %d rows without a caption or a URL are left aside", source.name, shard.parquet, silent)
    if places and shard.is_tar:
        log.warning("%s: %s: %d samples without a row beside it", source.name, shard.path, len(places))
        yield from _tar_pairs(source, shard, set(places))


def _places(source: WebdatasetSource, shard: Shard) -> dict[str, tuple[str, Member | None]]:
    """The key of each image of a shard with a Parquet file -> (its file, its place in the tar)."""
    if not shard.is_tar:
        places: dict[str, tuple[str, Member | None]] = {}
        with os.scandir(os.path.join(root(source.path), shard.path)) as entries:
            for entry in entries:
                key, _, extension = entry.name.rpartition(".")
                if extension in IMAGES:
                    places[key] = f"{shard.path}/{entry.name}", None
        return places
    with _open(source, shard) as file:
        return {
            sample.key: (shard.path, member)
            for sample in _samples(source, shard, file)
            if (member := sample.find(*IMAGES)) is not None
        }


def _tar_pairs(source: WebdatasetSource, shard: Shard, only: set[str] | None = None) -> Iterator[_Pair]:
    """The captioned images of a tar by its own members; of the keys in `only`."""
    if not shard.is_tar:
        return
    silent = 0
    with _open(source, shard) as file:
        for sample in _samples(source, shard, file):
            image = sample.find(*IMAGES)
            if image is None or (only is not None and sample.key not in only):
                continue
            about = _json(file, sample.find("json"))
            caption, caption_from = _clean(_text(file, sample.find("txt"))), "file:txt"
            for key in ("caption", "text"):
                if not caption:
                    caption, caption_from = _clean(about.get(key)), key
            if not caption:
                silent += 1
                continue
            number = _text(file, sample.find("cls")).strip()
            if number.isdecimal() and len(number) < 10:
                about.setdefault("cls", int(number))
            name = f"{shard.path}/{image.name}"
            yield _Pair(about, caption, caption_from, name, shard.path, _stored(about, image))
    if silent:
        log.info("%s: %s: %d images have no caption and are left aside", source.name, shard.path, silent)


def _samples(source: WebdatasetSource, shard: Shard, file: BinaryIO) -> Iterator[_Sample]:
    """Neighbouring members with one name up to the first dot of its last part. A tar's broken end is told."""
    sample = _Sample("")
    count = 0
    try:
        for member in members(file):
            folder, slash, name = member.name.rpartition("/")
            stem, _, extension = name.partition(".")
            key = folder + slash + stem
            if key != sample.key or extension in sample.files or len(sample.files) == _MOST_FILES:
                if sample.files:
                    yield sample
                sample = _Sample(key)
                count += 1
            sample.files[extension] = member
    except BrokenTar as error:
        log.warning("%s: %s: %s; %d samples stand before that", source.name, shard.path, error, count)
    if sample.files:
        yield sample


def _open(source: WebdatasetSource, shard: Shard) -> BinaryIO:
    try:
        return open_below(root(source.path), shard.path)
    except Refused as refusal:
        raise DataError(f"sources.{source.name}: {shard.path}: {refusal}") from refusal


def _stored(about: dict[str, Any], member: Member | None, status: str = "success", error: str | None = None) -> Stored:
    sha256 = about.get("sha256")
    sizes = [fit(about.get(f"original_{side}"), pa.int64()) for side in ("width", "height")]
    return Stored(
        None if member is None else member.offset,
        0 if member is None else member.size,
        sha256.lower() if isinstance(sha256, str) and _SHA256.fullmatch(sha256) else None,
        (sizes[0], sizes[1]) if all(size and 0 < size < 2**31 for size in sizes) else None,
        status,
        error,
        None,
        *img2dataset.noted(about.get("exif")),
    )


def _row(source: WebdatasetSource, pair: _Pair) -> dict[str, Any]:
    url, signed = strip_signature(_clean(pair.about.get("url")))
    stored = pair.stored if pair.stored.status == "success" else replace(pair.stored, fetch_url=signed)
    own = next((value for key in ("uid", "id", "key") if (value := pair.about.get(key)) not in (None, "")), None)
    return dict.fromkeys(ROWS.names) | {
        "url": url or local_url(source.name, pair.name),
        "fetch_url": stored_url(source.name, pair.file, stored),
        "caption": pair.caption,
        "caption_from": pair.caption_from,
        "source": source.name,
        "source_id": clean_text(str(own)) if isinstance(own, str | int) else None,
        "license": strip_signature(_clean(pair.about.get("license")))[0] or None,
        "expected_hash": f"sha256:{stored.sha256}" if stored.sha256 else None,
    }


def _clean(value: Any) -> str:
    return clean_text(value) if isinstance(value, str) else ""


def _json(file: BinaryIO, member: Member | None) -> dict[str, Any]:
    try:
        about = json.loads(_text(file, member) or "{}")
    except (ValueError, RecursionError):
        return {}
    return about if isinstance(about, dict) else {}


def _text(file: BinaryIO, member: Member | None) -> str:
    """A member's text; none where there is no such member, or more than a caption's file can hold."""
    if member is None or member.size > _LARGEST_TEXT:
        return ""
    file.seek(member.offset)
    return file.read(member.size).decode("utf-8-sig", "replace")
