"""A pool of DataComp's metadata (CommonPool): Parquet files whose signals are there already, with npz files beside them
that hold the features (https://github.com/mlfoundations/datacomp).

The pool's uid becomes `source_id`, which `vlmdata export --to datacomp` writes. Its other columns become
`source_original_width`, `source_original_height`, `source_clip_b32_similarity_score`,
`source_clip_l14_similarity_score`, `source_face_bboxes` (JSON: a list of [left, top, right, bottom], shares of the
sides) and whatever else a later pool brings. `source_file` and `source_row` say where the pair's row is: the name
without its ending, which is the npz's too, and the row, from 0.
"""

import json
from collections.abc import Collection, Iterator
from functools import partial

import pyarrow as pa

from vlmdata.recipe import DatacompSource, TableSource
from vlmdata.sources import table
from vlmdata.sources.files import name_of
from vlmdata.sources.formats import File, parquet_batches, parquet_columns, table_files
from vlmdata.sources.presets import PRESETS

VERSION = 1
_PLACE = {"file": pa.string(), "row": pa.int64()}


def check(source: DatacompSource) -> None:
    """Refuse a path without Parquet files, and a first file without uid, url and text. Raises InputError."""
    table.check(*_table(source))


def signals(source: DatacompSource) -> pa.Schema:
    """The columns that the first file has beside uid, url, text and sha256, then `source_file` and `source_row`."""
    return table.signals(*_table(source))


def states(source: DatacompSource) -> dict[str, str | None]:
    """As those of a table."""
    return table.file_states(_files(source))


def read(
    source: DatacompSource, scratch: str, verbatim: Collection[str] = (), chosen: Collection[str] | None = None
) -> Iterator[pa.RecordBatch]:
    """The rows of all files, in the order of their paths; otherwise as `table.read`."""
    plain, inputs = _table(source)
    yield from table.read(plain, scratch, verbatim, inputs, chosen)


def _files(source: DatacompSource) -> list[File]:
    whole = any(sign in source.path for sign in "*?[") or source.path.endswith(".parquet")
    return table_files(source.name, "path", source.path if whole else f"{source.path.rstrip('/')}/*.parquet")


def _table(source: DatacompSource) -> tuple[TableSource, list[table.Input]]:
    """The pool as a list of URLs, and its files."""
    files = _files(source)
    mapped = {name for names in PRESETS["datacomp"].columns.values() for name in names}
    keep = [name for name in _columns(files[0]).names if name not in mapped]
    plain = TableSource(kind="table", name=source.name, path=source.path, preset="datacomp", source_id="uid", keep=keep)
    return plain, [table.Input(file.shown, partial(_columns, file), partial(_batches, file)) for file in files]


def _columns(file: File) -> pa.Schema:
    """The file's columns, nested ones as text."""
    columns = [column.with_type(_plain(column.type)) for column in parquet_columns(file) if column.name not in _PLACE]
    return pa.schema([*columns, *_PLACE.items()])


def _batches(file: File, names: list[str]) -> Iterator[pa.RecordBatch]:
    stem = name_of(file.path).rpartition(".")[0]
    row = 0
    for batch in parquet_batches(file, [name for name in names if name not in _PLACE]):
        place = {
            "file": pa.array([stem] * batch.num_rows),
            "row": pa.array(range(row, row + batch.num_rows), pa.int64()),
        }
        columns = {name: place[name] if name in place else _as_plain(batch.column(name)) for name in names}
        row += batch.num_rows
        yield pa.RecordBatch.from_pydict(columns)


def _plain(kind: pa.DataType) -> pa.DataType:
    return pa.string() if pa.types.is_nested(kind) else kind


def _as_plain(column: pa.Array) -> pa.Array:
    """A nested column as JSON, null where it is null."""
    if not pa.types.is_nested(column.type):
        return column
    return pa.array([None if value is None else json.dumps(value) for value in column.to_pylist()], pa.string())
