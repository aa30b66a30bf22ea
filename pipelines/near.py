"""Embeddings compared on workers, for sets beyond one machine's memory: the pairs that `dedup.semantic` gives.

Rows are scattered to buckets, each of some partitions; a worker compares the rows of a bucket, partition by partition.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlmdata import layers
from vlmdata.dataset import Dataset
from vlmdata.dedup import semantic
from vlmdata.dedup.components import Compared, Edges
from vlmdata.parts import Part, part_from
from vlmdata.pipelines import scattered
from vlmdata.pipelines.runner import shuffle
from vlmdata.recipe import Runner, SemanticDedup

_WORK = "work_near"
_BUCKET = 65_536  # rows at home in a bucket, about; each is near to several more


@dataclass(frozen=True)
class Source:
    """A part of embeddings, which of its rows are in force where not all are, and how many rows with a vector come
    before its own."""

    part: Part
    in_force: pa.BooleanArray | None
    first: int


@dataclass(frozen=True)
class _Scatter:
    """Of a part, each row that stands for itself goes to the buckets of its nearest partitions."""

    dataset: str
    buckets: int
    partitions: int

    def __call__(self, element: tuple[Source, Part]) -> list[tuple[int, str]]:
        source, nearest = element
        dataset = Dataset(self.dataset)
        found = layers.read_in_force(dataset, source.part, ["vector"], source.in_force)
        vector = found.filter(found["vector"].is_valid())
        told = dataset.read_part(nearest)
        rows = vector.take(pc.subtract(told["row"], source.first)).append_column("row", told["row"])
        rows = rows.append_column("near", told["near"])
        bucket = _lists(told["near"]).astype(np.int64) * self.buckets // self.partitions
        near = [(bucket == number).any(axis=1) for number in range(self.buckets)]
        path = f"{_WORK}/{source.part.name}.arrow"
        scattered.write(dataset, path, (rows.filter(pa.array(mine)) for mine in near), rows.schema)
        return [(number, path) for number, mine in enumerate(near) if mine.any()]


@dataclass(frozen=True)
class _Compare:
    """The pairs of a bucket's partitions."""

    dataset: str
    buckets: int
    partitions: int
    similarity: float

    def __call__(self, element: tuple[int, list[str]]) -> dict[str, Any]:
        number, paths = element
        dataset = Dataset(self.dataset)
        rows = pa.concat_tables([scattered.read(dataset, path, number) for path in paths]).sort_by("row")
        row, near, vector = rows["row"].to_numpy(), _lists(rows["near"]), _lists(rows["vector"])
        mine = [p for p in np.unique(near).tolist() if p * self.buckets // self.partitions == number]
        tables = [
            pa.table(
                {"i": pa.array([], pa.int64()), "j": pa.array([], pa.int64()), "similarity": pa.array([], pa.float32())}
            )
        ]
        for partition in mine:
            here = np.flatnonzero((near == partition).any(axis=1))
            unit, fresh = semantic.unit(vector, here), np.ones(len(here), np.bool_)
            for a, b, cosine in semantic.compared(unit, near[here], partition, fresh, self.similarity):
                i, j = row[here[a]], row[here[b]]
                tables.append(pa.table({"i": np.minimum(i, j), "j": np.maximum(i, j), "similarity": cosine}))
        return asdict(dataset.write_part("edges", "now", f"{number:07d}", pa.concat_tables(tables), {}))


def compare(
    dataset: Dataset, runner: Runner, options: SemanticDedup, vectors: np.ndarray, sources: list[Source]
) -> Compared:
    """As `semantic.compare`, by workers. vectors: those of the sources in order, mapped from a file: here they are
    read from its beginning to its end only."""
    index, same = semantic.index_of(vectors)
    if index.partitions is None:
        return semantic.compare(options, {"vector": vectors})
    partitions = len(index.partitions.centroids)
    buckets = max(1, min(partitions, len(index.rows) // _BUCKET))
    bounds = np.searchsorted(index.rows, [source.first for source in sources] + [len(vectors)])
    elements = []
    for source, start, stop in zip(sources, bounds, bounds[1:], strict=False):
        if start < stop:
            near = pa.FixedSizeListArray.from_arrays(pa.array(index.near[start:stop].ravel()), index.near.shape[1])
            told = pa.table({"row": index.rows[start:stop], "near": near})
            elements.append((source, dataset.write_part("nearest", "now", source.part.name, told, {})))
    scatter = _Scatter(dataset.absolute, buckets, partitions)
    work = _Compare(dataset.absolute, buckets, partitions, options.similarity)
    results = shuffle(dataset, "compare", scatter, work, elements, runner)
    return semantic.told(vectors, index, _edges(dataset, same, [part_from(result) for result in results]))


def _edges(dataset: Dataset, same: Edges, parts: list[Part]) -> Iterator[Edges]:
    yield same
    for part in parts:
        found = dataset.read_part(part)
        yield Edges(*(found[name].to_numpy() for name in ("i", "j", "similarity")))
    for name in ("tables/nearest", "tables/edges", _WORK):
        dataset.remove(name)


def _lists(column: pa.ChunkedArray) -> np.ndarray:
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), -1)
