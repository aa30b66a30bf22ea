"""How well caption and image fit: the cosine of their embeddings (Radford et al. 2021, Hessel et al. 2021).

`model: lite` is the embedded model; every other name is an open_clip architecture with a pretrained tag or a
checkpoint's path, or a local directory with `open_clip_config.json` and weights.
"""

import json
import logging
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from vlmdata import recipe
from vlmdata.errors import InputError
from vlmdata.schemas import conform, table_schema
from vlmdata.signals.models import file_sha256, in_batches, loaded_once, package_file
from vlmdata.signals.pictures import Pictures

VERSION = 1
IMAGES = True

_RANDOM = "random"
_log = logging.getLogger(__name__)


class Encoder(NamedTuple):
    """Two functions to unit vectors, float32 [n, d]: of RGB images (uint8 [height, width, 3]) and of texts."""

    encode_images: Callable[[list[np.ndarray]], np.ndarray]
    encode_texts: Callable[[list[str]], np.ndarray]


def schemas(options: recipe.ClipSignal) -> dict[str, pa.Schema]:
    """The tables that `measure` gives; no model is loaded. Raises InputError for a model that is not known."""
    name = recipe.signal_name(options)
    suffix = name.removeprefix("clip")
    return {
        name: table_schema("clip", suffix),
        f"embeddings_{name}": table_schema("embeddings", suffix, dim=dimension(options)),
    }


def dimension(options: recipe.ClipSignal) -> int:
    """The length of the embeddings, from the model's configuration. Raises InputError for a model that is not known."""
    if options.model == "lite":
        return int(json.loads(package_file("vlmdata.models", "lite", "config.json").read_text("utf-8"))["dim"])
    return int(_config(options)["embed_dim"])


def identity(options: recipe.ClipSignal) -> dict[str, str]:
    """What determines the values: sha256 of local files; a published tag, which never changes, by its name.

    open_clip's version stands for its preprocessing and tokenizer. Raises InputError as `dimension` does.
    """
    if options.model == "lite":
        from vlmdata import lite

        return lite.identity()
    _config(options)
    found = {"open_clip": version("open-clip-torch"), "model": options.model, "pretrained": str(options.pretrained)}
    directory = _directory(options)
    if directory:
        found = {"open_clip": found["open_clip"]}
        for file in sorted(p for p in directory.iterdir() if p.is_file()):
            found[file.name] = file_sha256(file)
    elif options.pretrained and Path(options.pretrained).is_file():
        # the same weights at another path are the same model
        found["pretrained"] = file_sha256(options.pretrained)
    return found


def absolute(options: recipe.ClipSignal) -> recipe.ClipSignal:
    """The same model, with paths that a worker finds from another working folder."""
    directory = None if options.model == "lite" else _directory(options)
    if directory:
        return options.model_copy(update={"model": f"local-dir:{directory.resolve()}"})
    if options.pretrained and Path(options.pretrained).is_file():
        return options.model_copy(update={"pretrained": str(Path(options.pretrained).resolve())})
    return options


def measure(rows: pa.Table, images: Pictures | None, options: recipe.ClipSignal) -> dict[str, pa.Table]:
    """The tables `clip` and `embeddings_clip` of some rows; reads uid, caption and the images.

    clip_score: cosine, float32, null for a null caption. vector: the image's embedding, unit length, float16.
    Every distinct image and every distinct caption is encoded once.
    Raises InputError when the model cannot be loaded.
    """
    assert images is not None, "clip reads images"
    of_image = np.zeros((len(rows), dimension(options)), np.float32)
    of_text = of_image
    caption = pa.chunked_array(rows["caption"]).combine_chunks()
    if len(rows):
        encoder = _encoder(options.model, options.pretrained, options.batch)
        distinct = caption.fill_null("").dictionary_encode()
        of_image = encoder.encode_images(images.pixels)[images.of]
        of_text = encoder.encode_texts(distinct.dictionary.to_pylist())[distinct.indices.to_numpy()]
    score = np.einsum("nd,nd->n", of_image, of_text).clip(-1, 1)
    name = recipe.signal_name(options)
    tables = schemas(options)
    score_column, vector_column = (tables[table].names[1] for table in (name, f"embeddings_{name}"))
    absent = caption.is_null().to_numpy(zero_copy_only=False)
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(of_image.astype(np.float16).ravel()), of_image.shape[1])
    columns = {
        name: {"uid": rows["uid"], score_column: pa.array(score, pa.float32(), mask=absent)},
        f"embeddings_{name}": {"uid": rows["uid"], vector_column: vectors},
    }
    return {table: conform(pa.table(columns[table]), schema) for table, schema in tables.items()}


@loaded_once
def _encoder(model: str, pretrained: str | None, batch: int) -> Encoder:
    if model == "lite":  # it makes batches of its own
        from vlmdata import lite

        loaded = lite.load()
        return Encoder(loaded.encode_images, loaded.encode_texts)
    bare = _open_clip(recipe.ClipSignal(kind="clip", model=model, pretrained=pretrained))
    return Encoder(
        lambda pixels: in_batches(bare.encode_images, pixels, batch),
        lambda texts: in_batches(bare.encode_texts, texts, batch),
    )


def _open_clip(options: recipe.ClipSignal) -> Encoder:
    """An open_clip model with its own preprocessing and tokenizer, on a GPU where there is one."""
    _config(options)
    import open_clip
    import torch
    from PIL import Image

    torch.set_num_threads(1)  # parts are spread over the cores
    directory = _directory(options)
    name = f"local-dir:{directory}" if directory else options.model.replace("/", "-")
    trained = None if directory or options.pretrained == _RANDOM else options.pretrained
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model, _, preprocess = open_clip.create_model_and_transforms(
                name, pretrained=trained, require_pretrained=options.pretrained != _RANDOM, pretrained_text=False
            )
        tokenizer = open_clip.get_tokenizer(name)
    # open_clip and the hub's client raise many kinds; every one means that this model cannot be had
    except Exception as error:
        raise InputError(
            f"signals.clip: {options.model} with pretrained: {options.pretrained} cannot be loaded: "
            f"{_first_line(error)}. Without a network, give `pretrained` the path of a checkpoint or `model` the path "
            "of a directory with open_clip_config.json, weights and tokenizer; or use `model: lite`"
        ) from error
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = model.eval().to(device)
    _log.info("loaded %s, %s on %s", options.model, options.pretrained, device)

    def encode_images(pixels: list[np.ndarray]) -> np.ndarray:
        batch = torch.stack([preprocess(Image.fromarray(picture)) for picture in pixels])
        with torch.inference_mode():
            return model.encode_image(batch.to(device), normalize=True).float().cpu().numpy()

    def encode_texts(texts: list[str]) -> np.ndarray:
        with torch.inference_mode():
            return model.encode_text(tokenizer(texts).to(device), normalize=True).float().cpu().numpy()

    return Encoder(encode_images, encode_texts)


def _directory(options: recipe.ClipSignal) -> Path | None:
    """The local directory that `model` names, if it does."""
    path = Path(options.model.removeprefix("local-dir:"))
    return path if options.model.startswith("local-dir:") or path.is_dir() else None


def _config(options: recipe.ClipSignal) -> dict[str, Any]:
    """open_clip's configuration of the model, read from its file. Raises InputError, with what to write instead."""
    directory = _directory(options)
    if directory:
        if options.pretrained:
            raise InputError(f"signals.clip: {directory} has its own weights: leave `pretrained` out")
        file = directory / "open_clip_config.json"
        try:
            return json.loads(file.read_text("utf-8"))["model_cfg"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"signals.clip.model: {file} is no open_clip configuration: {error!r}") from error
    folder = package_file("open_clip", "factory.py").parent / "model_configs"
    known = sorted(file.stem for file in folder.glob("*.json"))
    name = options.model.replace("/", "-")
    if name not in known:
        raise InputError(
            f"signals.clip.model: {options.model!r} is neither lite, an architecture of open_clip, nor a directory"
            f"{recipe.nearest(name, known)}"
        )
    if not options.pretrained:
        raise InputError(
            f"signals.clip: {options.model} needs `pretrained`: a tag of open_clip (such as laion2b_s34b_b79k for "
            "ViT-B-32) or the path of a checkpoint; random weights, for tests, are called `random`"
        )
    looks_like_path = re.search(r"[/\\]|\.(pt|pth|bin|safetensors|npz|npy)$", options.pretrained)
    if looks_like_path and not Path(options.pretrained).is_file():
        raise InputError(f"signals.clip.pretrained: there is no file {options.pretrained}")
    return json.loads((folder / f"{name}.json").read_text("utf-8"))


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
