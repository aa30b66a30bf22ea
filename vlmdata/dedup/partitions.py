"""k-means partitions of unit vectors, and the index that finds a vector's nearest ones.

Two levels, so that nothing is compared with every centroid: cells, and the centroids that lie in each. A vector is
compared with all cells and with the centroids of the PROBED nearest: FAISS's inverted file, over the centroids.

Vectors count here in whole numbers whose products and sums float32 holds exactly, in whatever order they are added:
no outcome depends on the number of threads.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np

PARTITION = 256  # rows in a partition, about
NEAREST = 8  # partitions in which a row is compared
PROBED = 8  # cells in which a row's nearest centroids are looked for
_TRAINING = 32  # rows for each centroid that k-means sees
_SAMPLE = 1 << 20  # rows that it sees altogether, at most
_CELL_TRAINING = 256  # rows for each cell
_ITERATIONS = 8
_GRID = 4000  # a unit vector's length in whole numbers: a product of two such, rounded, stays below 2**24
_ROWS = 4096  # converted at once
_PRODUCTS = 1 << 25  # of rows and centroids in memory at once

Read = Callable[[np.ndarray], np.ndarray]


class Partitions(NamedTuple):
    """cells: float32 [c, d]. centroids: float32 [k, d]. Both whole numbers, see `whole`; partition p is that of
    `centroids[p]`."""

    cells: np.ndarray
    centroids: np.ndarray


def whole(unit: np.ndarray) -> np.ndarray:
    """float32 [n, d], whole numbers: unit vectors in steps of 1 / 4000."""
    return np.rint(unit * np.float32(_GRID))


def train(read: Read, rows: int, k: int | None = None, seed: int = 0) -> Partitions:
    """About k partitions, or such of about PARTITION rows each: k-means of a sample of bounded size.

    read: gives the unit vectors, float32 [m, d], of ascending places among `rows`.
    Each cell has as many centroids as its share of the sample: where vectors crowd there are more partitions.
    """
    rng = np.random.default_rng(seed)
    k = k or _count(rows)
    chosen = _sample(rows, k, rng)
    sample = np.concatenate([whole(read(part)).astype(np.int16) for part in cut(chosen)])
    c = round(k**0.5)
    cells = _kmeans(
        sample[np.sort(rng.choice(len(sample), min(len(sample), c * _CELL_TRAINING), replace=False))], c, rng
    )
    cell_of = nearest_one(sample, cells)
    centroids = []
    for cell in range(c):
        members = sample[cell_of == cell]
        if len(members):
            centroids.append(_kmeans(members, max(1, round(len(members) * k / len(sample))), rng))
    return Partitions(cells, np.concatenate(centroids))


def sample(rows: int, seed: int = 0) -> np.ndarray:
    """int64 [s], ascending: the places that `train` reads."""
    return _sample(rows, _count(rows), np.random.default_rng(seed))


def _count(rows: int) -> int:
    return min(max(NEAREST, rows // PARTITION), _SAMPLE // _TRAINING)


def _sample(rows: int, k: int, rng: np.random.Generator) -> np.ndarray:
    return np.sort(rng.choice(rows, min(rows, k * _TRAINING, max(k, _SAMPLE)), replace=False))


def nearest(partitions: Partitions, blocks: Iterator[np.ndarray]) -> np.ndarray:
    """int32 [n, NEAREST]: the partitions nearest to each of n unit vectors, float32, which come in blocks; its own
    first. Fewer columns where there are fewer partitions."""
    import faiss

    cells, centroids = partitions
    coarse = faiss.IndexFlatIP(cells.shape[1])
    coarse.add(cells)
    index = faiss.IndexIVFFlat(coarse, cells.shape[1], len(cells), faiss.METRIC_INNER_PRODUCT)
    index.own_fields = False
    index.add(centroids)
    wanted = min(NEAREST, len(centroids))
    every = []
    for unit in blocks:
        block = whole(unit)
        index.nprobe = PROBED
        found = index.search(block, wanted)[1]
        if few := np.flatnonzero((found < 0).any(axis=1)).tolist():  # the cells probed hold too few centroids
            index.nprobe = len(cells)
            found[few] = index.search(block[few], wanted)[1]
        every.append(found.astype(np.int32))
    return np.concatenate(every) if every else np.zeros((0, wanted), np.int32)


def nearest_one(rows: np.ndarray, centroids: np.ndarray) -> np.ndarray:
    """int64 [n]: the nearest centroid of each row by comparing with all; of several the first.

    rows: whole numbers [n, d]. centroids: float32 [k, d], whole too.
    """
    parts = cut(np.arange(len(rows)), max(1, min(_ROWS, _PRODUCTS // len(centroids))))
    found = [(rows[part].astype(np.float32) @ centroids.T).argmax(axis=1) for part in parts]
    return np.concatenate(found) if found else np.zeros(0, np.int64)


def cut(places: np.ndarray, size: int = _ROWS) -> list[np.ndarray]:
    """The places in blocks."""
    return [places[start : start + size] for start in range(0, len(places), size)]


def _kmeans(sample: np.ndarray, k: int, rng: np.random.Generator) -> np.ndarray:
    """float32 [k, d] whole centroids of the sample's, by Lloyd's iterations on the sphere."""
    centroids = sample[np.sort(rng.choice(len(sample), k, replace=False))].astype(np.float32)
    for _ in range(_ITERATIONS if k > 1 else 1):
        order = np.argsort(owner := nearest_one(sample, centroids), kind="stable")
        bounds = np.searchsorted(owner[order], np.arange(k + 1))
        for place in np.flatnonzero(np.diff(bounds)):  # one that nothing is nearest to stays where it is
            total = sample[order[bounds[place] : bounds[place + 1]]].sum(axis=0, dtype=np.float64)
            if length := np.sqrt(np.square(total).sum()):
                centroids[place] = np.rint(total / length * _GRID)
    return centroids
