"""How much of an image is text: regions found by the detector of PP-OCRv4 (https://github.com/PaddlePaddle/PaddleOCR).

The detector is DB (Liao et al. 2020, "Real-time Scene Text Detection with Differentiable Binarization"), its weights
those of the package rapidocr-onnxruntime, of which nothing else is used. What is written there is not read.
"""

from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from vlmdata import extras, recipe
from vlmdata.schemas import conform, table_schema
from vlmdata.signals.models import file_sha256, loaded_once, onnx_session, package_file
from vlmdata.signals.pictures import Pictures, fitted

VERSION = 1
IMAGES = True

_MODEL = ("rapidocr_onnxruntime", "models", "ch_PP-OCRv4_det_infer.onnx")
_TEXT = 0.3  # a pixel's probability, above which it is text
_SURE = 0.5  # a region's mean probability, at least
_GROWN = 1.6  # the detector finds regions shrunken by area / circumference times this
_THIN = 3  # pixels; what is thinner is no region
_MOST = 1000  # regions of one image


def schemas(options: recipe.OcrSignal) -> dict[str, pa.Schema]:
    """The tables that `measure` gives."""
    return {"ocr": table_schema("ocr"), "boxes_ocr": table_schema("boxes_ocr")}


def identity(options: recipe.OcrSignal) -> dict[str, str]:
    """sha256 of the detector's file."""
    return {_MODEL[-1]: file_sha256(package_file(*_MODEL, install=extras.OCR))}


def measure(rows: pa.Table, images: Pictures | None, options: recipe.OcrSignal) -> dict[str, pa.Table]:
    """The tables `ocr` and `boxes_ocr` of some rows; reads uid and the images.

    text_area: share of the image's pixels inside regions of text, their union, float32, 0 to 1. text_boxes: how many
    regions (about one a line), int32. text_polygons: of each region x1, y1, … x4, y4, the corners of a rectangle of any
    turn, relative to width and height, float32, 0 to 1.
    """
    assert images is not None, "ocr reads images"
    found = regions(images, options.size)
    area = np.array(
        [covered(polygons, *pixels.shape[:2]) for polygons, pixels in zip(found, images.pixels, strict=True)]
    )
    count = np.array([len(polygons) for polygons in found], np.int32)
    polygons = pa.array([each.reshape(-1, 8).tolist() for each in found], table_schema("boxes_ocr").field(1).type)
    columns = {"uid": rows["uid"], "text_area": area[images.of], "text_boxes": count[images.of]}
    boxes = {"uid": rows["uid"], "text_polygons": polygons.take(pa.array(images.of))}
    return {
        "ocr": conform(pa.table(columns), table_schema("ocr")),
        "boxes_ocr": conform(pa.table(boxes), table_schema("boxes_ocr")),
    }


def regions(images: Pictures, size: int) -> list[np.ndarray]:
    """The regions of text of every distinct image (`detect`), found once for all signals that ask."""
    return [images.once(f"ocr {size}", pixels, lambda pixels: detect(pixels, size)) for pixels in images.pixels]


def detect(pixels: np.ndarray, size: int) -> np.ndarray:
    """Regions of text: float32 [n, 4, 2], corners (x, y) of rectangles of any turn, relative, 0 to 1.

    pixels: uint8 [height, width, 3], RGB. size: the longer side that the detector sees; no image is enlarged.
    """
    seen, (height, width) = fitted(pixels, size)
    # As the model was trained: BGR, -1 to 1.
    blob = (seen[None, :, :, ::-1].transpose(0, 3, 1, 2).astype(np.float32) / 255 - 0.5) / 0.5
    session = _session()
    (probability,) = session.run(None, {session.get_inputs()[0].name: np.ascontiguousarray(blob)})
    probability = probability[0, 0]
    contours, _ = cv2.findContours((probability > _TEXT).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_SIMPLE)
    found = []
    for contour in contours[:_MOST]:
        centre, (w, h), turn = cv2.minAreaRect(contour)
        if min(w, h) < _THIN or _inside(probability, contour) < _SURE:
            continue
        grown = _GROWN * w * h / (w + h)  # twice: area times ratio over circumference, on both sides
        corners = cv2.boxPoints((centre, (w + grown, h + grown), turn))
        found.append(corners / np.array([width, height], np.float32))
    return np.array(found, np.float32).reshape(-1, 4, 2).clip(0, 1)


def painted(polygons: np.ndarray, height: int, width: int) -> np.ndarray:
    """bool [height, width]: where an image of that size has text. polygons: as `detect` gives them."""
    mask = np.zeros((height, width), np.uint8)
    for polygon in polygons:
        cv2.fillConvexPoly(mask, np.rint(polygon * [width, height] - 0.5).astype(np.int32), 1)
    return mask.astype(bool)


def covered(polygons: np.ndarray, height: int, width: int) -> float:
    """Share of an image's pixels inside the polygons, their union; 0 to 1."""
    return float(painted(polygons, height, width).mean()) if len(polygons) else 0.0


def _inside(probability: np.ndarray, contour: np.ndarray) -> float:
    """The mean probability of the pixels inside a contour."""
    left, top, width, height = cv2.boundingRect(contour)
    mask = np.zeros((height, width), np.uint8)
    cv2.drawContours(mask, [contour - [left, top]], 0, 1, cv2.FILLED)
    return float(cv2.mean(probability[top : top + height, left : left + width], mask)[0])


@loaded_once
def _session() -> Any:
    return onnx_session(str(package_file(*_MODEL, install=extras.OCR)))
