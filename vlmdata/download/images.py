"""One part from `pairs` to `images`: one job a URL, the tar in the order of the pairs, one row a pair."""

import hashlib
import os
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from typing import IO, Any

import pyarrow as pa

from vlmdata.download.consent import refusal
from vlmdata.download.forgotten import FORGOTTEN
from vlmdata.download.known import KNOWN
from vlmdata.download.optout import LISTED
from vlmdata.download.seams import MISMATCH, NO_HASH, Job, run
from vlmdata.download.stored import Stored, find, is_local
from vlmdata.download.terms import Terms
from vlmdata.download.video import in_order
from vlmdata.errors import DataError, MachineError
from vlmdata.schemas import table_schema

_HASHES = ("sha256", "md5", "sha1", "sha512")
_Key = tuple[str, str | None]
_No = tuple[str | None, str | None] | None
Told = Callable[[str, str, str | None], None]


def download(
    pairs: pa.Table, tar: str | os.PathLike[str], stored_tar: str, terms: Terms, told: Told | None = None
) -> tuple[pa.Table, pa.Table]:
    """See `vlmdata.download.download_part`."""
    try:
        with tempfile.TemporaryFile(dir=os.path.dirname(os.fspath(tar)) or ".") as spool:
            ((images, observations),) = fetch([pairs], spool, terms, told)
            with open_tar(tar) as file:
                return pack(images, spool, file, stored_tar), observations
    except OSError as error:
        raise MachineError(f"{os.fspath(tar)}: the images cannot be written: {error.strerror or error}") from error


def fetch(
    parts: list[pa.Table], spool: IO[bytes], terms: Terms, told: Told | None = None
) -> list[tuple[pa.Table, pa.Table]]:
    """(images, observations) of each table of `pairs`, all fetched side by side. The JPEGs are in the spool, in the
    order in which they came, and `offset` is a place there; `stored_tar` is null. See `download_part` for the rest."""
    wanted = []
    for pairs in parts:
        refused = _refused(pairs, terms)
        stored = [find(source, url, terms.roots) for source, url in _rows(pairs, "source", "fetch_url")]
        keys = _keys(pairs, stored)
        wanted.append((pairs, refused, keys, _jobs(pairs, refused, keys, stored)))
    todo = [job for *_, jobs in wanted for job in jobs.values()]
    if todo:
        run(in_order(todo), spool, terms, told)
    fetched = []
    for pairs, refused, keys, jobs in wanted:
        of_rows = [jobs[key] if no is None else None for no, key in zip(refused, keys, strict=True)]
        fetched.append((_images(pairs, refused, of_rows), _observations(pairs, of_rows)))
    return fetched


def open_tar(path: str | os.PathLike[str]) -> tarfile.TarFile:
    """A new tar for `pack`."""
    return tarfile.open(path, "w", format=tarfile.USTAR_FORMAT)


def pack(images: pa.Table, spool: IO[bytes], tar: tarfile.TarFile, stored_tar: str) -> pa.Table:
    """Copy a part's JPEGs from the spool into the tar, in the order of the rows that they are named after. Returns the
    rows with their places in the tar, whose name is to be `stored_tar`."""
    keys = images["stored_key"].to_pylist()
    spans = zip(images["offset"].to_pylist(), images["length"].to_pylist(), strict=True)
    spooled = {key: span for key, span in zip(keys, spans, strict=True) if key is not None}
    places: dict[str | None, int | None] = {None: None}
    for uid in images["uid"].to_pylist():
        if uid in spooled:
            offset, length = spooled[uid]
            member = tarfile.TarInfo(f"{uid}.jpg")  # its owner and times are 0
            member.size = length
            spool.seek(offset)
            places[uid] = tar.offset + tarfile.BLOCKSIZE
            tar.addfile(member, spool)
    for name, values in (
        ("stored_tar", [None if key is None else stored_tar for key in keys]),
        ("offset", [places[key] for key in keys]),
    ):
        place = images.schema.get_field_index(name)
        images = images.set_column(place, images.schema.field(place), pa.array(values, images.schema.types[place]))
    return images


def _rows(pairs: pa.Table, *names: str) -> Iterator[tuple[Any, ...]]:
    return zip(*(pairs[name].to_pylist() for name in names), strict=True)


def _refused(pairs: pa.Table, terms: Terms) -> list[_No]:
    """For each pair: None, or why nothing is asked for, as (status, words); a tombstone has neither."""
    hashes = [(text or "").strip().lower().partition(":") for text in pairs["expected_hash"].to_pylist()]
    of_bytes = [digest if kind == "sha256" else None for kind, _, digest in hashes]
    listed = terms.optout.rows(pairs["url"].to_pylist(), pairs["page_url"].to_pylist(), of_bytes).tolist()
    refused: list[_No] = []
    rows = zip(pairs["url"].to_pylist(), pairs["page_consent"].to_pylist(), listed, hashes, strict=True)
    for url, said, named, (kind, _, digest) in rows:
        word = refusal(said, terms.consent.respect)
        if url is None:  # a tombstone
            refused.append((None, None))
        elif kind == "sha256" and terms.forgotten.has("sha256", digest):
            refused.append((FORGOTTEN, None))
        elif word:
            refused.append((word, f"the page says no ({word})"))
        elif named:
            refused.append(("optout", LISTED))
        else:
            refused.append(("optout", KNOWN) if terms.known.has({kind: digest}) else None)
    return refused


def _keys(pairs: pa.Table, stored: list[Stored | None]) -> list[_Key]:
    """For each pair the key of its job, which the rows of one URL share; but what a source holds already, and what is
    no web address, serves that source's rows alone: a tar does not say what another's URL shows, nor that it may be
    taken from there."""
    urls = list(_rows(pairs, "url", "source"))
    held = {row for row, its in zip(urls, stored, strict=True) if its is not None}
    return [
        (url, source if (url is not None and is_local(url)) or (url, source) in held else None) for url, source in urls
    ]


def _jobs(pairs: pa.Table, refused: list[_No], keys: list[_Key], stored: list[Stored | None]) -> dict[_Key, Job]:
    """Key -> job, in the order of `pairs`, for the keys of which at least one pair is not refused."""
    jobs: dict[_Key, Job] = {}
    rows = _rows(pairs, "uid", "url", "source", "fetch_url", "expected_hash")
    for no, key, its, (uid, url, source, fetch_url, expected) in zip(refused, keys, stored, rows, strict=True):
        if no is None:
            job = jobs.setdefault(key, Job(url, fetch_url or url, uid, url.startswith(f"{source}:/")))
            job.expected.add(_expected(uid, expected))
            if its is not None and (job.stored is None or job.stored.status != "success"):
                job.fetch_url, job.stored = fetch_url, its  # what one of the rows brings serves them all
    return jobs


def _expected(uid: str, text: str | None) -> str:
    """`sha256:<hex>` in lower case, or NO_HASH. Raises DataError."""
    if not text:
        return NO_HASH
    kind, _, digest = text.strip().lower().partition(":")
    if kind not in _HASHES or len(digest) != 2 * hashlib.new(kind, usedforsecurity=False).digest_size:
        raise DataError(
            f"pairs, uid {uid}: expected_hash {text[:100]!r} is not `sha256:<hex digits>` (or md5, sha1, sha512)"
        )
    return f"{kind}:{digest}"


def _images(pairs: pa.Table, refused: list[_No], jobs: list[Job | None]) -> pa.Table:
    rows = [
        _row(job, _expected(uid, expected)) if no is None else {"download_status": no[0], "error": no[1]}
        for no, job, (uid, expected) in zip(refused, jobs, _rows(pairs, "uid", "expected_hash"), strict=True)
    ]
    schema = table_schema("images")
    columns = [pairs["uid"].combine_chunks()]
    columns += [pa.array([row.get(column.name) for row in rows], column.type) for column in list(schema)[1:]]
    return pa.table(columns, schema=schema)


def _row(job: Job | None, expected: str) -> dict[str, Any]:
    assert job is not None
    assert job.answer is not None
    status, error = job.status, job.error
    if status == FORGOTTEN:
        return {"download_status": FORGOTTEN}
    if status != "optout" and job.digests and not job.fits(expected):
        # The URL's other rows may expect just these bytes: each row is judged by its own hash.
        status, error = "hash_mismatch", MISMATCH
    row: dict[str, Any] = {
        "consent": job.answer.consent,
        "download_status": status,
        "error": error,
        "sha256": job.digests.get("sha256"),
        "mime": job.mime,
        "received_bytes": job.received,
    }
    if job.original and status != "hash_mismatch":
        row["original_width"], row["original_height"] = job.original
    if status == "success":
        assert job.size is not None
        row["width"], row["height"] = job.size
        row |= job.facts._asdict()
        row |= {"stored_key": job.key, "offset": job.place, "length": job.length}
    return row


def _observations(pairs: pa.Table, jobs: list[Job | None]) -> pa.Table:
    """When each row's image was asked for; null for what was not."""
    times = [job.answer.fetched_at if job and job.answer else None for job in jobs]
    schema = table_schema("observations")
    fetched = pa.array(times, schema.field("fetched_at").type)
    crawled = pa.nulls(pairs.num_rows, schema.field("crawled_at").type)
    return pa.table([pairs["uid"].combine_chunks(), crawled, fetched], schema=schema)
