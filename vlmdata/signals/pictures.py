"""The decoded images that the signals of one part share."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

import cv2
import numpy as np

T = TypeVar("T")
_MULTIPLE = 32  # detectors halve an image five times


@dataclass(frozen=True)
class Pictures:
    """Every distinct image of some rows, once.

    pixels: uint8 arrays of shape [height, width, 3], RGB; heights and widths differ.
    of: int64 [rows], for each row the place of its image in `pixels`.
    found: what signals found in images that others want to know, too (`once`).
    """

    pixels: list[np.ndarray]
    of: np.ndarray
    found: dict[tuple[str, int], tuple[np.ndarray, Any]] = field(default_factory=dict)

    def once(self, what: str, pixels: np.ndarray, find: Callable[[np.ndarray], T]) -> T:
        """`find(pixels)`, computed once for each image and name of what is looked for."""
        key = what, id(pixels)
        if key not in self.found:
            self.found[key] = pixels, find(pixels)  # the pixels too: while they live, no others have their id
        return self.found[key][1]


def fitted(pixels: np.ndarray, size: int) -> tuple[np.ndarray, tuple[int, int]]:
    """An image as a detector takes it: its longer side at most `size`, both sides padded to multiples of 32.

    pixels: uint8 [height, width, 3]. Returns the array and (height, width) of the part of it that is the image, at its
    top left; behind it the last row and column go on.
    """
    height, width = pixels.shape[:2]
    scale = min(1.0, size / max(height, width))
    if scale < 1:
        height, width = (max(1, round(side * scale)) for side in (height, width))
        pixels = cv2.resize(np.ascontiguousarray(pixels), (width, height), interpolation=cv2.INTER_AREA)
    return cv2.copyMakeBorder(pixels, 0, -height % _MULTIPLE, 0, -width % _MULTIPLE, cv2.BORDER_REPLICATE), (
        height,
        width,
    )
