"""Duplicates whose values are equal, found by Beam's GroupByKey: rows go to buckets by their value's first digits, and
each bucket is grouped where the engine puts it. No process holds more than a part or a bucket."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from vlmdata import dedup, layers
from vlmdata.dataset import Dataset
from vlmdata.ordered import by_bucket, share
from vlmdata.parts import Part, Table, part_from
from vlmdata.pipelines.runner import shuffle
from vlmdata.recipe import Dedup, ExactDedup, PixelsDedup, Runner, UrlDedup
from vlmdata.schemas import table_schema

METHODS = (ExactDedup, PixelsDedup, UrlDedup)
BUCKET = 1_000_000  # rows in a bucket, about: some 100 MB


@dataclass(frozen=True)
class _Scatter:
    """The rows of a part that have a value, as one record batch a bucket: uid and the value, hex digits both."""

    dataset: str
    method: Dedup
    buckets: int

    def __call__(self, element: tuple[Part, pa.BooleanArray | None]) -> list[tuple[int, bytes]]:
        part, in_force = element
        (column,) = dedup.reads(self.method)[1]
        found = layers.read_in_force(Dataset(self.dataset), part, ["uid", column], in_force)
        found = dedup.compared(self.method, found.filter(found[column].is_valid())).combine_chunks()
        if not found.num_rows:
            return []
        bucket = bucket_of(found[column].to_numpy().astype(np.bytes_), self.buckets)
        tables = by_bucket(found, bucket, self.buckets)
        return [(number, _encoded(table)) for number, table in enumerate(tables) if table.num_rows]


@dataclass(frozen=True)
class _Group:
    """The groups of a bucket, in a part of their own."""

    dataset: str
    method: Dedup

    def __call__(self, element: tuple[int, list[bytes]]) -> dict[str, Any]:
        number, batches = element
        rows = pa.concat_tables([_decoded(batch) for batch in batches])
        (column,) = dedup.reads(self.method)[1]
        groups = dedup.groups(
            self.method, rows["uid"].to_numpy().astype("S32"), {column: rows[column].to_numpy().astype(np.bytes_)}
        )
        return asdict(Dataset(self.dataset).write_part("equal", "now", f"{number:07d}", groups, {}))


def groups(
    dataset: Dataset, runner: Runner, method: Dedup, table: Table, in_force: Mapping[str, pa.BooleanArray]
) -> pa.Table:
    """What `dedup.groups` gives of all rows in force. The driver reads the groups alone, which have only duplicates."""
    buckets = max(1, table.rows // BUCKET)
    elements = [(part, in_force.get(part.name)) for part in table.parts]
    scatter, group = _Scatter(dataset.absolute, method, buckets), _Group(dataset.absolute, method)
    results = shuffle(dataset, "equal", scatter, group, elements, runner)
    return collected(dataset, "equal", results)


def collected(dataset: Dataset, table: str, parts: list[dict[str, Any]]) -> pa.Table:
    """The rows of `duplicates` that buckets have written to parts of a table, which goes, by (dup_group, uid)."""
    found = [dataset.read_part(part_from(part)) for part in parts]
    dataset.remove(f"tables/{table}")
    every = pa.concat_tables(found) if found else table_schema("duplicates").empty_table()
    return every.sort_by([("dup_group", "ascending"), ("uid", "ascending")])


def bucket_of(values: np.ndarray, buckets: int) -> np.ndarray:
    """int64 [n]: for each of n hex numbers (bytes of 8 digits or more) the bucket that its first 8 digits lead to."""
    digits = values.view(np.uint8).reshape(len(values), values.itemsize)[:, :8].astype(np.int64)
    number = np.where(digits >= ord("a"), digits - ord("a") + 10, digits - ord("0")) @ (16 ** np.arange(7, -1, -1))
    return share(number, buckets)


def _encoded(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return sink.getvalue().to_pybytes()


def _decoded(batch: bytes) -> pa.Table:
    with pa.ipc.open_stream(batch) as reader:
        return reader.read_all()
