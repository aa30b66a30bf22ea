"""Near-duplicates by the cosine of embeddings.

Large sets are cut into k-means partitions, and a row is compared with the rows of its nearest few, as SemDeDup
describes (Abbas et al. 2023, "SemDeDup: Data-efficient learning at web-scale through semantic deduplication").
"""

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import NamedTuple

import numpy as np

from vlmdata import recipe
from vlmdata.dedup import partitions
from vlmdata.dedup.components import Compared, Edges
from vlmdata.dedup.partitions import Partitions, cut

BRUTE_FORCE = 20_000  # up to so many different vectors all are compared with all
_ROWS = 4096  # looked at at once
_QUERIES = 1024  # of FAISS's search at once: all may be alike, and its answer is in memory
_PAIRS = 16_384  # whose cosine is computed at once
_SLACK = 1e-4  # more than a float32 product's rounding
_EQUAL = 1e-6  # a cosine this little below the threshold counts as equal to it: float32 vectors are not more exact

KEY = np.dtype([("a", np.uint64), ("b", np.uint64)])
Found = tuple[np.ndarray, np.ndarray, np.ndarray]


class Index(NamedTuple):
    """What finds the neighbours of new rows without looking at all earlier ones again.

    rows: int64 [m], the first of each vector, ascending. keys: [m], by which a vector is known again. near: int32
    [m, NEAREST], their partitions. partitions: None, and no columns in `near`, where there were too few rows for any.
    """

    rows: np.ndarray
    keys: np.ndarray
    near: np.ndarray
    partitions: Partitions | None


def reads(options: recipe.SemanticDedup) -> tuple[str, list[str]]:
    """The table and the columns of it that the method compares."""
    return f"embeddings_{options.embeddings}", ["vector"]


def compare(
    options: recipe.SemanticDedup,
    values: Mapping[str, np.ndarray],
    earlier: int = 0,
    known: Mapping[str, np.ndarray] | None = None,
) -> Compared:
    """The edges between rows whose embeddings are as similar as the options say.

    earlier, known: of a former comparison of so many first rows; what these have among themselves is then left out.
    """
    vectors = values["vector"]
    edges: Iterator[Edges]
    if known is None:
        index, same = index_of(vectors)
        edges = chain([same], among(vectors, index, options.similarity))
    else:
        made = Partitions(known["cells"], known["centroids"]) if "cells" in known else None
        before = Index(known["rows"], known["keys"], known["near"], made)
        index, edges = added(vectors, earlier, before, options.similarity)
    stored = {name: array for name, array in index._asdict().items() if name != "partitions"}
    stored |= index.partitions._asdict() if index.partitions else {}
    return Compared(edges, stored, lambda rows: centrality(vectors, index, rows))


def pairs(vectors: np.ndarray, similarity: float, brute_force: int = BRUTE_FORCE) -> Iterator[Edges]:
    """The edges between vectors whose cosine is `similarity` or more; similarity: the cosine, float32.

    vectors: float16 or float32 [n, d], in memory or mapped from a file; lengths do not matter. Rows with NaN, infinity
    or only zeros have no edges.
    Rows of one vector are joined to their first; between different vectors each pair is given once. Up to `brute_force`
    different vectors every pair is found; of more, those of which one lies in the other's nearest partitions.
    The values do not depend on the number of threads.
    """
    index, same = index_of(vectors, brute_force)
    yield same
    yield from among(vectors, index, similarity)


def index_of(vectors: np.ndarray, brute_force: int = BRUTE_FORCE) -> tuple[Index, Edges]:
    """The index of all rows, and the edges from the first row of each vector to the others of it."""
    same, rows, keys = distinct(vectors)
    if len(rows) <= brute_force:
        return Index(rows, keys, np.zeros((len(rows), 0), np.int32), None), same
    made = partitions.train(lambda places: unit(vectors, rows[places]), len(rows))
    return Index(rows, keys, nearest(vectors, rows, made), made), same


def nearest(vectors: np.ndarray, rows: np.ndarray, of: Partitions) -> np.ndarray:
    """int32 [len(rows), NEAREST]: the nearest partitions of each row, its own first."""
    return partitions.nearest(of, (unit(vectors, rows[part]) for part in cut(np.arange(len(rows)))))


def among(vectors: np.ndarray, index: Index, similarity: float) -> Iterator[Edges]:
    """The edges between the rows of an index."""
    if index.partitions is None:
        found = _all_near(unit(vectors, index.rows), 0, similarity)
    else:
        found = _near(vectors, index, np.ones(len(index.rows), np.bool_), similarity)
    yield from _edges(index.rows, found)


def added(vectors: np.ndarray, earlier: int, index: Index, similarity: float) -> tuple[Index, Iterator[Edges]]:
    """What rows behind the `earlier` ones bring: the index grown by them, and their edges.

    vectors: of the earlier rows, then of the new ones; index: of the earlier rows. The edges are those that `pairs`
    gives of all rows and that no two earlier ones have; of partitions there are those of the index.
    """
    same, rows, keys = distinct(vectors, earlier, index)
    made = index.partitions
    near = nearest(vectors, rows, made) if made else np.zeros((len(rows), 0), np.int32)
    grown = Index(
        np.concatenate([index.rows, rows]),
        np.concatenate([index.keys, keys]),
        np.concatenate([index.near, near]),
        made,
    )
    if made is None:
        found = _all_near(unit(vectors, grown.rows), len(index.rows), similarity)
    else:
        found = _near(vectors, grown, grown.rows >= earlier, similarity)
    return grown, chain([same], _edges(grown.rows, found))


def centrality(vectors: np.ndarray, index: Index, rows: np.ndarray) -> np.ndarray:
    """float32 [len(rows)]: the cosine of rows to the centroid of their partition: of all vectors where there is but
    one."""
    if index.partitions is None:
        total = sum(_whole(unit(vectors, index.rows[part])).sum(axis=0) for part in cut(np.arange(len(index.rows))))
        centroids, home = np.atleast_2d(total), np.zeros(len(rows), np.int64)
    else:
        centroids, home = index.partitions.centroids, nearest(vectors, rows, index.partitions)[:, 0]
    return to_centroid(vectors, rows, centroids, home)


def to_centroid(vectors: np.ndarray, rows: np.ndarray, centroids: np.ndarray, home: np.ndarray) -> np.ndarray:
    """float32 [len(rows)]: the cosine of rows to one of the centroids each, whose numbers are `home`."""
    centroids = centroids.astype(np.float64)
    centroids = _whole(centroids / np.sqrt(np.square(centroids).sum(axis=1, keepdims=True)))
    found = np.empty(len(rows), np.float32)
    for part in cut(np.arange(len(rows))):
        block = _whole(unit(vectors, rows[part]))
        found[part] = np.einsum("nd,nd->n", block, centroids[home[part]]) * 2.0**-52
    return found


def distinct(vectors: np.ndarray, earlier: int = 0, index: Index | None = None) -> tuple[Edges, np.ndarray, np.ndarray]:
    """Rows behind the `earlier` ones whose vector is new: edges from the first row of each vector to the others of it,
    which may be one of the index; int64 [m], the first row of each new vector, ascending; and their keys [m]."""
    keys, rows = keys_of(vectors, earlier)
    there = 0
    if index is not None:
        there = len(index.rows)
        keys, rows = np.concatenate([index.keys, keys]), np.concatenate([index.rows, rows])
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    hub = rows[first[inverse]]
    other = hub != rows
    fresh = np.sort(first[first >= there])
    same = Edges(hub[other], rows[other], np.ones(np.count_nonzero(other), np.float32), equal=True)
    return same, rows[fresh], keys[fresh]


def keys_of(vectors: np.ndarray, start: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Of the usable rows from `start` on, those that have a direction, KEY [m]: two sums of the vector's bits, equal by
    chance in no data that was not made for it. And the rows, int64 [m]."""
    n, d = vectors.shape
    words = d * vectors.dtype.itemsize // 2
    factors = np.random.default_rng(0).integers(0, 2**63, (words, 2), np.uint64) * 2 + 1
    keys, rows = [np.empty((0, 2), np.uint64)], [np.empty(0, np.int64)]
    for place in range(start, n, _ROWS):
        block = np.ascontiguousarray(vectors[place : place + _ROWS])
        usable = np.isfinite(block).all(axis=1) & block.any(axis=1)
        # -0.0 + 0.0 is 0.0: equal vectors have equal bits
        bits = (block + block.dtype.type(0)).view(np.uint16).astype(np.uint64)
        keys.append((bits @ factors)[usable])
        rows.append(place + np.flatnonzero(usable))
    return np.concatenate(keys).view(KEY).ravel(), np.concatenate(rows)


def _edges(rows: np.ndarray, found: Iterator[Found]) -> Iterator[Edges]:
    for a, b, cosine in found:
        i, j = rows[a], rows[b]
        yield Edges(np.minimum(i, j), np.maximum(i, j), cosine)


def _near(vectors: np.ndarray, index: Index, fresh: np.ndarray, similarity: float) -> Iterator[Found]:
    """Places in the index of the pairs with that cosine of which one at least is `fresh`, once each, and their
    cosine."""
    order = np.argsort(index.near, axis=None, kind="stable")
    row, partition = order // index.near.shape[1], index.near.ravel()[order]
    starts = np.searchsorted(partition, np.arange(index.near.max() + 2))
    for place in range(len(starts) - 1):
        here = row[starts[place] : starts[place + 1]]
        if fresh[here].any():
            block = unit(vectors, index.rows[here])
            for a, b, cosine in compared(block, index.near[here], place, fresh[here], similarity):
                yield here[a], here[b], cosine


def compared(
    rows: np.ndarray, near: np.ndarray, partition: int, fresh: np.ndarray, similarity: float
) -> Iterator[Found]:
    """The pairs that one partition gives: places in `rows` and the cosine.

    rows: unit vectors, float32 [m, d], of all that have the partition among their nearest, in the order of all rows;
    near: int32 [m, NEAREST]. fresh: bool [m], some last ones; pairs of two that are not are left out.
    A row at home here is compared with every row that is near. Of two rows that lie near each other's partition the
    smaller partition gives the pair.
    """
    home = np.flatnonzero(near[:, 0] == partition)
    every = np.arange(len(rows))
    for left, right in ((home[fresh[home]], every), (home[~fresh[home]], np.flatnonzero(fresh))):
        for one in cut(left):
            for two in cut(right):
                for a, b, cosine in _products(rows, one, two, similarity):
                    other = near[b, 0]
                    inside = (other == partition) & (a < b)
                    both = (near[a] == other[:, None]).any(axis=1)
                    across = (other != partition) & (~both | (other > partition))
                    once = inside | across
                    yield a[once], b[once], cosine[once]


def _products(rows: np.ndarray, one: np.ndarray, two: np.ndarray, similarity: float) -> Iterator[Found]:
    """Of one x two the pairs with that cosine, and their cosine.

    A float32 product, whose rounding depends on the machine's threads, only finds the candidates. Their cosines are
    sums of whole numbers below 2**53 in float64, which come out the same in every order.
    """
    left, right = rows[one], rows[two]
    near = left @ right.T >= similarity - _SLACK
    if np.count_nonzero(near) <= near.size // 64:
        a, b = np.nonzero(near)
        yield from _exact(rows, one[a], two[b], similarity)
        return
    left_near, right_near = near.any(axis=1), near.any(axis=0)
    cosine = _whole(left[left_near]) @ _whole(right[right_near]).T * 2.0**-52
    a, b = np.nonzero(cosine >= similarity - _EQUAL)
    yield one[left_near][a], two[right_near][b], cosine[a, b].astype(np.float32).clip(max=1)


def _all_near(rows: np.ndarray, first: int, similarity: float) -> Iterator[Found]:
    """The pairs of unit vectors with that cosine, the later one at `first` or behind it, by FAISS's exact index."""
    import faiss

    index = faiss.IndexFlatIP(rows.shape[1])
    index.add(rows)
    for start in range(first, len(rows), _QUERIES):
        limits, _, found = index.range_search(rows[start : start + _QUERIES], similarity - _SLACK)
        later = np.repeat(np.arange(start, start + len(limits) - 1), (limits[1:] - limits[:-1]).astype(np.int64))
        once = found < later
        # in no order, which `unite` does not mind
        yield from _exact(rows, found[once], later[once], similarity)


def _exact(rows: np.ndarray, a: np.ndarray, b: np.ndarray, similarity: float) -> Iterator[Found]:
    """Of candidates the pairs that have that cosine. See `_products`."""
    for start in range(0, len(a), _PAIRS):
        left, right = a[start : start + _PAIRS], b[start : start + _PAIRS]
        cosine = np.einsum("pd,pd->p", _whole(rows[left]), _whole(rows[right])) * 2.0**-52
        near = cosine >= similarity - _EQUAL
        yield left[near], right[near], cosine[near].astype(np.float32).clip(max=1)


def _whole(unit: np.ndarray) -> np.ndarray:
    """float64, whole numbers: `unit` in steps of 2**-26, so that no sum of products of two rows exceeds 2**53."""
    return np.rint(unit.astype(np.float64) * 2.0**26)


def unit(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """float32 [len(rows), d], of length 1."""
    block = vectors[rows].astype(np.float32)
    # the largest first, so that the square of a small or large one neither vanishes nor overflows
    block /= np.abs(block).max(axis=1, keepdims=True)
    return block / np.sqrt(np.einsum("nd,nd->n", block, block))[:, None]
