"""Duplicates whose bytes are the same."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlmdata import recipe
from vlmdata.dedup.components import Compared, Edges, since, stars


def reads(options: recipe.ExactDedup) -> tuple[str, list[str]]:
    """The table and the columns of it that the method compares."""
    return "images", ["sha256"]


def compare(
    options: recipe.ExactDedup, values: Mapping[str, np.ndarray | pa.Array], earlier: int = 0, known: object = None
) -> Compared:
    """The edges between rows of the same sha256, of which one is not among the `earlier` first."""
    return Compared(iter([since(pairs(values["sha256"]), earlier)]), {})


def pairs(sha256: np.ndarray | pa.Array | pa.ChunkedArray) -> Edges:
    """Edges from the first row of each sha256 to the others of it, similarity 1. Rows with null have none.

    sha256: hex as Arrow string or as numpy bytes, which may be mapped from a file.
    """
    if isinstance(sha256, np.ndarray):
        # Arrow would copy all, and cannot have more than 2 GB of bytes in one array unless their length is fixed
        width = pa.binary(sha256.dtype.itemsize)
        buffers = [None, pa.py_buffer(np.ascontiguousarray(sha256).view(np.uint8))]
        column = pa.FixedSizeBinaryArray.from_buffers(width, len(sha256), buffers)
    else:
        column = sha256.combine_chunks() if isinstance(sha256, pa.ChunkedArray) else sha256
    return stars(pc.fill_null(column.dictionary_encode().indices, -1).to_numpy(zero_copy_only=False))
