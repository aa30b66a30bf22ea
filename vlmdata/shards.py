"""The files that training reads: WebDataset tars and Parquet, written in two passes.

First each part scatters its kept samples into buckets (a file a part, record batches for each bucket); then the places
of each bucket's samples are sorted and its shards written. The shards' bytes depend on the samples alone.
"""

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from vlmdata.errors import DataError, InputError
from vlmdata.recipe import Shards, nearest
from vlmdata.rules import nan_to_null

VERSION = 2
# So many samples, and about so many bytes of images, are in a bucket (or one shard, where shards are larger): read at
# once in the second pass where files cannot be mapped into memory.
BUCKET_SAMPLES = 10_000
BUCKET_BYTES = 1_000_000_000
# Held in memory at once while they are written: bytes of a scattered batch's images, samples of a shard.
BATCH_BYTES = 32_000_000
TOGETHER = 500
ALWAYS = ("uid", "url", "source", "license", "captions")
BLURRED = pa.field("faces_blurred", pa.int32())
SCATTERED = pa.schema(
    [("shard", pa.string()), ("index", pa.int32()), ("key", pa.string()),
     ("jpg", pa.large_binary()),  # more than 2 GiB in one part's bucket, or in one shard, are possible
     ("txt", pa.string()), ("json", pa.string())]
)  # fmt: skip

_BUCKETS = b"buckets"  # in a scattered file's schema: the bucket of each record batch
_PLACES = pa.schema([SCATTERED.field(name) for name in ("shard", "index", "key")] + [pa.field("row", pa.int64())])


def check_columns(shards: Shards, columns: pa.Schema) -> None:
    """Raise InputError when `shards.columns` names no column of samples, or faces are to be blurred that none finds."""
    if shards.blur_faces and "faces" not in columns.names:
        raise InputError("shards.blur_faces: `signals` must have `faces`, which finds what is blurred")
    for name in shards.columns:
        if name not in columns.names:
            raise InputError(f"shards.columns: there is no column {name!r}{nearest(name, columns.names)}")


def json_columns(shards: Shards, rule_columns: Iterable[str], columns: pa.Schema) -> pa.Schema:
    """The columns of a sample's JSON: always uid, url, source, license, captions; then those that rules use or the
    recipe names, in the order of `samples`; last how many faces are blurred, where they are."""
    more = (set(rule_columns) | set(shards.columns)) - {*ALWAYS, "caption"}
    fields = [columns.field(name) for name in ALWAYS if name != "captions"] + [
        pa.field("captions", pa.list_(pa.string()))
    ]
    fields += [field for field in columns if field.name in more]
    return pa.schema(fields + ([BLURRED] if shards.blur_faces else []))


def buckets(
    split_counts: dict[str, int], samples: int, image_bytes: float, first: Mapping[str, int] | None = None
) -> list[list[str]]:
    """The shards' names in buckets of about BUCKET_SAMPLES samples and BUCKET_BYTES, one shard at least.

    image_bytes: of one image, on average. No bucket spans two splits. first: the number of a split's first shard.
    """
    together = max(1, min(BUCKET_SAMPLES // samples, int(BUCKET_BYTES // (samples * max(image_bytes, 1)))))
    result = []
    for split, count in split_counts.items():
        begin = (first or {}).get(split, 0)
        names = [f"{split}-{number:07d}" for number in range(begin, begin - (-count // samples))]
        result += [names[start : start + together] for start in range(0, len(names), together)]
    return result


def scatter(
    kept: pa.Table, columns: pa.Schema, read_image: Callable[[int, int], bytes], into: list[list[str]], path: Path
) -> None:
    """First pass, one part: its kept samples as one Arrow IPC file, whose schema says to which bucket each record batch
    belongs. In memory is one batch of images.

    kept: the kept rows of the part with verdict and image columns; further copies become rows of their own.
    read_image(offset, length): from the part's tar.
    """
    documents = _documents(kept, columns)
    captions = kept["caption"].combine_chunks()
    offsets, lengths = (kept[name].to_numpy() for name in ("offset", "length"))
    places = _places(kept)
    names = pa.array([name for names in into for name in names], pa.string())
    bucket = np.repeat(np.arange(len(into)), [len(names) for names in into])
    bucket = bucket[pc.index_in(places["shard"], names).to_numpy()]
    batches = list(_batches(bucket, lengths[places["row"].to_numpy()]))
    schema = SCATTERED.with_metadata({_BUCKETS: json.dumps([number for number, _ in batches])})
    with pa.ipc.new_file(path, schema) as writer:
        for _, chosen in batches:
            placed = places.take(pa.array(chosen))
            rows, of = np.unique(placed["row"].to_numpy(), return_inverse=True)
            spans = zip(offsets[rows].tolist(), lengths[rows].tolist(), strict=True)
            images = pa.array([read_image(offset, length) for offset, length in spans], pa.large_binary())
            own = [
                images.take(pa.array(of)),
                *(column.take(placed["row"].combine_chunks()) for column in (captions, documents)),
            ]
            named = [placed[name].combine_chunks() for name in ("shard", "index", "key")]
            writer.write_batch(pa.RecordBatch.from_arrays(named + own, schema=schema))


def _batches(bucket: np.ndarray, lengths: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """(bucket, places) of the batches in which samples are written: BATCH_BYTES of images in one, or a single image."""
    order = np.argsort(bucket, kind="stable")
    bucket, lengths = bucket[order], lengths[order]
    until = np.cumsum(lengths)
    start = 0
    while start < len(order):
        full = np.searchsorted(until, until[start] - lengths[start] + BATCH_BYTES, side="right")
        end = max(start + 1, min(int(full), int(np.searchsorted(bucket, bucket[start], side="right"))))
        yield int(bucket[start]), order[start:end]
        start = end


def _places(kept: pa.Table) -> pa.Table:
    """Where the kept rows go: shard, index and key of each, and its row; behind them those of every further copy, its
    key `<uid>_2`, …; `further_copies` has `<shard>:<index>` with blanks between them, or null."""
    rows = pa.table([kept["shard"], kept["index"], kept["uid"], np.arange(kept.num_rows)], schema=_PLACES)
    lists = pc.split_pattern(kept["further_copies"].combine_chunks(), " ")
    row = pc.cast(pc.list_parent_indices(lists), pa.int64())
    if not len(row):
        return rows
    first = np.searchsorted(np.asarray(row), np.asarray(row))
    number = pa.array(np.arange(len(row)) - first + 2).cast(pa.string())
    found = pc.extract_regex(lists.flatten(), "^(?P<shard>.*):(?P<index>[0-9]+)$")
    shard, index = pc.struct_field(found, "shard"), pc.struct_field(found, "index")
    key = pc.binary_join_element_wise(kept["uid"].combine_chunks().take(row), number, "_")
    return pa.concat_tables([rows, pa.table([shard, index.cast(pa.int32()), key, row], schema=_PLACES)])


def buckets_of(file: Any) -> list[int]:
    """The buckets of which a scattered file has samples."""
    with file, pa.ipc.open_file(file) as reader:
        return sorted(set(json.loads(reader.schema.metadata[_BUCKETS])))


class Bucket(NamedTuple):
    """A bucket's samples: batches of SCATTERED, and shard, index, batch and row of each sample in their order."""

    batches: list[pa.RecordBatch]
    places: pa.Table


def gather(files: Iterable[Any], bucket: int) -> Bucket:
    """Second pass: one bucket's samples out of every part's file, in the order of shard and index. Of files that are
    mapped into memory the images stay where they are."""
    batches: list[pa.RecordBatch] = []
    for file in files:
        with file, pa.ipc.open_file(file) as reader:
            numbers = json.loads(reader.schema.metadata[_BUCKETS])
            batches += [reader.get_batch(place) for place, number in enumerate(numbers) if number == bucket]
    empty = pa.table({"shard": pa.array([], pa.string()), "index": pa.array([], pa.int32())})
    found = [pa.Table.from_batches([batch.select(["shard", "index"])]) for batch in batches]
    places = pa.concat_tables([empty, *(each.replace_schema_metadata() for each in found)])
    rows = [len(batch) for batch in batches]
    places = places.append_column("batch", pa.array(np.repeat(np.arange(len(rows)), rows)))
    places = places.append_column("row", pa.array(np.concatenate([np.arange(0), *map(np.arange, rows)])))
    return Bucket(batches, places.sort_by([("shard", "ascending"), ("index", "ascending")]))


def samples(bucket: Bucket, shard: str) -> Iterator[pa.Table]:
    """A shard's samples in their order, some at a time: tables of SCATTERED."""
    places = bucket.places.filter(pc.equal(bucket.places["shard"], shard))
    for start in range(0, places.num_rows, TOGETHER):
        chosen = places.slice(start, TOGETHER)
        at = zip(chosen["batch"].to_pylist(), chosen["row"].to_pylist(), strict=True)
        rows = pa.Table.from_batches([bucket.batches[batch].slice(row, 1) for batch, row in at])
        yield rows.replace_schema_metadata().combine_chunks()


def write_tar(tables: Iterable[pa.Table], path: Path) -> None:
    """A WebDataset tar: `<uid>.jpg`, `<uid>.txt`, `<uid>.json` for each sample, `<uid>_2.jpg` and so on for its further
    copies, without owner or time."""
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for rows in tables:
            add_samples(tar, rows)


def add_samples(tar: tarfile.TarFile, rows: pa.Table) -> None:
    """Add samples to an open tar: columns key (hex: nothing of others gets into a name), jpg, txt, json."""
    for row in rows.select(["key", "jpg", "txt", "json"]).to_pylist():
        for extension, content in (
            ("jpg", row["jpg"]),
            ("txt", row["txt"].encode()),
            ("json", row["json"].encode()),
        ):
            member = tarfile.TarInfo(f"{row['key']}.{extension}")
            member.size = len(content)
            member.mode = 0o644
            tar.addfile(member, io.BytesIO(content))


def write_parquet(tables: Iterable[pa.Table], columns: pa.Schema, path: Path) -> None:
    """The same samples in the same order: `jpg` (bytes), `txt`, and the JSON's columns with their types. Each table
    becomes a row group."""
    # Without Arrow's own schema a reader takes `jpg` for what it is in Parquet, whatever the width of its offsets here.
    schema = pa.schema([*columns, SCATTERED.field("jpg"), SCATTERED.field("txt")])
    with pq.ParquetWriter(path, schema, compression="zstd", store_schema=False) as writer:
        for rows in tables:
            documents = [json.loads(text) for text in rows["json"].to_pylist()]
            table = pa.Table.from_pylist(documents, columns)
            table = table.append_column("jpg", rows["jpg"]).append_column("txt", rows["txt"])
            writer.write_table(table.combine_chunks())


def _documents(kept: pa.Table, columns: pa.Schema) -> pa.Array:
    """Each sample's JSON: every key with one type; null text is '', any other null is refused."""
    table = nan_to_null(kept.select(columns.names))
    for place, field in enumerate(columns):
        if pa.types.is_string(field.type):
            table = table.set_column(place, field, pc.fill_null(table[field.name], ""))
        missing = table[field.name].null_count
        if missing:
            raise DataError(
                f"column {field.name!r} is null or NaN in {missing} kept pairs, but a shard's samples need a value: "
                f"add a rule such as `{field.name} is not null`, or leave it out of shards.columns"
            )
    return pa.array([json.dumps(row, ensure_ascii=False, allow_nan=False) for row in table.to_pylist()], pa.string())


def reader(tar: Any) -> Callable[[int, int], bytes]:
    """Reads a stored image out of an open tar: read(offset, length)."""

    def read(offset: int, length: int) -> bytes:
        tar.seek(offset)
        return tar.read(length)

    return read
