"""At which rank queries find what is theirs among many items, by the dot product; in bounded memory."""

import numpy as np

from vlmdata.errors import DataError

_AT_ONCE = 2**25  # scores in memory; 128 MB


def ranks(queries: np.ndarray, items: np.ndarray, own: np.ndarray, starts: np.ndarray, chunk: int = 1024) -> np.ndarray:
    """The best rank at which each query finds an item of its own, float64 [q], from 1.

    queries: float [q, d]; items: float [m, d].
    own, starts: int [k] and [q + 1]; the items of query i are own[starts[i] : starts[i + 1]], one at least.
    chunk: queries compared at once, fewer where there are many items.

    The rank is 1 + (others' items with a higher score) + (others' items with the same score) / 2: ties count as if
    their order were drawn by lot and half of them came first.

    Raises DataError for vectors that are not finite.
    """
    if not (np.isfinite(queries).all() and np.isfinite(items).all()):
        raise DataError("retrieval: some vectors are not finite; the model that made them has diverged")
    queries, items = queries.astype(np.float32, copy=False), items.astype(np.float32, copy=False)
    # One column stands for equal items, so that equal captions tie exactly: two dot products of the same rows may
    # differ in the last bit, by where in the matrix they were computed. Columns of several items come last.
    distinct, which, counts = np.unique(items, axis=0, return_inverse=True, return_counts=True)
    order = np.argsort(counts, kind="stable")
    column = np.empty(len(order), np.int64)
    column[order] = np.arange(len(order))
    mine = column[which.ravel()][own]
    distinct, counts = distinct[order], counts[order]
    several = int(np.searchsorted(counts, 2))
    more = (counts[several:] - 1).astype(np.float32)

    def number(chosen: np.ndarray) -> np.ndarray:
        """Items under the chosen columns of each row, bool [rows, columns]."""
        return np.count_nonzero(chosen, axis=1) + chosen[:, several:] @ more

    result = np.empty(len(queries))
    chunk = max(1, min(chunk, _AT_ONCE // len(distinct)))
    for first in range(0, len(queries), chunk):
        last = min(first + chunk, len(queries))
        scores = queries[first:last] @ distinct.T
        begins = starts[first:last] - starts[first]
        row = np.repeat(np.arange(last - first), np.diff(starts[first : last + 1]))
        found = scores[row, mine[starts[first] : starts[last]]]
        best = np.maximum.reduceat(found, begins)
        same = np.add.reduceat(found == best[row], begins, dtype=np.int64)  # of the query's own
        tied = number(scores == best[:, None]) - same
        result[first:last] = 1 + number(scores > best[:, None]) + tied / 2
    return result


def both(
    image_vectors: np.ndarray, text_vectors: np.ndarray, starts: np.ndarray, chunk: int = 1024
) -> tuple[np.ndarray, np.ndarray]:
    """The ranks of n images' queries for texts, float64 [n], and of m texts' for images, float64 [m].

    starts: int [n + 1]; to image i belong the texts starts[i] to starts[i + 1]. Raises DataError as `ranks`.
    """
    m = len(text_vectors)
    image = np.repeat(np.arange(len(image_vectors)), np.diff(starts))
    of_image = ranks(image_vectors, text_vectors, np.arange(m), starts, chunk)
    return of_image, ranks(text_vectors, image_vectors, image, np.arange(m + 1), chunk)
