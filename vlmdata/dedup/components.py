"""Edges between rows that are alike, and the groups that they make: connected components."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import numpy as np


class Edges(NamedTuple):
    """Pairs of rows that are alike.

    i, j: int64 [m], rows, i < j. similarity: float32 [m], 0 to 1.
    equal: the rows j have the very value of their row i, which stands for them: their other neighbours are its own.
    """

    i: np.ndarray
    j: np.ndarray
    similarity: np.ndarray
    equal: bool = False


class Compared(NamedTuple):
    """What a method finds.

    known: what its module needs, besides the values, to compare later rows with these: arrays by name, of which
    `rows` holds places of rows. centroid: gives the float32 cosine of some rows (int64 [m]) to the centroid of their
    partition, asked for once the edges are through; None where a method has no partitions.
    """

    edges: Iterator[Edges]
    known: dict[str, np.ndarray]
    centroid: Callable[[np.ndarray], np.ndarray] | None = None


def components(n: int, i: np.ndarray, j: np.ndarray) -> np.ndarray:
    """int64 [n]: for each of n rows the smallest row that the edges i-j connect it with, itself where there is none."""
    labels = np.arange(n, dtype=np.int64)
    while True:
        i, j = labels[i], labels[j]
        apart = i != j
        if not apart.any():
            return labels
        i, j = i[apart], j[apart]
        # Every group hangs itself under the smallest one that an edge leads to: labels only fall, so no circle forms.
        np.minimum.at(labels, np.maximum(i, j), np.minimum(i, j))
        while not np.array_equal(labels, above := labels[labels]):
            labels = above


def unite(n: int, blocks: Iterable[Edges]) -> tuple[np.ndarray, np.ndarray]:
    """The components of edges that come block by block, in memory for n rows and a few blocks, not for all edges.

    Returns labels as `components` gives them, and float32 [n]: each row's similarity to the row most like it, 0 where
    it has no edge. Neither depends on the order of the blocks.
    """
    labels = np.arange(n, dtype=np.int64)
    best = np.zeros(n, np.float32)
    waiting: list[tuple[np.ndarray, np.ndarray]] = []
    count = 0
    for i, j, similarity, _ in blocks:
        np.maximum.at(best, i, similarity)
        np.maximum.at(best, j, similarity)
        waiting.append((i, j))
        count += len(i)
        # each merge costs n, so it waits for as many edges
        if count >= max(n, 1_000_000):
            labels, waiting, count = _merged(labels, waiting), [], 0
    return _merged(labels, waiting), best


def _merged(labels: np.ndarray, waiting: list[tuple[np.ndarray, np.ndarray]]) -> np.ndarray:
    if not waiting:
        return labels
    i, j = (np.concatenate(side) for side in zip(*waiting, strict=True))
    # labels are rows too, each group's smallest, so edges between labels join whole groups
    return components(len(labels), labels[i], labels[j])[labels]


def stars(codes: np.ndarray) -> Edges:
    """Edges from the first row of each code to every other row of it, similarity 1; codes: int [n], -1 for no value."""
    _, first, inverse = np.unique(codes, return_index=True, return_inverse=True)
    hub = first[inverse].astype(np.int64)
    row = np.arange(len(codes), dtype=np.int64)
    other = (hub != row) & (codes >= 0)
    return Edges(hub[other], row[other], np.ones(np.count_nonzero(other), np.float32), equal=True)


def since(edges: Edges, earlier: int) -> Edges:
    """The edges of which one row at least is not among the `earlier` first."""
    new = edges.j >= earlier
    return edges._replace(i=edges.i[new], j=edges.j[new], similarity=edges.similarity[new])
