"""The stage `shards`: kept samples scattered into buckets, then each bucket cut into shards."""

from dataclasses import asdict, dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from vlmdata import blur, disk, layers, shards
from vlmdata.dataset import Dataset
from vlmdata.errors import MachineError
from vlmdata.parts import File, Part, Table, snapshot_folder
from vlmdata.pipelines.runner import here_at_once, shuffle
from vlmdata.pipelines.select import Selection
from vlmdata.plan import Plan
from vlmdata.recipe import Shards
from vlmdata.schemas import table_schema


@dataclass(frozen=True)
class _Scatter:
    """A part's kept samples, in a file of its own by bucket; in which buckets some are, and the file."""

    dataset: str
    work: str
    columns: pa.Schema
    buckets: list[list[str]]
    quality: int

    def __call__(self, element: tuple[Part, Part, Part | None, pa.BooleanArray | None]) -> list[tuple[int, str]]:
        samples, images, faces, in_force = element
        dataset = Dataset(self.dataset)
        path = f"{self.work}/{samples.name}-{samples.sha256[:16]}.batches"
        if not dataset.exists(path):
            rows = dataset.read_part(samples)
            if faces:
                nested = layers.read_in_force(dataset, faces, ["face_boxes"], in_force)
                rows = rows.append_column("face_boxes", nested["face_boxes"])
            kept = rows.filter(rows["kept"])
            with dataset.opened(images.also[0]) as tar, dataset.spool() as folder:
                read_image = shards.reader(tar)
                if faces:
                    kept, read_image = blur.blurred(kept, read_image, self.quality)
                shards.scatter(kept, self.columns, read_image, self.buckets, folder / "scattered")
                dataset.commit(folder / "scattered", path)
        return [(bucket, path) for bucket in shards.buckets_of(_opened(dataset, path))]


@dataclass(frozen=True)
class _Gather:
    """A bucket's shards, out of the files that have samples of it. into: the names of each bucket's shards."""

    dataset: str
    folder: str
    work: str
    columns: pa.Schema
    formats: list[str]
    into: list[list[str]]

    def __call__(self, element: tuple[int, list[str]]) -> list[dict[str, Any]]:
        number, paths = element
        dataset = Dataset(self.dataset)
        # The bucket's record is its commit: written when all its shards are in place.
        record = f"{self.work}/bucket-{number}.json"
        if dataset.exists(record):
            found = dataset.read_json(record)
            if found["from"] == paths and all(dataset.exists(shard["path"]) for shard in found["written"]):
                return found["written"]
            dataset.remove(record)  # before what it tells of is written over
        bucket = shards.gather((_opened(dataset, path) for path in paths), number)
        written: list[dict[str, Any]] = []
        for name in self.into[number]:
            count = pc.sum(pc.equal(bucket.places["shard"], name)).as_py() or 0
            with dataset.spool() as folder:
                for kind in self.formats:
                    aside = folder / ("shard.tar" if kind == "webdataset" else "shard.parquet")
                    if kind == "webdataset":
                        shards.write_tar(shards.samples(bucket, name), aside)
                    else:
                        shards.write_parquet(shards.samples(bucket, name), self.columns, aside)
                    file: File = dataset.commit(aside, f"{self.folder}/{name}{aside.suffix}")
                    split = name.rsplit("-", 1)[0]
                    written.append({**asdict(file), "rows": count, "split": split, "format": kind})
        dataset.write_json(record, {"from": paths, "written": written})
        return written


def _opened(dataset: Dataset, path: str) -> Any:
    """A scattered file; a local one is mapped into memory, from which the system can take it back."""
    return pa.memory_map(dataset.path(path)) if dataset.local else dataset.open(path)


def run(
    plan: Plan, dataset: Dataset, tables: dict[str, Table], selection: Selection, number: int
) -> list[dict[str, Any]]:
    """Write the shards of what was selected for snapshot `number`; their entries in its manifest (path, bytes, sha256,
    rows, split, format). There are none without images."""
    if plan.recipe.download.skip:
        return []
    recipe: Shards = plan.recipe.shards
    columns = columns_of(plan)
    image_bytes = _image_bytes(dataset, selection)
    written_twice = 1 + len(recipe.formats)  # first scattered, then in every format
    samples = sum(selection.splits.values())
    aside = min(recipe.samples, samples) * image_bytes * written_twice * here_at_once(plan.recipe.runner)
    disk.check(dataset, samples * image_bytes * written_twice, "writing the shards", aside)
    into = shards.buckets(selection.splits, recipe.samples, image_bytes, selection.first)
    work = f"work_shards/{number:06d}-{plan.shards}-{selection.samples.sha256[:16]}"
    images = tables["images"].parts[-len(selection.written) :]
    faces = tables["boxes_faces"].parts[-len(images) :] if recipe.blur_faces else [None] * len(images)
    elements = [
        (*parts, selection.in_force.get(parts[1].name)) for parts in zip(selection.written, images, faces, strict=True)
    ]
    scatter = _Scatter(dataset.absolute, work, columns, into, plan.recipe.download.quality)
    gather = _Gather(dataset.absolute, f"{snapshot_folder(number)}/shards", work, columns, list(recipe.formats), into)
    written = shuffle(dataset, "shards", scatter, gather, elements, plan.recipe.runner)
    entries = [shard for bucket in written for shard in bucket]
    for kind in recipe.formats:
        for split, count in selection.splits.items():
            found = sum(entry["rows"] for entry in entries if (entry["format"], entry["split"]) == (kind, split))
            if found != count:
                raise MachineError(f"shards: {count} samples are kept for {split!r}, {found} were written as {kind}")
    return entries


def _image_bytes(dataset: Dataset, selection: Selection) -> float:
    """Of a sample's image, on average; a copy is a sample."""
    total = count = 0
    for part in selection.written:
        rows = dataset.read_part(part, ["kept", "length", "copies"])
        kept = rows.filter(rows["kept"])
        copies = pc.cast(kept["copies"], pa.int64())
        total += pc.sum(pc.multiply(kept["length"], copies)).as_py() or 0
        count += pc.sum(copies).as_py() or 0
    return total / max(count, 1)


def columns_of(plan: Plan) -> pa.Schema:
    """The columns of a sample's JSON and of the Parquet shards."""
    used = [column for rule in plan.rules.values() for column in rule.columns]
    everything = plan.columns
    for column in table_schema("verdict"):
        if column.name not in everything.names:
            everything = everything.append(column)
    return shards.json_columns(plan.recipe.shards, used, everything)


def clean(dataset: Dataset) -> None:
    """Remove the scattered files, once the snapshot is published."""
    dataset.remove("work_shards")
