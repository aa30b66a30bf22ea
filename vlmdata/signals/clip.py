"""How well caption and image fit: the cosine of their embeddings (Radford et al. 2021, Hessel et al. 2021).

`model: lite` is the embedded model; every other name is an open_clip architecture with a pretrained tag or a
checkpoint's path, or a local directory with `open_clip_config.json` and weights.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from vlmdata import recipe
from vlmdata.schemas import conform, table_schema
from vlmdata.signals import openclip
from vlmdata.signals.models import digest, loaded_once, package_file
from vlmdata.signals.openclip import Encoder
from vlmdata.signals.pictures import Pictures

VERSION = 1
IMAGES = True


def schemas(options: recipe.ClipSignal) -> dict[str, pa.Schema]:
    """The tables that `measure` gives; no model is loaded. Raises InputError for a model that is not known."""
    name = recipe.signal_name(options)
    suffix = recipe.signal_suffix(options)
    return {
        name: table_schema("clip", suffix),
        f"embeddings_{name}": table_schema("embeddings", suffix, dim=dimension(options)),
    }


def dimension(options: recipe.ClipSignal) -> int:
    """The length of the embeddings, from the model's configuration. Raises InputError for a model that is not known."""
    if options.model == "lite":
        return int(json.loads(package_file("vlmdata.models", "lite", "config.json").read_text("utf-8"))["dim"])
    return int(openclip.config(options)["model_cfg"]["embed_dim"])


def identity(options: recipe.ClipSignal) -> dict[str, Any]:
    """What determines the values, preprocessing included, whatever the model's path is; see `openclip.identity`.

    Raises InputError as `dimension` does.
    """
    if options.model == "lite":
        from vlmdata import lite

        return lite.identity()
    return openclip.identity(options)


def device(options: recipe.ClipSignal) -> str:
    """Where the values of this process come from, and in what precision: `cpu fp32`."""
    return "cpu fp32" if options.model == "lite" else openclip.device(options)


def absolute(options: recipe.ClipSignal) -> recipe.ClipSignal:
    """The same model, with paths that a worker finds from another working folder."""
    directory = None if options.model == "lite" else openclip.directory(options)
    if directory:
        return options.model_copy(update={"model": f"local-dir:{directory.resolve()}"})
    if options.pretrained and Path(options.pretrained).is_file():
        return options.model_copy(update={"pretrained": str(Path(options.pretrained).resolve())})
    return options


def measure(rows: pa.Table, images: Pictures | None, options: recipe.ClipSignal) -> dict[str, pa.Table]:
    """The tables `clip` and `embeddings_clip` of some rows; reads uid, caption and the images.

    clip_score: cosine, float32, null for a null caption. vector: the image's embedding, unit length, float16.
    Raises InputError when the model cannot be loaded.
    """
    assert images is not None, "clip reads images"
    vectors = np.zeros((0, dimension(options)), np.float32)
    score = pa.array([], pa.float32())
    if len(rows):
        vectors, score = compare(rows, images, encoder(options))
    name = recipe.signal_name(options)
    tables = schemas(options)
    score_column, vector_column = (tables[table].names[1] for table in (name, f"embeddings_{name}"))
    halves = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float16).ravel()), vectors.shape[1])
    columns = {
        name: {"uid": rows["uid"], score_column: score},
        f"embeddings_{name}": {"uid": rows["uid"], vector_column: halves},
    }
    return {table: conform(pa.table(columns[table]), schema) for table, schema in tables.items()}


def compare(rows: pa.Table, images: Pictures, encoder: Encoder) -> tuple[np.ndarray, pa.Array]:
    """The rows' image vectors, float32 [n, d], and their cosine with the captions', null for a null caption.

    rows: at least one, with the column caption. Every distinct image and every distinct caption is encoded once.
    """
    caption = pa.chunked_array(rows["caption"]).combine_chunks()
    distinct = caption.fill_null("").dictionary_encode()
    of_image = encoder.encode_images(images.pixels)[images.of]
    of_text = encoder.encode_texts(distinct.dictionary.to_pylist())[distinct.indices.to_numpy()]
    score = np.einsum("nd,nd->n", of_image, of_text).clip(-1, 1)
    return of_image, pa.array(score, pa.float32(), mask=caption.is_null().to_numpy(zero_copy_only=False))


def encoder(options: recipe.ClipSignal) -> Encoder:
    """The model, loaded once a process."""
    known = digest(identity(options))
    return _encoder(options.model, options.pretrained, options.batch, options.precision, known)


@loaded_once
def _encoder(model: str, pretrained: str | None, batch: int, precision: str, _identity: str) -> Encoder:
    if model == "lite":  # it makes batches of its own
        from vlmdata import lite

        loaded = lite.load()
        return Encoder(loaded.encode_images, loaded.encode_texts)
    values = {"kind": "clip", "model": model, "pretrained": pretrained, "batch": batch, "precision": precision}
    return openclip.load(recipe.ClipSignal.model_validate(values))
