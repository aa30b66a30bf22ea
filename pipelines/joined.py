"""Groups of duplicates made on workers: the connected components of edges that no process holds all of.

By alternating stars (Kiveris, Lattanzi, Mirrokni, Rastogi and Vassilvitskii 2014, "Connected Components in MapReduce
and Beyond"): every row tells its larger neighbours of the smallest one it has, then its smaller ones, until every group
is a star around its smallest uid. A worker that compares rows joins what it has found first, so few rounds are left.
Rows go by their uid to buckets, and each step is a shuffle: a process holds a bucket and what was sent to it.
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from vlmdata.dataset import Dataset
from vlmdata.dedup import alike
from vlmdata.dedup.components import Edges, unite
from vlmdata.pipelines import scattered
from vlmdata.pipelines.equal import bucket_of, collected
from vlmdata.pipelines.runner import shuffle
from vlmdata.recipe import Runner
from vlmdata.schemas import conform, table_schema

FOLDER = "work_joined"  # of all that is on its way to `groups`, which removes it
PAIRS = "work_pairs"
UID = pa.binary(32)
# Neighbours, and of `uid` the similarity to the row most like it, 0 where another file has that. In the first round a
# row may be its own neighbour.
_NEIGHBOURS = pa.schema([("uid", UID), ("other", UID), ("similarity", pa.float32())])
_CENTRAL = pa.schema([("uid", UID), ("similarity", pa.float32())])


class Written(NamedTuple):
    """joined: the path of what edges join, for `groups`. pairs: the file of `alike.FOUND`, as a dict, or None."""

    joined: str
    pairs: dict[str, Any] | None


def write(
    dataset: Dataset,
    name: str,
    rows: pa.Table,
    edges: Iterator[Edges],
    buckets: int,
    pairs: bool = False,
) -> Written:
    """Commit what some edges join and, where they are wanted, all pairs.

    rows: between which the edges are: `uid`, see `binary`, and for pairs `place`, int64, among all rows. What is in
    memory is bounded by the rows, not by the edges.
    """
    names, file = uids(rows["uid"]), None
    if pairs:
        with dataset.spool() as folder:
            noted = alike.noted(edges, names, folder / "pairs", rows["place"].to_numpy())
            label, similarity = unite(len(names), noted)
            file = asdict(dataset.commit(folder / "pairs", f"{PAIRS}/{name}.parquet"))
    else:
        label, similarity = unite(len(names), edges)
    member = np.flatnonzero(similarity > 0)
    uid, other = names[member], names[label[member]]
    inner = label[member] != member
    sent = _neighbours(
        np.concatenate([uid, other[inner]]),
        np.concatenate([other, uid[inner]]),
        np.concatenate([similarity[member], np.zeros(np.count_nonzero(inner), np.float32)]),
    )
    return Written(_send(dataset, f"{FOLDER}/joined-{name}.arrow", sent, buckets), file)


def write_central(dataset: Dataset, name: str, rows: np.ndarray, similarity: np.ndarray, buckets: int) -> None:
    """Commit to `central(name)` what stands in `centroid_similarity` of some rows, should they be in a group.

    rows: their uids, S32 [n]. similarity: float32 [n].
    """
    sent = pa.table([binary(rows), similarity], schema=_CENTRAL)
    _send(dataset, central(name), sent, buckets)


def central(name: str) -> str:
    """The path of the file that `write_central` writes."""
    return f"{FOLDER}/central-{name}.arrow"


def groups(
    dataset: Dataset, runner: Runner, kind: str, joined: list[str], buckets: int, centralities: list[str] | None = None
) -> pa.Table:
    """The `duplicates` table of a method, by (dup_group, uid), as `dedup.groups` gives it.

    joined, centralities: the files that `write` and `write_central` have made for so many buckets.
    """
    told = dataset.absolute, buckets
    files, turn = joined, 0
    while True:
        found = _everywhere(dataset, runner, "stars", _Larger(*told, turn), files, buckets)
        if all(settled for _, settled in found):
            break
        files = _everywhere(dataset, runner, "stars", _Smaller(*told, turn), [path for path, _ in found], buckets)
        turn += 1
    finish = _Finish(dataset.absolute, kind, tuple(joined), None if centralities is None else tuple(centralities))
    parts = _everywhere(dataset, runner, "groups", finish, files, buckets)
    dataset.remove(FOLDER)
    return collected(dataset, "joined", parts)


def binary(uids: np.ndarray) -> pa.Array:
    """Uids, S32 [n], as Arrow has them without looking at each."""
    return pa.FixedSizeBinaryArray.from_buffers(UID, len(uids), [None, pa.py_buffer(np.ascontiguousarray(uids))])


def uids(column: pa.ChunkedArray) -> np.ndarray:
    """S32 [n], of what `binary` has made."""
    array = column.combine_chunks()
    return np.frombuffer(array.buffers()[1], "S32")[array.offset : array.offset + len(array)]


@dataclass(frozen=True)
class _Everywhere:
    """Each file has rows for every bucket."""

    buckets: int

    def __call__(self, path: str) -> list[tuple[int, str]]:
        return [(bucket, path) for bucket in range(self.buckets)]


@dataclass(frozen=True)
class _Larger:
    """Each row's larger neighbours become neighbours of the smallest one, which may be the row itself. Told besides:
    whether there is nothing to do, since every row has smaller neighbours or larger ones, of smaller ones but one."""

    dataset: str
    buckets: int
    turn: int

    def __call__(self, element: tuple[int, list[str]]) -> tuple[str, bool]:
        bucket, paths = element
        dataset = Dataset(self.dataset)
        names, uid, other = _ranked(scattered.gather(dataset, paths, bucket))
        first, hub = _smallest(uid, other)
        counts = np.diff(np.append(first, len(uid)))
        settled = bool(np.all((other[first] > uid[first]) | (counts == 1)))
        larger = other > uid
        # to the bucket of the larger one, which looks at what is smaller
        sent = _neighbours(names[other[larger]], names[hub[larger]])
        return _send(dataset, f"{FOLDER}/larger-{self.turn}-{bucket}.arrow", sent, self.buckets), settled


@dataclass(frozen=True)
class _Smaller:
    """Each row's smaller neighbours, and the row, become neighbours of the smallest one."""

    dataset: str
    buckets: int
    turn: int

    def __call__(self, element: tuple[int, list[str]]) -> str:
        bucket, paths = element
        dataset = Dataset(self.dataset)
        names, uid, other = _ranked(scattered.gather(dataset, paths, bucket))
        first, hub = _smallest(uid, other)
        rest = other != hub
        one, two = np.concatenate([uid[first], other[rest]]), np.concatenate([hub[first], hub[rest]])
        sent = _neighbours(names[np.concatenate([one, two])], names[np.concatenate([two, one])])
        return _send(dataset, f"{FOLDER}/smaller-{self.turn}-{bucket}.arrow", sent, self.buckets)


@dataclass(frozen=True)
class _Finish:
    """The rows of `duplicates` of a bucket, once every group is a star."""

    dataset: str
    kind: str
    joined: tuple[str, ...]
    centralities: tuple[str, ...] | None

    def __call__(self, element: tuple[int, list[str]]) -> dict[str, Any]:
        bucket, paths = element
        dataset = Dataset(self.dataset)
        names, uid, other = _ranked(scattered.gather(dataset, paths, bucket))
        first, hub = _smallest(uid, other)
        member, group = names[uid[first]], names[hub[first]]
        similarity = np.zeros(len(member), np.float32)
        for path in self.joined:
            rows = scattered.read(dataset, path, bucket)
            np.maximum.at(similarity, np.searchsorted(member, uids(rows["uid"])), rows["similarity"].to_numpy())
        columns: dict[str, Any] = {
            "uid": binary(member).cast(pa.binary()).cast(pa.string()),
            "dup_method": pa.repeat(self.kind, len(member)),
            "dup_group": binary(group).cast(pa.binary()).cast(pa.string()),
            "similarity": similarity,
            "centroid_similarity": pa.nulls(len(member), pa.float32()),
        }
        if self.centralities is not None:
            found = np.zeros(len(member), np.float32)
            for path in self.centralities:
                rows = scattered.read(dataset, path, bucket)
                place, mine = _places(member, uids(rows["uid"]))
                found[place] = rows["similarity"].to_numpy()[mine]
            columns["centroid_similarity"] = found
        table = conform(pa.table(columns), table_schema("duplicates"))
        return asdict(dataset.write_part("joined", "now", f"{bucket:07d}", table, {}))


def _everywhere(dataset: Dataset, runner: Runner, stage: str, work: Any, files: list[str], buckets: int) -> list[Any]:
    return shuffle(dataset, stage, _Everywhere(buckets), work, files, runner)


def _neighbours(uid: np.ndarray, other: np.ndarray, similarity: np.ndarray | None = None) -> pa.Table:
    told = np.zeros(len(uid), np.float32) if similarity is None else similarity
    return pa.table([binary(uid), binary(other), told], schema=_NEIGHBOURS)


def _send(dataset: Dataset, path: str, rows: pa.Table, buckets: int) -> str:
    scattered.send(dataset, path, rows, bucket_of(uids(rows["uid"]), buckets), buckets)
    return path


def _ranked(rows: pa.Table) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The different uids in their order, S32, and the different pairs of neighbours in theirs, as places among them;
    a row that is its own neighbour only where it has no other."""
    names, places = np.unique(np.concatenate([uids(rows["uid"]), uids(rows["other"])]), return_inverse=True)
    uid, other = places[: rows.num_rows], places[rows.num_rows :]
    pairs = np.unique((uid * len(names) + other)[uid != other])
    return names, *np.divmod(pairs, max(len(names), 1))


def _smallest(uid: np.ndarray, other: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where each uid begins among pairs in their order, and for each pair the smallest of uid and its neighbours."""
    first = np.flatnonzero(np.diff(uid, prepend=-1))
    counts = np.diff(np.append(first, len(uid)))
    return first, np.repeat(np.minimum(uid[first], other[first]), counts)


def _places(of: np.ndarray, some: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where some uids stand in `of`, which is in order, and which of them do."""
    place = np.searchsorted(of, some)
    there = np.flatnonzero(of[np.minimum(place, len(of) - 1)] == some) if len(of) else np.zeros(0, np.int64)
    return place[there], there
