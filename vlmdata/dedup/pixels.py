"""Duplicates whose stored pictures are the same, pixel by pixel, whatever file they came in."""

from collections.abc import Mapping

import numpy as np
import pyarrow as pa

from vlmdata import recipe
from vlmdata.dedup import exact
from vlmdata.dedup.components import Compared, since


def reads(options: recipe.PixelsDedup) -> tuple[str, list[str]]:
    """The table and the columns of it that the method compares."""
    return "image", ["pixels_sha256"]


def compare(
    options: recipe.PixelsDedup, values: Mapping[str, np.ndarray | pa.Array], earlier: int = 0, known: object = None
) -> Compared:
    """The edges between rows whose stored pixels are the same, of which one is not among the `earlier` first."""
    return Compared((since(edges, earlier) for edges in exact.pairs(values["pixels_sha256"])), {})
