"""Which pairs a request means: those that it names, and all of the same URL or stored bytes as one of these."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlmdata import shards
from vlmdata.dataset import Dataset
from vlmdata.download.forgotten import Entry, Forgotten, host_of_form, near, phash_of, url_entries
from vlmdata.download.optout import url_form
from vlmdata.errors import DataError
from vlmdata.forget.columns import Places, among, text
from vlmdata.forget.request import Request

# Of each uid how it was found, in the order in which this is told.
KINDS = ("uid", "url", "domain", "sha256", "like", "the same URL", "the same bytes", "refused by the download")
_READ = ("uid", "url", "sha256", "stored_key")


@dataclass
class _Met:
    """What has been found so far: uid -> kind; URLs in their `url_form` with their hosts; SHA-256s of stored images."""

    found: dict[str, str]
    urls: set[str]
    hosts: set[str]
    hashes: set[str]

    def take(self, uids: pa.Array, mask: np.ndarray, kind: str) -> None:
        """Note the uids of `mask` (bool [n]) that were not found before."""
        for uid in uids.filter(pa.array(mask)).to_pylist():
            self.found.setdefault(uid, kind)

    def take_urls(self, urls: pa.Array, mask: np.ndarray) -> None:
        """Note these rows' URLs."""
        forms = {url_form(url) for url in urls.filter(pa.array(mask)).drop_null().unique().to_pylist()}
        self.urls |= forms
        self.hosts |= {host_of_form(form) for form in forms}

    def size(self) -> tuple[int, int, int]:
        """It only grows."""
        return len(self.found), len(self.urls), len(self.hashes)


def find(dataset: Dataset, asked: Request, forgotten: Forgotten) -> tuple[dict[str, str], set[Entry]]:
    """(uid -> kind, the keyed hashes of what these pairs' content is known by).

    Every table with URLs or hashes is read, of every key, until nothing more is found. In memory are a part and what
    was found. Tombstones are passed over: what was forgotten is not found again.
    """
    met = _Met({}, set(asked.url), {host_of_form(form) for form in asked.url}, set(asked.sha256))
    paths = [path for path in parquet_files(dataset, ("tables", "images")) if "/embeddings" not in path]
    looks = _looks(dataset, asked, paths)
    columns = [*_READ, *(["page_url"] if asked.domain else []), *(["expected_hash"] if asked.sha256 else [])]
    looked: dict[str, tuple[int, int, int]] = {}  # what had been met when a file was looked through last
    size = None
    while size != (size := met.size()):
        for path in paths:
            if looked.get(path) != (before := met.size()):
                rows = _rows(dataset, path, columns)
                if rows is not None:
                    _look_through(rows, asked, looks, met)
                looked[path] = before
    known: set[Entry] = {("uid", forgotten.keyed("uid", uid), None) for uid in met.found}
    for form in met.urls:
        known |= url_entries(forgotten, form)
    return met.found, known | {("sha256", forgotten.keyed("sha256", sha256), None) for sha256 in met.hashes}


def _look_through(rows: pa.Table, asked: Request, looks: set[str], met: _Met) -> None:
    """Note what a part has of what the request names, and of what was met."""
    uids, sha256, url = (text(rows, name) for name in ("uid", "sha256", "url"))
    places = Places(url)
    chosen = among(uids, met.found)
    for kind, mask in _named(rows, asked, looks, places):
        met.take(uids, mask, kind)
        chosen |= mask
    met.take_urls(url, chosen)
    same = places.forms_among(met.urls, met.hosts) & ~chosen
    met.take(uids, same, "the same URL")
    chosen |= same
    # Bytes of what was not stored, such as an error page, make nobody the same.
    stored = text(rows, "stored_key").is_valid().to_numpy(zero_copy_only=False)
    met.hashes |= set(sha256.filter(pa.array(chosen & stored)).to_pylist()) - {None, ""}
    same = among(sha256, met.hashes) & stored & ~chosen
    met.take(uids, same, "the same bytes")
    met.take_urls(url, same)


def _named(rows: pa.Table, asked: Request, looks: set[str], places: Places) -> Iterator[tuple[str, np.ndarray]]:
    """(kind, bool [n]) for each way in which the request itself names rows, in the order of KINDS."""
    uids, url = text(rows, "uid"), text(rows, "url")
    yield "uid", among(uids, asked.uid) & url.is_valid().to_numpy(zero_copy_only=False)  # a tombstone has a uid, too
    yield "url", places.forms_among(asked.url, {host_of_form(form) for form in asked.url})
    yield "domain", places.below(asked.domain) | Places(text(rows, "page_url")).below(asked.domain)
    expected = pc.utf8_lower(text(rows, "expected_hash"))
    written = {*asked.sha256, *(f"sha256:{digits}" for digits in asked.sha256)}
    yield "sha256", among(text(rows, "sha256"), asked.sha256) | among(expected, written)
    yield "like", among(uids, looks)


def parquet_files(dataset: Dataset, folders: tuple[str, ...]) -> list[str]:
    """All Parquet files below these folders, whether a manifest names them or not."""
    return [path for folder in folders for path in dataset.files(folder) if path.endswith(".parquet")]


def named_in_seen(dataset: Dataset, path: str, forgotten: Forgotten) -> np.ndarray:
    """bool [n]: which rows of a part of `seen` are refused files or pages."""
    table = dataset.read_table("seen", path.split("/")[2])
    source = table.about.get("source") if table else None
    files = dataset.read_part(path, ["file"])["file"].to_pylist()
    return np.array([forgotten.names(source, file) for file in files], bool)


def note_of(metadata: pq.FileMetaData) -> dict[str, Any] | None:
    """What a part notes of itself; None for a file that is no part."""
    text = (metadata.metadata or {}).get(b"vlmdata")
    return json.loads(text) if text else None


def metadata_of(dataset: Dataset, path: str) -> pq.FileMetaData:
    """Raises DataError for a damaged file."""
    try:
        with dataset.open(path) as file:
            return pq.read_metadata(file)
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"{dataset.path(path)}: {error}: nothing was forgotten, since nobody knows what is in it; `vlmdata verify` "
            "lists what is damaged"
        ) from error


def _rows(dataset: Dataset, path: str, columns: list[str]) -> pa.Table | None:
    """A table's rows that are no tombstones, of these columns; None where none of them tells content."""
    names = metadata_of(dataset, path).schema.to_arrow_schema().names
    if "uid" not in names or not {"url", "sha256"} & set(names):
        return None
    rows = dataset.read_part(path, [name for name in columns if name in names])
    return rows.filter(rows["url"].is_valid()) if "url" in names and rows["url"].null_count else rows


def _looks(dataset: Dataset, asked: Request, paths: list[str]) -> set[str]:
    """The uids whose stored image looks like one that was asked for: by a measured hash, or else by the image."""
    if not asked.looks:
        return set()
    looks = [(np.uint64(look), asked.distance) for look in sorted(asked.looks)]
    measured: dict[str, str] = {}  # a part of images -> one with the hashes of the same rows
    for path in paths:
        metadata = metadata_of(dataset, path)
        if "phash" in metadata.schema.to_arrow_schema().names and (note := note_of(metadata)):
            measured |= {made_from: path for made_from in note["inputs"] if made_from.startswith("images/")}
    found: set[str] = set()
    for path in (path for path in paths if path.startswith("images/")):
        rows = dataset.read_part(path, ["uid", "offset", "length"])
        hashes = np.zeros(rows.num_rows, np.uint64)
        known = np.zeros(rows.num_rows, bool)
        if path in measured:
            column = dataset.read_part(measured[path], ["uid", "phash"])
            if column["uid"].equals(rows["uid"]):
                known = column["phash"].is_valid().to_numpy()
                hashes = column["phash"].fill_null(pa.scalar(0, pa.uint64())).to_numpy().copy()
        hashes = _read(dataset, path, rows, hashes, known)
        found |= set(rows["uid"].filter(pa.array(near(hashes, looks))).to_pylist())
    return found


def _read(dataset: Dataset, path: str, rows: pa.Table, hashes: np.ndarray, known: np.ndarray) -> np.ndarray:
    """The hashes with those of the stored images that were not measured."""
    todo = np.flatnonzero(rows["length"].is_valid().to_numpy() & ~known)
    if not len(todo):
        return hashes
    seen: dict[int, int] = {}
    with dataset.open(f"{path.removesuffix('.parquet')}.tar") as tar:
        read = shards.reader(tar)
        for row, offset, length in zip(
            todo.tolist(), *(rows[name].take(todo).to_pylist() for name in ("offset", "length")), strict=True
        ):
            if offset not in seen:
                try:
                    seen[offset] = phash_of(read(offset, length))
                except ValueError as error:
                    raise DataError(f"{dataset.path(path)}: a stored image is damaged; try `vlmdata verify`") from error
            hashes[row] = seen[offset]
    return hashes
