"""Embeddings compared on workers: the groups that `dedup.semantic` finds, of more vectors than one process should hold.

Rows meet twice: by the key of their vector, where equal vectors find each other and the first row stands for all, then
in the buckets of their nearest partitions, where a worker compares partition by partition. One process fits the
partitions, to a sample of bounded size. Parts travel in pieces of some ten thousand rows.
"""

import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vlmdata import layers
from vlmdata.dataset import Dataset
from vlmdata.dedup import partitions, semantic
from vlmdata.dedup.components import Edges, stars
from vlmdata.dedup.partitions import Partitions
from vlmdata.errors import DataError
from vlmdata.ordered import by_bucket, share
from vlmdata.parts import Part, Table
from vlmdata.pipelines import joined, scattered
from vlmdata.pipelines.joined import Written
from vlmdata.pipelines.runner import run_parts, shuffle
from vlmdata.recipe import Runner, SemanticDedup

KEYS = 250_000  # rows in a bucket of keys or of groups, about
BUCKET = 32_768  # rows at home in a bucket of partitions, about; each is near to several more
PIECE = 65_536  # rows whose vectors are in memory at once, or a part
_PARTITIONS = f"{joined.FOLDER}/partitions.npz"
_KEYED = pa.schema([("place", pa.int64()), ("uid", joined.UID), ("a", pa.uint64()), ("b", pa.uint64())])


@dataclass(frozen=True)
class Piece:
    """Some parts of embeddings one behind the other, and which of their rows are in force where not all are. A row's
    place is the piece's number, shifted by 32 bits, and the row's among those that have a vector."""

    number: int
    parts: tuple[Part, ...]
    in_force: tuple[pa.BooleanArray | None, ...]


def groups(
    dataset: Dataset,
    runner: Runner,
    options: SemanticDedup,
    table: Table,
    in_force: Mapping[str, pa.BooleanArray],
    known: Path,
) -> tuple[pa.Table, list[Written]] | None:
    """The `duplicates` table of all rows in force, and what was written for it: where SemDeDup's rule is asked for with
    the pairs. None for so few different vectors that one process compares all with all.

    known: the file to write what `dedup.Grouped` knows to, as numpy.savez does.
    """
    pieces = _pieces(table, in_force)
    buckets, pairs = max(1, table.rows // KEYS), options.groups == "semdedup"
    told = dataset.absolute, buckets
    dimensions = length(dataset, table)
    found = shuffle(dataset, "vectors", _ByKey(*told, dimensions), _Distinct(*told, len(pieces), pairs), pieces, runner)
    written, files = [Written(*one) for one, _, _ in found], tuple(path for _, path, _ in found)
    counts = np.array([counts for *_, counts in found], np.int64).reshape(len(found), len(pieces)).sum(axis=0)
    count = int(counts.sum())
    if count <= semantic.BRUTE_FORCE:
        dataset.remove(joined.FOLDER)
        dataset.remove(joined.PAIRS)
        return None
    made = _fit(dataset, runner, pieces, files, counts)
    with dataset.spool() as folder:
        arrays: Any = made._asdict()
        np.savez(folder / "partitions.npz", **arrays)
        dataset.commit(folder / "partitions.npz", _PARTITIONS)
    number = len(made.centroids)
    homes = max(1, min(number, count // BUCKET))
    scatter = _ByPartition(*told, homes, files, dimensions)
    compare = _Compare(*told, homes, number, options.similarity, pairs)
    written += [Written(*one) for one in shuffle(dataset, "compare", scatter, compare, pieces, runner)]
    _write_known(dataset, [_known(piece) for piece in pieces], count, made, known)
    central = [joined.central(str(piece.number)) for piece in pieces]
    return joined.groups(dataset, runner, options.kind, [one.joined for one in written], buckets, central), written


def length(dataset: Dataset, table: Table) -> int:
    """How long the first vector of some embeddings is, 0 where there is none."""
    for part in table.parts:
        found = dataset.read_part(part, ["vector"])["vector"].drop_null()
        if len(found):
            return len(found[0])
    return 0


@dataclass(frozen=True)
class _ByKey:
    """The rows of a piece whose vector has a direction, to the buckets of its key."""

    dataset: str
    buckets: int
    length: int

    def __call__(self, piece: Piece) -> list[tuple[int, str]]:
        dataset = Dataset(self.dataset)
        uid, vectors = _read(dataset, piece, self.length)
        keys, rows = semantic.keys_of(vectors)
        columns = [(piece.number << 32) + rows, joined.binary(uid[rows]), keys["a"], keys["b"]]
        sent = pa.table(columns, schema=_KEYED)
        bucket = share(keys["a"] >> np.uint64(32), self.buckets)
        return scattered.send(dataset, f"{joined.FOLDER}/keys-{piece.number}.arrow", sent, bucket, self.buckets)


@dataclass(frozen=True)
class _Distinct:
    """What joins the rows of one vector; the first row of each, by piece; and how many those are of each piece."""

    dataset: str
    buckets: int
    pieces: int
    pairs: bool

    def __call__(self, element: tuple[int, list[str]]) -> tuple[Written, str, list[int]]:
        bucket, paths = element
        dataset = Dataset(self.dataset)
        rows = scattered.gather(dataset, paths, bucket).sort_by("place")
        _, first, codes = np.unique(_keys(rows), return_index=True, return_inverse=True)
        written = joined.write(dataset, f"vectors-{bucket}", rows, iter([stars(codes)]), self.buckets, self.pairs)
        distinct = rows.take(pa.array(np.sort(first)))
        tables = by_bucket(distinct, distinct["place"].to_numpy() >> 32, self.pieces)
        path = f"{joined.FOLDER}/distinct-{bucket}.arrow"
        scattered.write(dataset, path, tables, _KEYED)
        return written, path, [some.num_rows for some in tables]


@dataclass(frozen=True)
class _Sample:
    """The chosen ones among a piece's different vectors, as `partitions.train` reads them, in a file of their own."""

    dataset: str
    distinct: tuple[str, ...]

    def __call__(self, element: tuple[Piece, np.ndarray]) -> str:
        piece, chosen = element
        dataset = Dataset(self.dataset)
        rows = _distinct(dataset, self.distinct, piece.number)["place"].to_numpy() & 0xFFFFFFFF
        unit = semantic.unit(_read(dataset, piece)[1], rows[chosen])
        path = f"{joined.FOLDER}/sample-{piece.number}.npy"
        with dataset.spool() as folder:
            np.save(folder / "sample.npy", unit)
            dataset.commit(folder / "sample.npy", path)
        return path


@dataclass(frozen=True)
class _ByPartition:
    """Each row of a piece that stands for itself, to the buckets of its nearest partitions; beside it what is known of
    it, and the similarity of every row to the centroid of its own partition."""

    dataset: str
    buckets: int
    homes: int
    distinct: tuple[str, ...]
    length: int

    def __call__(self, piece: Piece) -> list[tuple[int, str]]:
        dataset = Dataset(self.dataset)
        uid, vectors = _read(dataset, piece, self.length)
        with dataset.open(_PARTITIONS) as file, np.load(file, allow_pickle=False) as stored:
            made = Partitions(stored["cells"], stored["centroids"])
        rows = semantic.keys_of(vectors)[1]
        near = semantic.nearest(vectors, rows, made)
        central = semantic.to_centroid(vectors, rows, made.centroids, near[:, 0])
        joined.write_central(dataset, str(piece.number), uid[rows], central, self.buckets)
        distinct = _distinct(dataset, self.distinct, piece.number)
        local = distinct["place"].to_numpy() & 0xFFFFFFFF
        near = near[np.searchsorted(rows, local)]
        known = distinct.append_column("near", _lists(near))
        scattered.write(dataset, _known(piece), [known], known.schema)
        sent = known.select(["place", "uid", "near"]).append_column("vector", _lists(vectors[local]))
        bucket = near.astype(np.int64) * self.homes // len(made.centroids)
        place = np.arange(len(bucket))[:, None]
        pairs = np.unique(bucket * len(bucket) + place)  # of a bucket and a row, each once
        bounds = np.searchsorted(pairs, np.arange(self.homes + 1) * len(bucket))
        mine = [pairs[start:stop] - number * len(bucket) for number, (start, stop) in enumerate(pairwise(bounds))]
        path = f"{joined.FOLDER}/near-{piece.number}.arrow"
        scattered.write(dataset, path, (sent.take(pa.array(some)) for some in mine), sent.schema)
        return [(number, path) for number, some in enumerate(mine) if len(some)]


@dataclass(frozen=True)
class _Compare:
    """What joins the near vectors of a bucket's partitions."""

    dataset: str
    buckets: int
    homes: int
    partitions: int
    similarity: float
    pairs: bool

    def __call__(self, element: tuple[int, list[str]]) -> Written:
        bucket, paths = element
        dataset = Dataset(self.dataset)
        rows = scattered.gather(dataset, paths, bucket).sort_by("place")
        edges = self._edges(array(rows["near"]), array(rows["vector"]), bucket)
        return joined.write(dataset, f"near-{bucket}", rows, edges, self.buckets, self.pairs)

    def _edges(self, near: np.ndarray, vectors: np.ndarray, bucket: int) -> Iterator[Edges]:
        for partition in np.unique(near).tolist():
            if partition * self.homes // self.partitions != bucket:
                continue
            here = np.flatnonzero((near == partition).any(axis=1))
            unit, fresh = semantic.unit(vectors, here), np.ones(len(here), np.bool_)
            for a, b, cosine in semantic.compared(unit, near[here], partition, fresh, self.similarity):
                i, j = here[a], here[b]
                yield Edges(np.minimum(i, j), np.maximum(i, j), cosine)


def _pieces(table: Table, in_force: Mapping[str, pa.BooleanArray]) -> list[Piece]:
    pieces: list[list[Part]] = [[]]
    for part in table.parts:
        if pieces[-1] and sum(one.rows for one in pieces[-1]) + part.rows > PIECE:
            pieces.append([])
        pieces[-1].append(part)
    return [
        Piece(number, tuple(parts), tuple(in_force.get(part.name) for part in parts))
        for number, parts in enumerate(pieces)
        if parts
    ]


def _read(dataset: Dataset, piece: Piece, length: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Uids, S32 [n], and vectors [n, length] of the rows that have one. Raises DataError for another length."""
    uids, vectors = [], []
    for part, in_force in zip(piece.parts, piece.in_force, strict=True):
        rows = layers.read_in_force(dataset, part, ["uid", "vector"], in_force)
        rows = rows.filter(rows["vector"].is_valid())
        if not rows.num_rows:
            continue
        uids.append(rows["uid"].to_numpy().astype("S32"))
        vectors.append(array(rows["vector"]))
        length = length or vectors[-1].shape[1]
        if vectors[-1].shape[1] != length:
            raise DataError(f"{part.path}: its vectors have another length than those of the parts before")
    if not uids:
        return np.zeros(0, "S32"), np.zeros((0, length or 0), np.float16)
    return np.concatenate(uids), np.concatenate(vectors)


def _distinct(dataset: Dataset, files: tuple[str, ...], piece: int) -> pa.Table:
    """The rows of a piece that are the first of their vector, in their order."""
    return scattered.gather(dataset, files, piece).sort_by("place")


def _fit(
    dataset: Dataset, runner: Runner, pieces: list[Piece], distinct: tuple[str, ...], counts: np.ndarray
) -> Partitions:
    """The partitions that one process finds, from rows that workers have read. counts: different vectors a piece."""
    count = int(counts.sum())
    chosen = partitions.sample(count)
    bounds = np.concatenate([[0], np.cumsum(counts)])
    cuts = np.searchsorted(chosen, bounds)
    elements = [
        (piece, chosen[start:stop] - first)
        for piece, start, stop, first in zip(pieces, cuts, cuts[1:], bounds, strict=False)
        if start < stop
    ]
    sample = _Sample(dataset.absolute, distinct)
    files = iter(run_parts(dataset, "sample", sample, elements, runner))
    waiting = np.zeros((0, 0), np.float32)

    def read(places: np.ndarray) -> np.ndarray:
        """`train` asks for the chosen rows once each, in their order."""
        nonlocal waiting
        while len(waiting) < len(places):
            with dataset.open(next(files)) as file:
                more = np.load(file, allow_pickle=False)
            waiting = np.concatenate([waiting, more]) if len(waiting) else more
        wanted, waiting = waiting[: len(places)], waiting[len(places) :]
        return wanted

    return partitions.train(read, count)


def _known(piece: Piece) -> str:
    return f"{joined.FOLDER}/known-{piece.number}.arrow"


def _write_known(dataset: Dataset, files: list[str], rows: int, made: Partitions, target: Path) -> None:
    """What `numpy.savez` would write, from a file at a time."""

    def uids(table: pa.Table) -> np.ndarray:
        return joined.uids(table["uid"])

    def near(table: pa.Table) -> np.ndarray:
        return array(table["near"])

    with zipfile.ZipFile(target, "w", allowZip64=True) as archive:
        for name, column in (("rows", uids), ("keys", _keys), ("near", near)):
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                for place, path in enumerate(files):
                    found = np.ascontiguousarray(column(scattered.read(dataset, path, 0)))
                    if not place:
                        empty = np.empty((0, *found.shape[1:]), found.dtype)
                        header = np.lib.format.header_data_from_array_1_0(empty) | {"shape": (rows, *found.shape[1:])}
                        np.lib.format.write_array_header_1_0(member, header)
                    member.write(found.tobytes())
        for name, whole in made._asdict().items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                np.lib.format.write_array(member, whole, allow_pickle=False)


def _keys(rows: pa.Table) -> np.ndarray:
    """semantic.KEY [n], of the columns a and b."""
    return np.rec.fromarrays([rows["a"].to_numpy(), rows["b"].to_numpy()], dtype=semantic.KEY)


def _lists(rows: np.ndarray) -> pa.FixedSizeListArray:
    return pa.FixedSizeListArray.from_arrays(pa.array(rows.ravel()), rows.shape[1])


def array(column: pa.ChunkedArray) -> np.ndarray:
    """[n, d], of lists of one length."""
    flat = column.combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return flat.reshape(len(column), -1 if len(column) else getattr(column.type, "list_size", 1))
