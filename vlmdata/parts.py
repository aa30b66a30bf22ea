"""What a dataset's tables are made of: parts and files as manifests list them, their names and keys, and how they are
written as Parquet."""

import hashlib
import json
import uuid
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

FIRST_LAYER = 1
FOOTER = b"vlmdata"  # the key of a part's note among Parquet's metadata


@dataclass(frozen=True)
class Part:
    """A committed part. `path` is relative to the dataset; `also` are the files that came before it (an image tar)."""

    name: str
    path: str
    rows: int
    bytes: int
    sha256: str
    also: tuple["File", ...] = ()

    @property
    def layer(self) -> int:
        """Of a table whose parts lie in layers: which ingest, refresh or retry has added it."""
        return int(self.name.partition("-")[0])


@dataclass(frozen=True)
class File:
    """A file of the dataset with what it must be."""

    path: str
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Table:
    """One table under one key, as its manifest lists it."""

    table: str
    key: str
    parts: tuple[Part, ...]
    inputs: dict[str, str] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)

    @property
    def rows(self) -> int:
        return sum(part.rows for part in self.parts)

    @property
    def layer(self) -> int:
        """The newest one; the parts stand in the order of their names."""
        return self.parts[-1].layer

    @property
    def sha256(self) -> str:
        """Of the parts' hashes, in order: what a dependent table notes of its input."""
        return hashlib.sha256("".join(part.sha256 for part in self.parts).encode()).hexdigest()


def noted(tables: Iterable[Table]) -> dict[str, str]:
    """What a table that is made from these tables notes as its `inputs`."""
    return {f"{table.table}/{table.key}": table.sha256 for table in tables}


def make_key(stage: str, version: int, parameters: object, inputs: list[str]) -> str:
    """16 hex digits: which values a table holds.

    parameters: whatever changes values, as JSON can write it (options, rules' expressions, hashes of model files).
    inputs: the keys of the tables that the stage reads, so that two recipes never overwrite each other's parts.
    """
    text = json.dumps([stage, version, parameters, inputs], sort_keys=True, ensure_ascii=False)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def table_folder(table: str, key: str) -> str:
    """Where a table's parts lie: `tables/<table>/<key>`; images beside their tars in `images/<key>`; samples, whose
    key is the snapshot's number, in the snapshot."""
    if table == "samples":
        return f"{snapshot_folder(int(key))}/samples"
    return f"images/{key}" if table == "images" else f"tables/{table}/{key}"


def part_name(number: int, layer: int = FIRST_LAYER) -> str:
    """`000001-0000042`: layer and number."""
    return f"{layer:06d}-{number:07d}"


def snapshot_folder(number: int) -> str:
    return f"snapshots/{number:06d}"


def new_id() -> str:
    """A name that no other part of an append-only table has."""
    return uuid.uuid4().hex


def footer(inputs: dict[str, str], also: tuple[File, ...] = (), devices: Iterable[str] = ()) -> dict[bytes, bytes]:
    """What a part notes of itself: Parquet's key-value metadata, by which `current_part` knows it again."""
    note: dict[str, Any] = {"inputs": inputs, "also": [asdict(file) for file in also]}
    if ran := sorted(devices):
        note["devices"] = ran
    return {FOOTER: json.dumps(note, sort_keys=True).encode()}


def write_parquet(rows: pa.Table, path: Path, metadata: dict[bytes, bytes] | None = None) -> None:
    """Parquet with settings that give the same bytes for the same rows."""
    # pyarrow 25 writes nulls in fixed-size lists, and then cannot read them as such; as plain lists it can.
    fixed = any(pa.types.is_fixed_size_list(column.type) for column in rows.schema)
    plain = rows.replace_schema_metadata(None if fixed else metadata).combine_chunks()
    with pq.ParquetWriter(
        path,
        plain.schema,
        compression="zstd",
        use_dictionary=True,
        store_schema=not fixed,
        write_statistics=True,
        write_page_checksum=True,
    ) as writer:
        writer.write_table(plain, row_group_size=65_536)
        if fixed and metadata:  # which goes with the schema otherwise
            writer.add_key_value_metadata(metadata)


def part_from(data: dict[str, Any]) -> Part:
    """A part as a manifest or a worker's result has it in JSON."""
    return Part(**{**data, "also": tuple(File(**file) for file in data["also"])})


def table_from(data: dict[str, Any]) -> Table:
    """A table as its manifest has it."""
    return Table(
        data["table"], data["key"], tuple(part_from(part) for part in data["parts"]), data["inputs"], data["about"]
    )
