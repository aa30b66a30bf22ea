"""Faces made unrecognisable in a stored image, for `shards: {blur_faces: true}`.

Yang et al. 2022, "A Study of Face Obfuscation in ImageNet", find that models trained on images with blurred faces lose
less than a percent of accuracy. They blur with a Gaussian; here a face becomes a few mean colours, of which no filter
makes a face again. That hides who is seen from a reader; hair, clothes and place still tell some who know them.
"""

from collections.abc import Callable

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import simplejpeg

from vlmdata.errors import DataError
from vlmdata.shards import BLURRED

VERSION = 1

_CORNERS = ("left", "top"), ("right", "bottom")
_MARGIN = 0.15  # of the box's width and height, added on each side: ears, chin and hair line
_CELLS = 4  # mean colours along the shorter side of the enlarged box


def blurred(
    kept: pa.Table, read_image: Callable[[int, int], bytes], quality: int
) -> tuple[pa.Table, Callable[[int, int], bytes]]:
    """The rows with `faces_blurred` beside them, and `read_image` giving their images with the faces blurred.

    kept: reads offset and face_boxes. read_image(offset, length): a stored image's bytes. quality: of the JPEG.
    Raises DataError when faces were not looked for in a row.
    """
    missing = kept["face_boxes"].null_count
    if missing:
        raise DataError(
            f"shards.blur_faces: faces were not looked for in {missing} kept pairs: add a rule such as "
            "`faces is not null`, or take `after` out of the signal faces"
        )
    boxes = dict(zip(kept["offset"].to_pylist(), kept["face_boxes"].to_pylist(), strict=True))

    def read(offset: int, length: int) -> bytes:
        return blur_faces(read_image(offset, length), boxes[offset], quality)

    count = pc.cast(pc.list_value_length(kept["face_boxes"]), BLURRED.type)
    return kept.append_column(BLURRED, count), read


def blur_faces(jpeg: bytes, faces: list[dict[str, float]], quality: int) -> bytes:
    """The JPEG with the faces blurred, encoded again; the same bytes where there are none.

    faces: as `face_boxes` has them: left, top, right, bottom, relative to width and height, 0 to 1. quality: 1 to 100.
    Raises ValueError for bytes that are no JPEG.
    """
    if not faces:
        return jpeg
    pixels = simplejpeg.decode_jpeg(jpeg, "RGB")
    height, width = pixels.shape[:2]
    first, last = (np.array([[face[side] for side in sides] for face in faces]) for sides in _CORNERS)
    margin = _MARGIN * (last - first)
    first = np.floor((first - margin) * [width, height]).astype(int).clip(0)
    last = np.ceil((last + margin) * [width, height]).astype(int).clip(max=[width, height])
    for (left, top), (right, bottom) in zip(first.tolist(), last.tolist(), strict=True):
        face = pixels[top:bottom, left:right]
        if face.size:
            pixels[top:bottom, left:right] = _coarse(face)
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "RGB", "420")


def _coarse(face: np.ndarray) -> np.ndarray:
    """Nothing but the means of 4 cells along the shorter side, with smooth transitions from one to the next."""
    height, width = face.shape[:2]
    cell = max(min(height, width) / _CELLS, 1)
    size = max(1, round(width / cell)), max(1, round(height / cell))
    means = cv2.resize(np.ascontiguousarray(face), size, interpolation=cv2.INTER_AREA)
    return cv2.resize(means, (width, height), interpolation=cv2.INTER_LINEAR)
