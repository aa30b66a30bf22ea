"""Any model of open_clip: what it is, by the hashes of all that its values depend on, and its two encoders."""

import hashlib
import json
import logging
import os
import re
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vlmdata import recipe
from vlmdata.errors import InputError, first_line
from vlmdata.signals.models import device_name, file_sha256, in_batches, package_file, torch_device

_RANDOM = "random"
_log = logging.getLogger(__name__)


class Encoder(NamedTuple):
    """Two functions to unit vectors, float32 [n, d]: of RGB images (uint8 [height, width, 3]) and of texts."""

    encode_images: Callable[[list[np.ndarray]], np.ndarray]
    encode_texts: Callable[[list[str]], np.ndarray]


def config(options: recipe.ClipSignal) -> dict[str, Any]:
    """The content of the model's `open_clip_config.json`: `model_cfg` and `preprocess_cfg`.

    Nothing is loaded. Raises InputError, with what to write instead, for a model that is not known.
    """
    inside = directory(options)
    if inside:
        if options.pretrained:
            raise InputError(f"signals.clip: {inside} has its own weights: leave `pretrained` out")
        file = inside / "open_clip_config.json"
        try:
            found = json.loads(file.read_text("utf-8"))
            refuse_code(found["model_cfg"], str(file))
            return {"model_cfg": dict(found["model_cfg"]), "preprocess_cfg": dict(found.get("preprocess_cfg", {}))}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
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
    return {"model_cfg": json.loads((folder / f"{name}.json").read_text("utf-8")), "preprocess_cfg": {}}


def refuse_code(model: dict[str, Any], where: str) -> None:
    """Raise InputError for a configuration whose tokenizer would run Python of its folder."""
    if ((model.get("text_cfg") or {}).get("tokenizer_kwargs") or {}).get("trust_remote_code"):
        raise InputError(f"{where}: its tokenizer asks to run code of its own (trust_remote_code), which is never done")


def directory(options: recipe.ClipSignal) -> Path | None:
    """The local directory that `model` names, if it does."""
    path = Path(options.model.removeprefix("local-dir:"))
    return path if options.model.startswith("local-dir:") or path.is_dir() else None


def identity(options: recipe.ClipSignal) -> dict[str, Any]:
    """Model and preprocessing; where these are equal, so are the values on one kind of device.

    weights: sha256 of a checkpoint or of every file of a directory; of a published tag, which never changes, where it
    is published. architecture: sha256 of its configuration. preprocessing: size, mean, std, interpolation, resize_mode
    and fill_color. tokenizer: its kind, with the vocabulary's sha256 where that is here. open_clip: the code's version.
    Raises InputError for a model that is not known, and for a tag whose weights want another activation.
    """
    made = config(options)
    model = made["model_cfg"]
    tag = _published(options, model)
    inside = directory(options)
    if inside:
        weights: object = {
            file.name: file_sha256(file)
            for file in sorted(inside.iterdir())
            if file.is_file() and file.name != "open_clip_config.json"
        }
    elif os.path.isfile(str(options.pretrained)) and not tag:
        weights = file_sha256(str(options.pretrained))
    else:
        places = {key: tag[key] for key in ("url", "hf_hub") if tag.get(key)}
        weights = {"model": options.model.replace("/", "-"), "pretrained": options.pretrained, **places}
    return {
        "open_clip": version("open-clip-torch"),
        "weights": weights,
        "architecture": hashlib.sha256(json.dumps(model, sort_keys=True).encode()).hexdigest(),
        "preprocessing": _preprocessing(made, tag),
        "tokenizer": _tokenizer(options, model),
    }


def _published(options: recipe.ClipSignal, model: dict[str, Any]) -> dict[str, Any]:
    """What open_clip knows of a tag; empty for a path, random weights, and a tag that it does not know."""
    if directory(options) or options.pretrained in (None, _RANDOM):
        return {}
    from open_clip.pretrained import get_pretrained_cfg

    name = options.model.replace("/", "-")
    tag = get_pretrained_cfg(name, str(options.pretrained))
    # open_clip only warns: the weights would run with an activation that they were not trained with.
    quick = bool(tag.get("quick_gelu"))
    if tag and quick != bool(model.get("quick_gelu")):
        other = f"{name}-quickgelu" if quick else name.removesuffix("-quickgelu")
        raise InputError(
            f"signals.clip: the weights {options.pretrained} were trained {'with' if quick else 'without'} QuickGELU: "
            f"write model: {other}"
        )
    return tag


def _preprocessing(made: dict[str, Any], tag: dict[str, Any]) -> dict[str, Any]:
    """As open_clip puts it together: its defaults, the directory's or the tag's own values, the tower's size."""
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    found = merge_preprocess_dict(PreprocessCfg(), made["preprocess_cfg"] or tag)
    size = made["model_cfg"]["vision_cfg"].get("image_size", found["size"])
    return json.loads(json.dumps({**found, "size": [size, size] if isinstance(size, int) else size}))


def _tokenizer(options: recipe.ClipSignal, model: dict[str, Any]) -> dict[str, Any]:
    text = model.get("text_cfg", {})
    kept = {name: text[name] for name in ("context_length", "hf_tokenizer_name", "tokenizer_kwargs") if name in text}
    if text.get("hf_tokenizer_name") or ("siglip" in options.model.lower() and not directory(options)):
        return kept  # a directory's own files are among its weights
    return {**kept, "vocabulary": file_sha256(package_file("open_clip", "bpe_simple_vocab_16e6.txt.gz"))}


def device(options: recipe.ClipSignal) -> str:
    """Where the model runs here, and in what precision: `cpu fp32`, `NVIDIA L4 bf16`."""
    return f"{device_name()} {'bf16' if _place(options)[1] else 'fp32'}"


def _place(options: recipe.ClipSignal) -> tuple[str, bool]:
    """The device, and whether the towers run in bf16 on it: by default where its hardware has that, never on a CPU."""
    place, half = torch_device()
    return place, {"auto": half, "bf16": True, "fp32": False}[options.precision]


def load(options: recipe.ClipSignal) -> Encoder:
    """The model with its own preprocessing and tokenizer, on a GPU where there is one, in batches of `options.batch`.

    On a GPU threads preprocess ahead and batches are sent from pinned memory; on a CPU that would only be in its way.
    Raises InputError when the model cannot be loaded.
    """
    _published(options, config(options)["model_cfg"])
    import open_clip
    import torch
    import torch.nn.functional as F
    from PIL import Image

    torch.set_num_threads(1)  # parts are spread over the cores
    inside = directory(options)
    name = f"local-dir:{inside}" if inside else options.model.replace("/", "-")
    trained = None if inside or options.pretrained == _RANDOM else options.pretrained
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
            f"{first_line(error)}. Without a network, give `pretrained` the path of a checkpoint or `model` the path "
            "of a directory with open_clip_config.json, weights and tokenizer; or use `model: lite`"
        ) from error
    place, half = _place(options)
    model = model.eval().to(place)
    _log.info("loaded %s, %s on %s", options.model, options.pretrained, device(options))

    def run(encode: Callable[..., Any], batch: Any) -> np.ndarray:
        if place == "cuda":
            batch = batch.pin_memory()
        with torch.inference_mode(), torch.autocast(place, torch.bfloat16, enabled=half):
            found = encode(batch.to(place, non_blocking=True))
        return F.normalize(found.float(), dim=-1).cpu().numpy()  # the length is taken in full precision

    def encode_images(pixels: list[np.ndarray]) -> np.ndarray:
        return in_batches(
            lambda batch: run(model.encode_image, torch.stack(batch)),
            pixels,
            options.batch,
            lambda picture: preprocess(Image.fromarray(picture)),
            threads=min(4, os.cpu_count() or 1) if place == "cuda" else 0,
        )

    def encode_texts(texts: list[str]) -> np.ndarray:
        return in_batches(lambda batch: run(model.encode_text, tokenizer(batch)), texts, options.batch)

    return Encoder(encode_images, encode_texts)
