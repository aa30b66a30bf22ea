"""Duplicates whose bytes are the same."""

from collections.abc import Iterator, Mapping
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlmdata import recipe
from vlmdata.dedup.components import Compared, Edges, since, stars

BLOCK = 100_000  # rows


def reads(options: recipe.ExactDedup) -> tuple[str, list[str]]:
    """The table and the columns of it that the method compares."""
    return "images", ["sha256"]


def compare(
    options: recipe.ExactDedup, values: Mapping[str, np.ndarray | pa.Array], earlier: int = 0, known: object = None
) -> Compared:
    """The edges between rows of the same sha256, of which one is not among the `earlier` first."""
    return Compared((since(edges, earlier) for edges in pairs(values["sha256"])), {})


def pairs(digests: np.ndarray | pa.Array | pa.ChunkedArray) -> Iterator[Edges]:
    """Edges from the first row of each digest to the others of it, similarity 1, in blocks. Rows with null have none.

    digests: hex as Arrow string, or as numpy bytes, which may be mapped from a file: of those that begin differently
    about BLOCK are looked at at once.
    """
    if not isinstance(digests, np.ndarray):
        column = digests.combine_chunks() if isinstance(digests, pa.ChunkedArray) else digests
        yield stars(_codes(column))
        return
    begins = digests.astype("S2").view(np.uint16)
    order = np.argsort(begins, kind="stable")
    sizes = np.bincount(begins)
    bounds = [0]
    for end in np.cumsum(sizes)[sizes > 0].tolist():
        if end - bounds[-1] >= BLOCK or end == len(digests):
            bounds.append(end)
    for start, end in pairwise(bounds):
        rows = np.sort(order[start:end])
        # Arrow would copy all, and cannot have more than 2 GB of bytes in one array unless their length is fixed
        chosen = digests[rows]
        width = pa.binary(digests.dtype.itemsize)
        found = stars(_codes(pa.FixedSizeBinaryArray.from_buffers(width, len(chosen), [None, pa.py_buffer(chosen)])))
        yield found._replace(i=rows[found.i], j=rows[found.j])


def _codes(digests: pa.Array) -> np.ndarray:
    """A number for each that is equal; -1 for null."""
    return pc.fill_null(digests.dictionary_encode().indices, -1).to_numpy(zero_copy_only=False)
