"""Parquet shards as tars: a training reads single samples by place, which a Parquet file does not give."""

import hashlib
import json
import os
import tarfile
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlmdata import shards
from vlmdata.errors import DataError

_ROWS = 256  # of a shard in memory at once


def spooled(path: str, folder: Path) -> str:
    """The tar of a Parquet shard (uid, jpg, txt, others for the JSON), made in `folder` where it is not there yet.

    A uid that is not ours (hex digits, `_2` behind a copy's) is replaced by the row's number, since it becomes a file's
    name. Raises DataError, naming the shard, for one that is damaged or has no jpg or txt.
    """
    fs, inside = fsspec.core.url_to_fs(path)
    state = f"{path}\0{fs.size(inside)}\0{fs.ukey(inside)}"
    made = folder / "spool" / f"{hashlib.sha256(state.encode()).hexdigest()[:16]}.tar"
    if made.exists():
        return str(made)
    made.parent.mkdir(parents=True, exist_ok=True)
    partial = made.with_suffix(".partial")
    try:
        with fs.open(inside, "rb") as file:
            rows = pq.ParquetFile(file)
            missing = {"jpg", "txt"} - set(rows.schema_arrow.names)
            if missing:
                raise DataError(
                    f"{path}: a shard has the columns jpg and txt; {', '.join(sorted(missing))} is not there"
                )
            with tarfile.open(partial, "w", format=tarfile.USTAR_FORMAT) as tar:
                first = 0
                for batch in rows.iter_batches(_ROWS):
                    shards.add_samples(tar, _samples(pa.table(batch), first))
                    first += len(batch)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: the shard cannot be read: {error}") from error
    os.replace(partial, made)
    return str(made)


def _samples(rows: pa.Table, first: int) -> pa.Table:
    """Key, picture, caption and JSON of some rows; `first` is the number of the first one."""
    numbers = pa.array([f"{number:09d}" for number in range(first, first + len(rows))])
    key = numbers
    if "uid" in rows.column_names:
        ours = pc.fill_null(pc.match_substring_regex(rows["uid"], r"^[0-9a-f]{1,32}(_[0-9]+)?$"), False)
        key = pc.if_else(ours, rows["uid"], numbers)
    others = rows.drop_columns(["jpg", "txt"])
    documents = [json.dumps(row, ensure_ascii=False, default=str) for row in others.to_pylist()]
    return pa.table({"key": key, "jpg": rows["jpg"], "txt": pc.fill_null(rows["txt"], ""), "json": documents})
