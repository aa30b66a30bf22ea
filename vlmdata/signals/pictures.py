"""The decoded images that the signals of one part share."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Pictures:
    """Every distinct image of some rows, once.

    pixels: uint8 arrays of shape [height, width, 3], RGB; heights and widths differ.
    of: int64 [rows], for each row the place of its image in `pixels`.
    """

    pixels: list[np.ndarray]
    of: np.ndarray
