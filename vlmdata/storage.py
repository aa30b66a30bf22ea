"""Files on any filesystem that fsspec knows: what all our readers and writers set for object stores.

Importing it is enough: fsspec's defaults are changed for the process, and what `FSSPEC_*` variables say stays.
"""

import math
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import fsspec

from vlmdata.errors import InputError, MachineError, VlmdataError, first_line

# s3fs' own 50 MiB, ten at once, would be half a gigabyte in memory for each shard that is written.
UPLOAD_CHUNK = 16 << 20
_MAX_CHUNKS = 10_000  # of one upload, says S3
_ATTEMPTS = 6
_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az"}


def _set_defaults() -> None:
    # Under one name for each: fsspec lets what stands under a later one (s3a) win over what a user has set (s3).
    for protocol in ("s3", "gs", "abfs"):
        # A folder's listing that is kept hides what other processes write meanwhile.
        fsspec.config.conf.setdefault(protocol, {}).setdefault("use_listings_cache", False)
    retries: dict[str, Any] = {}
    if "AWS_RETRY_MODE" not in os.environ:
        retries["mode"] = "standard"  # waits twice as long each time, as a 503 SlowDown asks for
    if "AWS_MAX_ATTEMPTS" not in os.environ:
        retries["total_max_attempts"] = _ATTEMPTS
    fsspec.config.conf["s3"].setdefault("config_kwargs", {}).setdefault("retries", retries)


_set_defaults()


@contextmanager
def reaching(url: str) -> Iterator[None]:
    """Raise MachineError, naming the URL, for whatever the client of a remote store raises in the block, save that
    a file is not there or is there already."""
    try:
        yield
    except (VlmdataError, FileNotFoundError, FileExistsError):
        raise
    except Exception as error:  # each store's client has kinds of its own
        raise MachineError(
            f"{url}: the store does not do what it is asked: {first_line(error)}; "
            "see that it is up and lets you in, and start the same command again"
        ) from error


def upload(fs: Any, aside: str, path: str, **conditions: Any) -> None:
    """Put a local file in its place on a remote filesystem, where nobody sees it before it is complete.

    conditions: `mode="create"`, where it must not be there yet, or what S3 takes besides.
    Raises FileExistsError, and InputError where there is no such bucket.
    """
    protocols = _protocols(fs)
    if protocols & {"s3", "gs"}:
        conditions["chunksize"] = max(UPLOAD_CHUNK, math.ceil(os.path.getsize(aside) / _MAX_CHUNKS))
    try:
        if protocols & _OBJECT_STORES:  # an object shows when its upload is complete
            fs.put_file(aside, path, **conditions)
        else:
            _upload_and_rename(fs, aside, path, bool(conditions))
    except FileNotFoundError as error:
        raise InputError(f"{fs.unstrip_protocol(path)}: {first_line(error)}: it has to be made first") from error


def _upload_and_rename(fs: Any, aside: str, path: str, create: bool) -> None:
    """As `upload`, where a file shows from its first byte on."""
    partial = f"{path}.{uuid.uuid4().hex}.partial"
    fs.makedirs(path.rsplit("/", 1)[0], exist_ok=True)
    fs.put_file(aside, partial)
    if fs.exists(path):
        if create:
            fs.rm(partial)
            raise FileExistsError(path)
        fs.rm(path)  # HDFS renames onto nothing that is there
    fs.mv(partial, path)


def is_s3(fs: Any) -> bool:
    """Whether S3's client is what asks; the server may be another's."""
    return "s3" in _protocols(fs)


def _protocols(fs: Any) -> set[str]:
    return {fs.protocol} if isinstance(fs.protocol, str) else set(fs.protocol)
