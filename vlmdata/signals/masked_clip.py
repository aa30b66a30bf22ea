"""How well caption and image fit when the image's text is painted over (T-MARS: Maini et al. 2023, "T-MARS: Improving
Visual Representations by Circumventing Text Feature Learning").

A pair whose score falls much below `clip_score` is about the words in the image. Regions of text are those of `ocr`
(T-MARS itself uses another detector, FAST); each is filled with the mean colour of the pixels around it.
"""

import cv2
import numpy as np
import pyarrow as pa

from vlmdata import recipe
from vlmdata.schemas import conform, table_schema
from vlmdata.signals import clip, ocr
from vlmdata.signals.pictures import Pictures

VERSION = 1
IMAGES = True

_RING = 4  # pixels around a region, whose mean fills it


def schemas(options: recipe.MaskedClipSignal) -> dict[str, pa.Schema]:
    """The table that `measure` gives. Raises InputError for a model that is not known."""
    clip.dimension(_plain(options))
    return {recipe.signal_name(options): table_schema("masked_clip", recipe.signal_suffix(options))}


def identity(options: recipe.MaskedClipSignal) -> dict[str, str]:
    """What determines the values: the model of `clip` and the detector of `ocr`, with the versions of their modules."""
    versions = {"clip": str(clip.VERSION), "ocr": str(ocr.VERSION)}
    detector = ocr.identity(recipe.OcrSignal(kind="ocr", size=options.size))
    return clip.identity(_plain(options)) | detector | versions


def absolute(options: recipe.MaskedClipSignal) -> recipe.ClipSignal:
    """The same model, with paths that a worker finds from another working folder."""
    return clip.absolute(options)


def device(options: recipe.MaskedClipSignal) -> str:
    """Where the values of this process come from, and in what precision."""
    return clip.device(options)


def measure(rows: pa.Table, images: Pictures | None, options: recipe.MaskedClipSignal) -> dict[str, pa.Table]:
    """The table `masked_clip` of some rows; reads uid, caption and the images.

    masked_clip_score: cosine, float32, -1 to 1, that of `clip` where no text is found; null for a null caption.
    """
    assert images is not None, "masked_clip reads images"
    found = ocr.regions(images, options.size)
    masked = [
        without_text(pixels, polygons) if len(polygons) else pixels
        for pixels, polygons in zip(images.pixels, found, strict=True)
    ]
    score = pa.array([], pa.float32())
    if len(rows):
        _, score = clip.compare(rows, Pictures(masked, images.of), clip.encoder(_plain(options)))
    ((name, schema),) = schemas(options).items()
    return {name: conform(pa.table({"uid": rows["uid"], schema.names[1]: score}), schema)}


def without_text(pixels: np.ndarray, polygons: np.ndarray) -> np.ndarray:
    """A copy of an image (uint8 [height, width, 3]) with every region filled with the mean colour around it.

    polygons: float32 [n, 4, 2], as `ocr.detect` gives them. Around: a ring outside all regions; where there is none,
    all that is outside; where nothing is, the image.
    """
    height, width = pixels.shape[:2]
    text = ocr.painted(polygons, height, width)
    outside = pixels[~text] if not text.all() else pixels.reshape(-1, 3)
    result = pixels.copy()
    for polygon in polygons:
        region = ocr.painted(polygon[None], height, width)
        left, top, wide, high = cv2.boundingRect(region.astype(np.uint8))
        # in a window only: an image may have hundreds of regions
        rows = slice(max(0, top - _RING), top + high + _RING)
        columns = slice(max(0, left - _RING), left + wide + _RING)
        grown = cv2.dilate(region[rows, columns].astype(np.uint8), np.ones((2 * _RING + 1,) * 2, np.uint8))
        ring = pixels[rows, columns][(grown > 0) & ~text[rows, columns]]
        colour = (ring if len(ring) else outside).mean(0)
        result[rows, columns][region[rows, columns]] = np.rint(colour)
    return result


def _plain(options: recipe.MaskedClipSignal) -> recipe.ClipSignal:
    """The options of `clip` that these are."""
    return recipe.ClipSignal.model_validate({**options.model_dump(exclude={"size"}), "kind": "clip"})
