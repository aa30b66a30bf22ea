"""Evaluation sets, against which a pool is decontaminated: folders, tars and Parquet files of images, or hashes and
vectors alone. Images are measured by the code and the options that measure the pool.
"""

import hashlib
import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlmdata import recipe, signals
from vlmdata.download import lists
from vlmdata.errors import DataError, InputError
from vlmdata.schemas import conform, table_schema
from vlmdata.sources import files, tar

log = logging.getLogger(__name__)

VERSION = 1
WHERE = "dedup.decontaminate.against"
IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif")
_VECTORS = (".npy", ".npz")
_ENDINGS = (*IMAGES, ".tar", ".parquet", *_VECTORS)
_PIECE = 512  # images that are measured as one part
_BATCH = 64  # images in memory at once, as they came
_IMAGE_COLUMNS = ("image", "jpg", "jpeg", "png", "webp", "img", "image_bytes", "bytes")
_VECTOR_COLUMNS = ("vector", "vectors", "embedding", "embeddings")


@dataclass(frozen=True)
class Piece:
    """Some of an evaluation set: images of one file, or files that are images.

    items: (filesystem, path) of image files; (name, offset, size) of a tar's members; the number of a Parquet file's
    row group; nothing for a file of vectors.
    """

    file: lists.File
    items: tuple[Any, ...] = ()


def find(paths: Sequence[str], where: str = WHERE) -> list[lists.File]:
    """The files of evaluation sets, sorted within each path. where: the option that names them.

    Folders are read to their depth; what is no image, tar, Parquet, npy or npz file in one is passed over.
    Raises InputError where a path leads to nothing of these.
    """
    found: list[lists.File] = []
    for path in paths:
        some = _below(path, where) or files.find(path, where)
        usable = [file for file in some if files.name_of(file[1]).endswith(_ENDINGS)]
        if not usable:
            raise InputError(f"{where}: {path!r} holds no file that ends in {' '.join(_ENDINGS)}")
        found += usable
    return found


def _below(path: str, where: str) -> list[lists.File]:
    """All files of a folder; none where the path is no folder."""
    import fsspec

    if path.lower().startswith(("http://", "https://")):
        return []
    try:
        filesystem, folder = fsspec.core.url_to_fs(path)
        return [(filesystem, file) for file in sorted(filesystem.find(folder))] if filesystem.isdir(folder) else []
    except (ImportError, ValueError, OSError) as error:
        raise InputError(f"{where}: {path!r} cannot be read: {error}") from error


def pieces(found: list[lists.File]) -> list[Piece]:
    """The files cut into what is measured at once. Raises DataError for a tar or Parquet file that is broken."""
    cut: list[Piece] = []
    single = [file for file in found if files.name_of(file[1]).endswith(IMAGES)]
    cut += [Piece(some[0], some) for some in _slices(single)]
    for file in found:
        name = files.name_of(file[1])
        if name.endswith(".tar"):
            with _opened(file) as handle:
                members = [(m.name, m.offset, m.size) for m in tar.members(handle) if m.name.lower().endswith(IMAGES)]
            cut += [Piece(file, some) for some in _slices(members)]
        elif name.endswith(".parquet"):
            with _opened(file) as handle:
                cut += [Piece(file, (group,)) for group in range(pq.ParquetFile(handle).num_row_groups)]
        elif name.endswith(_VECTORS):
            cut.append(Piece(file))
    return cut


def _slices(items: list[Any]) -> Iterator[tuple[Any, ...]]:
    for start in range(0, len(items), _PIECE):
        yield tuple(items[start : start + _PIECE])


@contextmanager
def _opened(file: lists.File) -> Iterator[Any]:
    """An evaluation file; what is wrong with its bytes is told with its name."""
    filesystem, path = file
    try:
        with filesystem.open(path, "rb") as handle:
            yield handle
    except (tar.BrokenTar, pa.ArrowException, OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error


def images(piece: Piece, max_bytes: int) -> Iterator[tuple[str, bytes]]:
    """The images of a piece with their names, which tell the file and the place in it; the first `max_bytes` + 1 bytes
    of what is longer."""
    path = piece.file[1]
    if piece.items and isinstance(piece.items[0], int):
        yield from _parquet_images(piece)
    elif piece.items and len(piece.items[0]) == 3:
        with _opened(piece.file) as handle:
            for name, offset, size in piece.items:
                handle.seek(offset)
                yield f"{_tail(path)}/{name.encode('utf-8', 'replace').decode()}", handle.read(min(size, max_bytes + 1))
    else:
        for file in piece.items:
            with _opened(file) as handle:
                yield _tail(file[1], 2), handle.read(max_bytes + 1)


def _parquet_images(piece: Piece) -> Iterator[tuple[str, bytes]]:
    with _opened(piece.file) as handle:
        parquet = pq.ParquetFile(handle)
        (group,) = piece.items
        column = _image_column(parquet.schema_arrow)
        row = sum(parquet.metadata.row_group(before).num_rows for before in range(group))
        if column is None:  # hashes and vectors alone
            return
        for batch in parquet.iter_batches(_BATCH, row_groups=[group], columns=[column], use_threads=False):
            values = batch.column(column)
            content = values.field("bytes") if pa.types.is_struct(values.type) else values
            for data in content.to_pylist():
                yield f"{_tail(piece.file[1])}#{row}", data or b""
                row += 1


def _tail(path: str, most: int = 1) -> str:
    return "/".join(path.rstrip("/").split("/")[-most:])


def _image_column(schema: pa.Schema) -> str | None:
    """The column of images' bytes, or of structs with `bytes` as `datasets` writes them."""

    def holds(kind: pa.DataType) -> bool:
        if pa.types.is_struct(kind):
            return kind.get_field_index("bytes") >= 0 and holds(kind.field("bytes").type)
        return pa.types.is_binary(kind) or pa.types.is_large_binary(kind)

    named = [name for name in _IMAGE_COLUMNS if name in schema.names and holds(schema.field(name).type)]
    return next(iter([*named, *(field.name for field in schema if holds(field.type))]), None)


def measure(
    piece: Piece, download: recipe.Download, measurements: list[signals.Measurement], vectors: str | None, width: int
) -> pa.Table:
    """The table `evaluation` of a piece: what is compared of each of its images.

    The images are resized and encoded as `download` has it, and measured by the pool's signals. vectors: the table
    with the embeddings, None where none are compared; width: how long they are. What is no image that can be read has
    its sha256 alone, and is told in the log.
    Raises InputError for a file that holds nothing that can be compared, and for vectors of another length.
    """
    schema = table_schema("evaluation", dim=width)
    name = files.name_of(piece.file[1])
    if name.endswith(_VECTORS):
        return _table(schema, *_named_rows(piece.file, _vectors(piece.file, width)))
    if name.endswith(".parquet"):
        with _opened(piece.file) as handle:
            columns = pq.ParquetFile(handle).schema_arrow
        if _image_column(columns) is None:
            return _hashes(piece, columns, schema, vectors is not None)
    some: list[tuple[str, bytes]] = []
    tables = []
    for image in images(piece, download.max_bytes):
        some.append(image)
        if len(some) == _BATCH:
            tables.append(_measured(some, download, measurements, vectors, schema))
            some = []
    return pa.concat_tables([*tables, _measured(some, download, measurements, vectors, schema)])


def _measured(
    some: list[tuple[str, bytes]],
    download: recipe.Download,
    measurements: list[signals.Measurement],
    vectors: str | None,
    schema: pa.Schema,
) -> pa.Table:
    from vlmdata.download.decode import to_jpeg  # OpenCV and Pillow, which a plan does not need
    from vlmdata.download.header import ImageError

    stored = io.BytesIO()
    rows = []
    for name, data in some:
        row: dict[str, Any] = {"uid": name, "caption": None}
        try:
            picture = to_jpeg(data, download.size, download.quality, download.max_pixels)
        except ImageError as error:
            log.warning("evaluation image %s is compared by its bytes alone: %s", name, error)
        else:
            width, height = picture.original
            row |= {"width": picture.width, "height": picture.height, "original_width": width}
            row |= {"original_height": height, "offset": stored.tell(), "length": stored.write(picture.jpeg)}
        rows.append(row)
    kinds = {name: pa.int64() for name in ("width", "height", "original_width", "original_height", "offset", "length")}
    pool = pa.Table.from_pylist(rows, pa.schema({"uid": pa.string(), "caption": pa.string(), **kinds}))
    content = stored.getbuffer()
    measured = signals.measure_part(
        pool, lambda offset, length: bytes(content[offset : offset + length]), measurements, {}, {}
    )
    columns: dict[str, Any] = {"sha256": [hashlib.sha256(data).hexdigest() for _, data in some]}
    if "image" in measured:
        columns |= {name: measured["image"][name] for name in ("phash", "entropy")}
    if vectors is not None:
        columns["vector"] = measured[vectors].column(1)
    return _table(schema, pool["uid"], columns)


def _table(schema: pa.Schema, names: Any, columns: dict[str, Any]) -> pa.Table:
    """The columns that are there beside nulls."""
    nulls = {field.name: pa.nulls(len(names), field.type) for field in schema}
    return conform(pa.table({**nulls, "evaluation": names, **columns}), schema)


def _named_rows(file: lists.File, columns: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    count = len(next(iter(columns.values())))
    return [f"{_tail(file[1])}#{row}" for row in range(count)], columns


def _vectors(file: lists.File, width: int) -> dict[str, Any]:
    with _opened(file) as handle:
        loaded = np.load(io.BytesIO(handle.read()), allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            found = loaded
        else:
            arrays = {name: loaded[name] for name in loaded.files}
            square = [name for name, array in arrays.items() if array.ndim == 2]
            wanted = [name for name in _VECTOR_COLUMNS if name in square] or square
            if not wanted:
                raise InputError(f"{file[1]} holds no array of vectors but {', '.join(sorted(arrays))}")
            found = arrays[wanted[0]]
    if found.ndim != 2 or found.dtype.kind != "f":
        raise InputError(f"{file[1]} holds {found.dtype} of shape {found.shape}, not one vector a row")
    return {"vector": _fixed(file, found, width)}


def _fixed(file: lists.File, found: np.ndarray, width: int) -> pa.Array:
    if found.shape[1] != width:
        raise InputError(
            f"{file[1]} has vectors of {found.shape[1]} numbers, those they are compared with have {width}: "
            "`embeddings` must name the model that made them"
        )
    longest = np.abs(found).max(axis=1, keepdims=True, initial=1e-30)
    return pa.FixedSizeListArray.from_arrays(pa.array((found / longest).astype(np.float16).ravel()), width)


def _hashes(piece: Piece, columns: pa.Schema, schema: pa.Schema, embeddings: bool) -> pa.Table:
    """What a Parquet file without images brings: the columns sha256, phash and, where they are compared, vectors."""
    lists_of_numbers = [
        field.name
        for field in columns
        if (
            pa.types.is_list(field.type)
            or pa.types.is_large_list(field.type)
            or pa.types.is_fixed_size_list(field.type)
        )
        and pa.types.is_floating(field.type.value_type)
    ]
    vector = next(iter([*(n for n in _VECTOR_COLUMNS if n in lists_of_numbers), *lists_of_numbers]), None)
    wanted = [name for name in ("sha256", "phash") if name in columns.names] + (
        [vector] if vector and embeddings else []
    )
    if not wanted:
        raise InputError(
            f"{piece.file[1]} has no column of images (bytes), sha256, phash or, where `embeddings` "
            f"asks for them, vectors, but "
            f"{', '.join(columns.names)}"
        )
    with _opened(piece.file) as handle:
        rows = pq.ParquetFile(handle).read_row_group(piece.items[0], columns=wanted, use_threads=False)
    found: dict[str, Any] = {}
    if "sha256" in wanted:
        found["sha256"] = pc.utf8_lower(rows["sha256"].cast(pa.string()))
    if "phash" in wanted:
        found["phash"] = _phashes(piece.file, rows["phash"])
    if vector in wanted:
        flat = rows[vector].combine_chunks()
        lengths = pc.list_value_length(flat)
        if flat.null_count or len(pc.unique(lengths)) > 1:
            raise InputError(f"{piece.file[1]}: the vectors of column {vector!r} have different lengths")
        numbers = flat.flatten().to_numpy(zero_copy_only=False).astype(np.float32).reshape(rows.num_rows, -1)
        found["vector"] = _fixed(piece.file, numbers, schema.field("vector").type.list_size)
    return _table(schema, *_named_rows(piece.file, found))


def _phashes(file: lists.File, column: pa.ChunkedArray) -> pa.Array:
    """uint64, from whole numbers or from 16 hex digits."""
    if pa.types.is_signed_integer(column.type):  # as lists have it that know no unsigned ones
        return column.combine_chunks().cast(pa.int64()).view(pa.uint64())
    if pa.types.is_integer(column.type):
        return column.combine_chunks().cast(pa.uint64())
    try:
        return pa.array([None if text is None else int(text, 16) for text in column.to_pylist()], pa.uint64())
    except (ValueError, TypeError, OverflowError) as error:
        raise InputError(f"{file[1]}: a phash is neither a whole number nor 16 hex digits: {error}") from error
