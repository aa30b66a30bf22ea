"""What must not come back: keyed hashes of uids, URLs, SHA-256s and domains, and perceptual hashes.

The key lies in a file of its own, so that the list can be given away: without the key nobody can try URLs against it.
"""

import hashlib
import io
import json
import os
import re
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlmdata.dataset import Dataset
from vlmdata.download.optout import domain_form, url_form
from vlmdata.download.stored import local_url
from vlmdata.errors import DataError

FORGOTTEN = "forgotten"  # the download_status, until the end of the stage, and the reason
LIST, KEY = "forgotten.parquet", "forgotten.key"
# hash: 16 bytes, of a phash its own 8; distance: differing bits up to which another one is the same picture's.
SCHEMA = pa.schema([("kind", pa.string()), ("hash", pa.binary()), ("distance", pa.int32())])
KINDS = ("uid", "url", "sha256", "domain", "host")
# Of nearly all URLs the host, without the work of bringing the whole into one form.
PLAIN = r"^(?i:https?)://(?P<host>[A-Za-z0-9.-]+)(?::[0-9]+)?(?:[/?#]|$)"  # as Arrow reads it, too
_PLAIN = re.compile(PLAIN)
_MOST_HOSTS = 200_000
Entry = tuple[str, str, int | None]  # kind, hex digits, distance


class Forgotten:
    """The list with its key; one that refuses nothing where the dataset has none."""

    def __init__(self, key: bytes = bytes(32), entries: Iterable[Entry] = ()) -> None:
        self.key = key
        self.entries = frozenset(entries)
        self._hashes = {kind: {bytes.fromhex(h) for k, h, _ in self.entries if k == kind} for kind in KINDS}
        self._hosts: dict[tuple[str, str], bool] = {}
        self._looks = [(np.uint64(int(h, 16)), distance) for k, h, distance in self.entries if k == "phash"]

    def __bool__(self) -> bool:
        return bool(self.entries)

    def keyed(self, kind: str, text: str) -> str:
        """A value's hash, 32 hex digits. A URL is to be in its `url_form`."""
        return self._digest(kind, text).hex()

    def has(self, kind: str, text: str | None) -> bool:
        """Whether a uid, URL, SHA-256 or domain is on the list."""
        if text is None or not self._hashes[kind]:
            return False
        if kind == "url" and (host := host_of(text)) is not None and not self._known("host", host):
            return False
        return self._digest(kind, url_form(text) if kind == "url" else text) in self._hashes[kind]

    def below(self, url: str | None) -> bool:
        """Whether a URL's host, or a domain above it, is on the list."""
        if not self._hashes["domain"] or url is None or "://" not in url:
            return False
        host = host_of(url) or domain_form(url) or ""
        return any(self._known("domain", domain) for domain in above(host))

    def rows(self, uids: Sequence[str], urls: Sequence[str | None], pages: Sequence[str | None]) -> np.ndarray:
        """bool [n]: which found pairs are refused."""
        if not self:
            return np.zeros(len(uids), bool)
        found = [
            self.has("uid", uid) or self.has("url", url) or self.below(url) or self.below(page)
            for uid, url, page in zip(uids, urls, pages, strict=True)
        ]
        return np.array(found, bool)

    def names(self, source: str | None, file: str) -> bool:
        """Whether a file of a source (its name, where it is known) is a refused image, or a page below a domain."""
        local = source is not None and self.has("url", local_url(source, file))
        return local or self.has("url", file) or self.below(file)

    def shows(self, jpeg: bytes) -> bool:
        """Whether a stored picture looks like one on the list."""
        if not self._looks:
            return False
        return bool(near(np.array([phash_of(jpeg)], np.uint64), self._looks)[0])

    def _known(self, kind: str, name: str) -> bool:
        """`has`, of hosts and domains, which many URLs have in common."""
        if len(self._hosts) > _MOST_HOSTS:
            self._hosts.clear()
        if (kind, name) not in self._hosts:
            self._hosts[kind, name] = self.has(kind, name)
        return self._hosts[kind, name]

    def _digest(self, kind: str, text: str) -> bytes:
        return hashlib.blake2b(
            f"{kind}\0{text}".encode("utf-8", "surrogatepass"), key=self.key, digest_size=16
        ).digest()


def load(dataset: Dataset) -> Forgotten:
    """The dataset's list. Raises DataError where it is there without its key."""
    if not dataset.exists(LIST):
        return Forgotten(dataset.read_bytes(KEY)) if dataset.exists(KEY) else Forgotten()
    if not dataset.exists(KEY):
        raise DataError(f"{dataset.path(KEY)} is gone: without it nothing of {LIST} can be refused; put it back")
    return _read(dataset.path(LIST), dataset.read_bytes(KEY), dataset.read_bytes(LIST))


def make_key(dataset: Dataset) -> None:
    """Write the key, once."""
    if not dataset.exists(KEY):
        dataset.write_bytes(KEY, os.urandom(32))
        if dataset.local:
            os.chmod(dataset.path(KEY), 0o600)


def content(forgotten: Forgotten) -> bytes:
    """The list as a Parquet file."""
    rows = [
        {"kind": kind, "hash": bytes.fromhex(digits), "distance": distance}
        for kind, digits, distance in sorted(forgotten.entries, key=lambda entry: (entry[0], entry[1], entry[2] or 0))
    ]
    note = {b"vlmdata": json.dumps({"check": forgotten.keyed("check", "")}).encode()}
    out = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA).replace_schema_metadata(note), out, compression="zstd")
    return out.getvalue()


def url_entries(forgotten: Forgotten, form: str) -> set[Entry]:
    """What refuses a URL in its `url_form`: the URL, and its host, by which most others are told apart."""
    host = forgotten.keyed("host", host_of_form(form))
    return {("url", forgotten.keyed("url", form), None), ("host", host, None)}


def host_of_form(form: str) -> str:
    """The host of a URL in its `url_form`."""
    return form.partition("/")[0].partition(":")[0].strip(".")


def host_of(url: str) -> str | None:
    """A URL's host in lower case, where that can be told without bringing the URL into its form."""
    found = _PLAIN.match(url)
    return found["host"].lower().strip(".") if found else None


def above(host: str) -> list[str]:
    """A host and every domain above it."""
    labels = host.split(".")
    return [".".join(labels[place:]) for place in range(len(labels))] if host else []


def phash_of(jpeg: bytes) -> int:
    """The perceptual hash of a stored picture. Raises ValueError for what is no JPEG."""
    import simplejpeg

    from vlmdata.signals.image import perceptual_hash  # it takes a second to import

    return perceptual_hash(simplejpeg.decode_jpeg(jpeg, "RGB"))


def near(hashes: np.ndarray, looks: Iterable[tuple[np.uint64, int | None]]) -> np.ndarray:
    """bool [n]: which perceptual hashes (uint64 [n]) are near to one of `looks`: (hash, differing bits). Flat images'
    hashes are alike whatever they show, so they are near to none."""
    from vlmdata.dedup.perceptual import telling

    found = np.zeros(len(hashes), bool)
    for look, distance in looks:
        found |= np.bitwise_count(hashes ^ look) <= (distance or 0)
    return found & telling(hashes)


@lru_cache(2)
def _read(path: str, key: bytes, file: bytes) -> Forgotten:
    try:
        table = pq.read_table(io.BytesIO(file), use_threads=False)
        check = json.loads((table.schema.metadata or {})[b"vlmdata"])["check"]
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:
        raise DataError(
            f"{path}: damaged ({error}); put a copy back, since nothing can be refused without it"
        ) from error
    rows = table.to_pylist()
    found = Forgotten(key, ((row["kind"], row["hash"].hex(), row["distance"]) for row in rows))
    if found.keyed("check", "") != check:
        raise DataError(f"{path}: {KEY} beside it is the key of another list; put its own back")
    return found
