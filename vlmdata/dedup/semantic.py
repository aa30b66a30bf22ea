"""Near-duplicates by the cosine of embeddings.

Large sets are cut into k-means partitions, and a row is compared with the rows of its nearest few, as SemDeDup
describes (Abbas et al. 2023, "SemDeDup: Data-efficient learning at web-scale through semantic deduplication").
"""

from collections.abc import Iterator, Mapping

import numpy as np

from vlmdata import recipe
from vlmdata.dedup.components import Edges, stars

BRUTE_FORCE = 20_000  # up to so many different vectors all are compared with all
PARTITION = 256  # rows in a partition, about
NEAREST = 4  # partitions in which a row is compared
_TRAINING = 32  # rows for each centroid that k-means sees
_ITERATIONS = 8
_ROWS = 4096  # converted or compared at once
_QUERIES = 1024  # of FAISS's search at once: all may be alike, and its answer is in memory
_PAIRS = 16_384  # whose cosine is computed at once
_SLACK = 1e-4  # more than a float32 product's rounding
_EQUAL = 1e-6  # a cosine this little below the threshold counts as equal to it: float32 vectors are not more exact


def reads(options: recipe.SemanticDedup) -> tuple[str, list[str]]:
    """The table and the columns of it that the method compares."""
    return f"embeddings_{options.embeddings}", ["vector"]


def edges(options: recipe.SemanticDedup, values: Mapping[str, np.ndarray]) -> Iterator[Edges]:
    """The edges between rows whose embeddings are as similar as the options say."""
    return pairs(values["vector"], options.similarity)


def pairs(vectors: np.ndarray, similarity: float, brute_force: int = BRUTE_FORCE) -> Iterator[Edges]:
    """The edges between vectors whose cosine is `similarity` or more; similarity: the cosine, float32.

    vectors: float16 or float32 [n, d], in memory or mapped from a file; lengths do not matter. Rows with NaN, infinity
    or only zeros have no edges.
    Rows of one vector are joined to their first; between different vectors each pair is given once. Up to `brute_force`
    different vectors every pair is found; of more, those of which one lies in the other's NEAREST partitions.
    The values do not depend on the number of threads.
    """
    codes, rows = _distinct(vectors)
    yield stars(codes)
    for a, b, cosine in _near(vectors, rows, similarity, brute_force):
        i, j = rows[a], rows[b]
        yield Edges(np.minimum(i, j), np.maximum(i, j), cosine)


def _distinct(vectors: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """int64 [n] codes, equal for equal vectors, -1 for unusable ones; and the first row of each code, in order."""
    n, d = vectors.shape
    words = d * vectors.dtype.itemsize // 2
    factors = np.random.default_rng(0).integers(0, 2**63, (words, 2), np.uint64) * 2 + 1
    keys = np.empty((n, 2), np.uint64)
    usable = np.empty(n, np.bool_)
    for start in range(0, n, _ROWS):
        block = np.ascontiguousarray(vectors[start : start + _ROWS])
        usable[start : start + _ROWS] = np.isfinite(block).all(axis=1) & block.any(axis=1)
        # -0.0 + 0.0 is 0.0: equal vectors have equal bits
        bits = (block + block.dtype.type(0)).view(np.uint16).astype(np.uint64)
        keys[start : start + _ROWS] = bits @ factors
    codes = np.full(n, -1, np.int64)
    place = np.flatnonzero(usable)
    # two 64-bit sums of the bits stand for a vector: equal by chance in no data that was not made for it
    both = keys[place].view([("", np.uint64), ("", np.uint64)]).ravel()
    _, first, inverse = np.unique(both, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    codes[place] = rank[inverse]
    return codes, place[first[order]]


def _near(
    vectors: np.ndarray, rows: np.ndarray, similarity: float, brute_force: int
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Places in `rows` of the pairs with that cosine, once each, and their cosine."""
    if len(rows) <= brute_force:
        yield from _all_near(vectors, rows, similarity)
        return
    nearest = _partitions(vectors, rows)
    home_of = nearest[:, 0]
    row, rank = np.divmod(np.argsort(nearest, axis=None, kind="stable"), NEAREST)
    bounds = np.searchsorted(nearest[row, rank], np.arange(nearest.max() + 2))
    for partition in range(len(bounds) - 1):
        here = row[bounds[partition] : bounds[partition + 1]]
        homes = here[home_of[here] == partition]
        for start in range(0, len(homes), _ROWS):
            home = homes[start : start + _ROWS]
            for other_start in range(0, len(here), _ROWS):
                other = here[other_start : other_start + _ROWS]
                a, b, cosine = _compared(vectors, rows, home, other, similarity)
                inside = (home_of[b] == partition) & (a < b)
                # of two rows that lie near each other's partition, the smaller partition gives the pair
                both = (nearest[a] == home_of[b, None]).any(axis=1)
                across = (home_of[b] != partition) & (~both | (home_of[b] > partition))
                new = inside | across
                yield a[new], b[new], cosine[new]


def _all_near(
    vectors: np.ndarray, rows: np.ndarray, similarity: float
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """As `_near`, by FAISS's exact index: its float32 products find the candidates, whose cosines are then exact."""
    import faiss

    unit = _unit(vectors, rows)
    index = faiss.IndexFlatIP(unit.shape[1])
    index.add(unit)
    for start in range(0, len(rows), _QUERIES):
        limits, _, found = index.range_search(unit[start : start + _QUERIES], similarity - _SLACK)
        a = np.repeat(np.arange(start, start + len(limits) - 1), (limits[1:] - limits[:-1]).astype(np.int64))
        a, b = a[a < found], found[a < found]  # in no order, which `unite` does not mind
        for cut in range(0, len(a), _PAIRS):
            left, right = a[cut : cut + _PAIRS], b[cut : cut + _PAIRS]
            cosine = np.einsum("pd,pd->p", _whole(unit[left]), _whole(unit[right])) * 2.0**-52
            near = cosine >= similarity - _EQUAL
            yield left[near], right[near], cosine[near].astype(np.float32).clip(max=1)


def _compared(
    vectors: np.ndarray, rows: np.ndarray, home: np.ndarray, other: np.ndarray, similarity: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of home x other the pairs with that cosine, and their cosine.

    A float32 product, whose rounding depends on the machine's threads, only finds the rows that have a neighbour at
    all. Their cosines are sums of whole numbers below 2**53 in float64, which come out the same in every order.
    """
    left, right = _unit(vectors, rows[home]), _unit(vectors, rows[other])
    near = left @ right.T >= similarity - _SLACK
    home_near, other_near = near.any(axis=1), near.any(axis=0)
    cosine = _whole(left[home_near]) @ _whole(right[other_near]).T * 2.0**-52
    a, b = np.nonzero(cosine >= similarity - _EQUAL)
    return home[home_near][a], other[other_near][b], cosine[a, b].astype(np.float32).clip(max=1)


def _whole(unit: np.ndarray) -> np.ndarray:
    """float64, whole numbers: `unit` in steps of 2**-26, so that no sum of products of two rows exceeds 2**53."""
    return np.rint(unit.astype(np.float64) * 2.0**26)


def _unit(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """float32 [len(rows), d], of length 1."""
    block = vectors[rows].astype(np.float32)
    # the largest first, so that the square of a small or large one neither vanishes nor overflows
    block /= np.abs(block).max(axis=1, keepdims=True)
    return block / np.sqrt(np.einsum("nd,nd->n", block, block))[:, None]


def _partitions(vectors: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """int32 [len(rows), NEAREST]: the nearest partitions of each row, its own first."""
    import faiss

    n, d = len(rows), vectors.shape[1]
    k = max(NEAREST, n // PARTITION)
    rng = np.random.default_rng(0)
    sample = np.sort(rng.choice(n, min(n, k * _TRAINING), replace=False))
    kmeans = faiss.Kmeans(
        d, k, niter=_ITERATIONS, seed=0, spherical=True, min_points_per_centroid=1, max_points_per_centroid=_TRAINING
    )
    kmeans.train(np.concatenate([_unit(vectors, rows[part]) for part in _cut(sample)]))
    assert kmeans.centroids is not None
    index = faiss.IndexFlatIP(d)
    index.add(kmeans.centroids)
    found = [index.search(_unit(vectors, rows[part]), NEAREST)[1] for part in _cut(np.arange(n))]
    return np.concatenate(found).astype(np.int32)


def _cut(places: np.ndarray) -> list[np.ndarray]:
    return [places[start : start + _ROWS] for start in range(0, len(places), _ROWS)]
