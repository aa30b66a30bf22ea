"""Which pairs a request means: those that it names, and all of the same URL or stored bytes as one of these."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlmdata import shards
from vlmdata.dataset import Dataset
from vlmdata.download.forgotten import Entry, Forgotten, above, host_of, host_of_form, near, phash_of, url_entries
from vlmdata.download.optout import domain_form, url_form
from vlmdata.errors import DataError
from vlmdata.forget.request import Request

# Of each uid how it was found, in the order in which this is told.
KINDS = ("uid", "url", "domain", "sha256", "like", "the same URL", "the same bytes", "refused by the download")
_READ = ("uid", "url", "page_url", "expected_hash", "sha256", "stored_key", "offset", "length")


def find(dataset: Dataset, asked: Request, forgotten: Forgotten) -> tuple[dict[str, str], set[Entry]]:
    """(uid -> kind, the keyed hashes of what these pairs' content is known by).

    Every table with URLs or hashes is read, of every key, until nothing more is found. In memory are a part and what
    was found. Tombstones are passed over: what was forgotten is not found again.
    """
    found: dict[str, str] = {}
    urls, hashes = set(asked.url), set(asked.sha256)
    hosts = {host_of_form(form) for form in urls}
    paths = [path for path in parquet_files(dataset, ("tables", "images")) if "/embeddings" not in path]
    looks = _looks(dataset, asked, paths)
    size = None
    while size != (size := (len(found), len(urls), len(hashes))):
        for path in paths:
            rows = _rows(dataset, path)
            if rows is None:
                continue
            for row in rows:
                uid, url, sha256 = row["uid"], row.get("url"), row.get("sha256")
                host = host_of(url) if url else None
                # Few URLs are worth the work of bringing them into their form.
                form = url_form(url) if url and (host is None or host in hosts) else None
                expected = (row.get("expected_hash") or "").lower().removeprefix("sha256:")
                kind = found.get(uid)
                if kind is None:
                    kind = _kind(asked, uid, form, url, row.get("page_url"), {sha256, expected}, uid in looks)
                if kind is None and form in urls:
                    kind = "the same URL"
                # Bytes of what was not stored, such as an error page, make nobody the same.
                if kind is None and row.get("stored_key") is not None and sha256 in hashes:
                    kind = "the same bytes"
                if kind is None:
                    continue
                found.setdefault(uid, kind)
                if url:
                    urls.add(url_form(url))
                    hosts.add(host_of_form(url_form(url)))
                hashes |= {sha256} if row.get("stored_key") is not None and sha256 else set()
    known: set[Entry] = {("uid", forgotten.keyed("uid", uid), None) for uid in found}
    for form in urls:
        known |= url_entries(forgotten, form)
    return found, known | {("sha256", forgotten.keyed("sha256", sha256), None) for sha256 in hashes}


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


def _rows(dataset: Dataset, path: str) -> Iterator[dict[str, Any]] | None:
    """A table's rows that are no tombstones, of the columns that tell content; None where it has none of them."""
    names = metadata_of(dataset, path).schema.to_arrow_schema().names
    if "uid" not in names or not {"url", "sha256"} & set(names):
        return None
    rows = dataset.read_part(path, [name for name in _READ if name in names])
    if "url" in names:
        rows = rows.filter(rows["url"].is_valid())
    return iter(rows.to_pylist())


def _kind(
    asked: Request, uid: str, form: str | None, url: str | None, page: str | None, hashes: set[Any], looks: bool
) -> str | None:
    """How the request itself names a row."""
    if url is not None and uid in asked.uid:  # a tombstone of `images` has its uid, too
        return "uid"
    if form in asked.url:
        return "url"
    if asked.domain and any(
        domain in asked.domain
        for each in (url, page)
        if each
        for domain in above(host_of(each) or domain_form(each) or "")
    ):
        return "domain"
    if hashes & asked.sha256:
        return "sha256"
    return "like" if looks else None


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
