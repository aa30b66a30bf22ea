"""One file without what is forgotten: a table's part, a tar of stored images, a shard."""

import io
import json
import shutil
import tarfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlmdata.dataset import Dataset
from vlmdata.download.forgotten import FORGOTTEN

_CHUNK = 1 << 20
# What of a tombstone is not null beside its uid, where a table has the column and it can be so.
VERDICT = {"kept": False, "reason": FORGOTTEN, "copies": 0}
PLACES = ("part", "row")
Captions = Callable[[list[str]], list[str]]


def bury(rows: pa.Table, gone: np.ndarray) -> pa.Table:
    """Rows with those of `gone` (bool [n]) as tombstones: uid and place stay, all else is null."""
    if not gone.any():
        return rows
    order = pa.array(np.arange(rows.num_rows), mask=gone)
    buried = rows.take(order)  # values that no row has are not taken along
    stay = ["uid", *(name for name in PLACES if name in rows.column_names and "dup_group" in rows.column_names)]
    for name in stay:
        buried = _with(buried, name, rows[name])
    if set(VERDICT) <= set(rows.column_names):
        for name, value in VERDICT.items():
            filled = pc.if_else(pa.array(gone), pa.scalar(value, rows.schema.field(name).type), buried[name])
            buried = _with(buried, name, filled)
    return buried


def with_captions(rows: pa.Table, captions: Captions) -> tuple[pa.Table, np.ndarray]:
    """Samples whose captions, behind the own one, are those that `captions` leaves; and which rows that has changed."""
    old = rows["captions"].to_pylist()
    new = [captions(texts) if texts and len(texts) > 1 else texts for texts in old]
    changed = np.array([a != b for a, b in zip(old, new, strict=True)], bool)
    if not changed.any():
        return rows, changed
    return _with(rows, "captions", pa.array(new, rows.schema.field("captions").type)), changed


def rewrite_part(
    dataset: Dataset, path: str, aside: Path, edit: Callable[[pa.Table], pa.Table], note: dict[str, Any] | None
) -> None:
    """Write a Parquet file again, one row group after the other: pages, dictionaries and statistics are made of what
    `edit` returns. note: what the part then notes of itself."""
    with dataset.open(path) as handle, pq.ParquetFile(handle) as file:
        metadata = dict(file.metadata.metadata or {})
        stored = metadata.pop(b"ARROW:schema", None)
        if note is not None:
            metadata[b"vlmdata"] = json.dumps(note, sort_keys=True).encode()
        schema = file.schema_arrow.with_metadata(metadata)
        kept = stored is not None
        with pq.ParquetWriter(aside, schema, compression="zstd", store_schema=kept, write_page_checksum=True) as writer:
            for group in range(file.num_row_groups):
                rows = edit(file.read_row_group(group, use_threads=False))
                if rows.num_rows:
                    writer.write_table(rows.cast(schema).combine_chunks())


def blank(dataset: Dataset, path: str, aside: Path, members: Collection[tuple[str, int, int]]) -> None:
    """Copy a tar of stored images with some members, each (uid, offset, length), as `<uid>.forgotten` of zeros in whole
    blocks: the others keep their places."""
    with dataset.open(path) as source, aside.open("wb") as out:
        shutil.copyfileobj(source, out, _CHUNK)
    with aside.open("r+b") as out:
        for uid, offset, length in members:
            member = tarfile.TarInfo(f"{uid}.{FORGOTTEN}")
            member.size = -(-length // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE  # the very length would tell of it
            out.seek(offset - tarfile.BLOCKSIZE)
            out.write(member.tobuf(tarfile.USTAR_FORMAT))
            out.write(bytes(member.size))


def members(dataset: Dataset, path: str) -> Iterator[tuple[str, str, int, int]]:
    """(uid, ending, offset, length) of each member of a tar of ours; `<uid>_2.jpg` is the uid's, too."""
    with dataset.open(path) as handle, tarfile.open(fileobj=handle, mode="r:") as tar:
        for member in tar:
            stem, _, ending = member.name.partition(".")
            yield stem.partition("_")[0], ending, member.offset_data, member.size


def rewrite_tar_shard(
    dataset: Dataset, path: str, aside: Path, gone: Collection[str], trimmed: Collection[str], captions: Captions
) -> int:
    """Write a WebDataset shard without some uids; how many samples are left. trimmed: uids whose captions change."""
    left = 0
    with (
        dataset.open(path) as handle,
        tarfile.open(fileobj=handle, mode="r|") as tar,
        tarfile.open(aside, "w", format=tarfile.USTAR_FORMAT) as out,
    ):
        for member in tar:
            uid = member.name.partition(".")[0].partition("_")[0]
            if uid in gone:
                continue
            file = tar.extractfile(member)
            assert file is not None
            content = file.read()
            if member.name.endswith(".json"):
                left += 1
                if uid in trimmed:
                    document = json.loads(content)
                    document["captions"] = captions(document["captions"])
                    content = json.dumps(document, ensure_ascii=False, allow_nan=False).encode()
            again = tarfile.TarInfo(member.name)
            again.size, again.mode = len(content), member.mode
            out.addfile(again, io.BytesIO(content))
    return left


def rewrite_parquet_shard(
    dataset: Dataset, path: str, aside: Path, gone: pa.Array, trimmed: Collection[str], captions: Captions
) -> int:
    """As `rewrite_tar_shard`, of a Parquet shard."""
    left = 0

    def edit(rows: pa.Table) -> pa.Table:
        nonlocal left
        rows = rows.filter(pc.invert(pc.is_in(rows["uid"], gone)))
        if trimmed and "captions" in rows.column_names:
            rows, _ = with_captions(rows, captions)
        left += rows.num_rows
        return rows

    rewrite_part(dataset, path, aside, edit, None)
    return left


def _with(rows: pa.Table, name: str, values: pa.Array | pa.ChunkedArray) -> pa.Table:
    place = rows.schema.get_field_index(name)
    return rows.set_column(place, rows.schema.field(place), values)
