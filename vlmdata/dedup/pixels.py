"""Duplicates whose stored pictures are the same, pixel by pixel, whatever file they came in."""

from collections.abc import Iterator, Mapping

import numpy as np
import pyarrow as pa

from vlmdata import recipe
from vlmdata.dedup import exact
from vlmdata.dedup.components import Edges


def reads(options: recipe.PixelsDedup) -> tuple[str, list[str]]:
    """The table and the columns of it that the method compares."""
    return "image", ["pixels_sha256"]


def edges(options: recipe.PixelsDedup, values: Mapping[str, np.ndarray | pa.Array]) -> Iterator[Edges]:
    """The edges between rows whose stored, resized images have the same pixels."""
    yield exact.pairs(values["pixels_sha256"])
