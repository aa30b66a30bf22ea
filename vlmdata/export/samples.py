"""A snapshot's samples out of its shards, some at a time, for the formats that take the images along."""

import json
import tarfile
from collections.abc import Iterator
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from vlmdata.dataset import Dataset
from vlmdata.errors import DataError

_ROWS = 500


def shards_to_read(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    """The shards of one format: Parquet where there are any, since their columns have types. Raises DataError where
    there is none."""
    for kind in ("parquet", "webdataset"):
        found = [shard for shard in manifest["shards"] if shard["format"] == kind]
        if found:
            return found
    raise DataError("the snapshot has no shards, so there are no images to export")


def read_samples(dataset: Dataset, shard: dict[str, Any]) -> Iterator[pa.Table]:
    """A shard's samples in their order: `jpg` (bytes), `txt`, and the columns of their JSON."""
    with dataset.open(shard["path"]) as handle:
        if shard["format"] == "parquet":
            for batch in pq.ParquetFile(handle).iter_batches(_ROWS):
                yield pa.Table.from_batches([batch])
            return
        rows: list[dict[str, Any]] = []
        for members in _members(handle):
            rows.append({**json.loads(members["json"]), "jpg": members["jpg"], "txt": members["txt"].decode()})
            if len(rows) == _ROWS:
                yield pa.Table.from_pylist(rows)
                rows = []
        if rows:
            yield pa.Table.from_pylist(rows)


def _members(handle: Any) -> Iterator[dict[str, bytes]]:
    """The three members of each sample of a tar of ours, which stand together."""
    with tarfile.open(fileobj=handle, mode="r|") as tar:
        held: dict[str, bytes] = {}
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            held[member.name.rpartition(".")[2]] = file.read()
            if len(held) == 3:
                yield held
                held = {}
