"""Duplicates whose bytes are the same."""

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlmdata import recipe
from vlmdata.dedup.components import Edges, stars


def reads(options: recipe.ExactDedup) -> tuple[str, list[str]]:
    """The table and the columns of it that the method compares."""
    return "images", ["sha256"]


def edges(options: recipe.ExactDedup, values: Mapping[str, np.ndarray | pa.Array]) -> Iterator[Edges]:
    """The edges between rows of the same sha256."""
    yield pairs(values["sha256"])


def pairs(sha256: np.ndarray | pa.Array | pa.ChunkedArray) -> Edges:
    """Edges from the first row of each sha256 to the others of it, similarity 1. Rows with null have none.

    sha256: hex as Arrow string or as numpy bytes.
    """
    column = pa.chunked_array(sha256) if isinstance(sha256, pa.ChunkedArray | list) else pa.array(sha256)
    if isinstance(column, pa.ChunkedArray):
        column = column.combine_chunks()
    return stars(pc.fill_null(column.dictionary_encode().indices, -1).to_numpy(zero_copy_only=False))
