"""The frozen vision tower of a LLaVA: the embedded one, or any CLIP or SigLIP; its features, computed once and kept."""

import hashlib
import json
import logging
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from vlmdata import towers
from vlmdata.errors import InputError, first_line
from vlmdata.recipe import ProjectorJob
from vlmdata.signals.models import in_batches
from vlmdata.train import data
from vlmdata.train.language_models import quiet

log = logging.getLogger(__name__)
progress = logging.getLogger("vlmdata.progress")

BATCH = 16  # pictures at once, always as many, so that no picture's features depend on the others


class Tower(NamedTuple):
    """A tower of transformers, and how LLaVA reads it."""

    model: Any
    processor: Any  # of transformers, which the export holds
    pixels: Callable[[list[np.ndarray]], Tensor]  # uint8 RGB pictures of any size to float32 [n, 3, height, width]
    layer: int  # whose hidden state is read
    select: Literal["default", "full"]  # `default`: without the first token, which is the class's; `full`
    tokens: int  # of a picture
    extra: int  # tokens of the model's that are no patches
    reads: str = ""  # of open_clip's the PreprocessCfg, as JSON

    @torch.inference_mode()
    def features(self, pictures: list[np.ndarray]) -> np.ndarray:
        """float32 [n, tokens, width], of uint8 RGB pictures of any size."""

        return in_batches(lambda given: self.read(given).cpu().numpy(), pictures, BATCH)

    @torch.inference_mode()
    def read(self, pictures: list[np.ndarray]) -> Tensor:
        """As `features`, all at once, on the tower's device."""
        found = self.model(self.pixels(pictures).to(self.model.device), output_hidden_states=True)
        hidden = found.hidden_states[self.layer]
        return (hidden[:, 1:] if self.select == "default" else hidden).float()

    def identity(self) -> str:
        """Hex sha256 of all that features depend on."""
        how = [str(self.layer), self.select, json.dumps(self.processor.to_dict(), sort_keys=True, default=str)]
        how += [self.reads] if self.reads else []
        digest = hashlib.sha256("\0".join([*how, towers.PREPROCESSING]).encode())
        for name, value in self.model.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def load(job: ProjectorJob) -> Tower:
    """The tower that a job names. Raises InputError for one that cannot be had."""
    if job.vision == "lite":
        tower = _lite(job.tokens or 49)
    elif job.vision.startswith("open_clip:") or (Path(job.vision) / "open_clip_config.json").is_file():
        tower = _open_clip(job.vision.removeprefix("open_clip:"), job.vision_layer)
    else:
        tower = _transformers(job.vision, job.vision_layer)
    tower.model.eval().requires_grad_(False)
    return tower


def _lite(tokens: int) -> Tower:
    from transformers import CLIPImageProcessor

    from vlmdata.train.lite_tower import embedded

    side = {"height": towers.SIDE, "width": towers.SIDE}
    mean, deviation = ((values / 255).tolist() for values in (towers.MEAN, towers.STD))
    processor = CLIPImageProcessor(size=side, do_center_crop=False, image_mean=mean, image_std=deviation)
    processor.crop_size = side  # unused, but asked for

    def pixels(pictures: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(towers.pixels(pictures)).permute(0, 3, 1, 2)

    return Tower(embedded(tokens), processor, pixels, -1, "full", tokens, 0)


def _transformers(name: str, layer: int) -> Tower:
    """A vision tower of transformers, or that of a model with two, such as CLIP; weights as safetensors alone."""
    from PIL import Image
    from transformers import AutoConfig, AutoImageProcessor, AutoModel

    try:
        config = AutoConfig.from_pretrained(name)
        config = getattr(config, "vision_config", config)
        with quiet():
            model, about = AutoModel.from_pretrained(
                name, config=config, dtype=torch.float32, use_safetensors=True, output_loading_info=True
            )
        processor = AutoImageProcessor.from_pretrained(name)
    # transformers and the hub's client raise many kinds; every one means that this model cannot be had
    except Exception as error:
        raise InputError(
            f"vision: {name} cannot be loaded: {first_line(error)}. Give a folder with config.json, "
            "preprocessor_config.json and safetensors, the name of a CLIP or SigLIP model of the hub, or `lite`"
        ) from error
    if about["missing_keys"]:
        raise InputError(f"vision: {name} holds no weights for {sorted(about['missing_keys'])[0]}")

    def pixels(pictures: list[np.ndarray]) -> Tensor:
        return processor(images=[Image.fromarray(picture) for picture in pictures], return_tensors="pt")["pixel_values"]

    with torch.inference_mode():
        probe = pixels([np.zeros((64, 64, 3), np.uint8)])
        hidden = model(probe, output_hidden_states=True).hidden_states
    if not -len(hidden) <= layer < len(hidden):
        raise InputError(f"vision_layer: {name} has {len(hidden)} hidden states; {layer} is none of them")
    patches = (probe.shape[2] // config.patch_size) * (probe.shape[3] // config.patch_size)
    extra = hidden[layer].shape[1] - patches
    if extra not in (0, 1):
        raise InputError(
            f"vision: {name} gives {hidden[layer].shape[1]} tokens for {patches} patches; 0 or 1 more can be read"
        )
    return Tower(model, processor, pixels, layer, "default" if extra else "full", patches, extra)


def _open_clip(name: str, layer: int) -> Tower:
    """name: a folder with open_clip_config.json, hf-hub:…, or architecture/pretrained (a tag or a file's path)."""
    import open_clip
    from open_clip.transform import PreprocessCfg, image_transform_v2
    from PIL import Image
    from transformers import CLIPImageProcessor

    from vlmdata.train.open_clip_tower import OpenClipTower, OpenClipTowerConfig, grid

    architecture, _, pretrained = name.partition("/")
    whole = Path(name).is_dir() or name.startswith("hf-hub:")
    place = f"local-dir:{name}" if Path(name).is_dir() else name
    try:
        clip: Any = open_clip.create_model(
            place if whole else architecture, pretrained=None if whole else pretrained, require_pretrained=True
        )
        model = open_clip.get_model_config(place if whole else architecture) or {}
    # open_clip and the hub's client raise many kinds; every one means that this model cannot be had
    except Exception as error:
        raise InputError(
            f"vision: open_clip cannot load {name}: {first_line(error)}. Give a folder with open_clip_config.json, or "
            "open_clip:<architecture>/<tag or file>"
        ) from error
    read = PreprocessCfg(**open_clip.get_model_preprocess_cfg(clip))
    if read.resize_mode == "longest":
        raise InputError(f"vision: {name} pads pictures (resize_mode: longest), which transformers' processor cannot")
    transform = image_transform_v2(read, is_train=False)

    def pixels(pictures: list[np.ndarray]) -> Tensor:
        return torch.stack([transform(Image.fromarray(picture)) for picture in pictures])

    try:
        with torch.inference_mode():
            width, side, columns = grid(clip.visual.eval(), pixels([np.zeros((64, 64, 3), np.uint8)]), layer).shape[1:]
    except (IndexError, ValueError, AssertionError, NotImplementedError, AttributeError) as error:
        raise InputError(f"vision_layer: {name} has no layer {layer} that can be read: {first_line(error)}") from error
    size = read.size if isinstance(read.size, int) else read.size[0]
    if side != columns:
        raise InputError(f"vision: {name} reads pictures that are no squares")
    kept = {key: model[key] for key in ("embed_dim", "vision_cfg", "quick_gelu") if key in model}
    tower = OpenClipTower(OpenClipTowerConfig(kept, layer, size, side, width))
    tower.visual.load_state_dict(clip.visual.state_dict())
    edges = {"height": size, "width": size}
    squash = read.resize_mode == "squash"
    processor = CLIPImageProcessor(
        size=edges if squash else {"shortest_edge": size},
        do_center_crop=not squash,
        crop_size=edges,
        resample=Image.Resampling.BILINEAR if read.interpolation == "bilinear" else Image.Resampling.BICUBIC,
        image_mean=list(read.mean),
        image_std=list(read.std),
    )
    reads = json.dumps(asdict(read), sort_keys=True)
    return Tower(tower, processor, pixels, -1, "full", side * side, 0, reads)


class Features(NamedTuple):
    """Of n samples: `values`, float16 [n, tokens, width], a file in memory's place; `decoded`, bool [n]."""

    values: np.ndarray
    decoded: np.ndarray


def cached(shards: data.Index, tower: Tower, identity: str, folder: Path) -> Features:
    """The features of all samples, from the files that an earlier attempt wrote, or computed by blocks and kept.

    A picture that cannot be decoded has zeros; it is warned of by name.
    """
    key = hashlib.sha256(f"{identity}\0{data.identity(shards)}".encode()).hexdigest()[:16]
    values, decoded = (folder / f"{key}-{what}.npy" for what in ("values", "decoded"))
    if not (values.exists() or len(shards) == 0):
        folder.mkdir(parents=True, exist_ok=True)
        _compute(shards, tower, values, decoded)
    if len(shards) == 0:
        return Features(np.zeros((0, tower.tokens, tower.model.config.hidden_size), np.float16), np.zeros(0, bool))
    return Features(np.load(values, mmap_mode="r", allow_pickle=False), np.load(decoded, allow_pickle=False))


def _compute(shards: data.Index, tower: Tower, values: Path, decoded: Path) -> None:
    partial = values.with_suffix(".partial")
    shape = (len(shards), tower.tokens, tower.model.config.hidden_size)
    file = np.lib.format.open_memmap(partial, "w+", np.float16, shape)
    there = np.zeros(len(shards), bool)
    for places, pictures in data.pictures(shards, range(len(shards)), BATCH, "features"):
        file[places] = tower.features(pictures)
        there[places] = True
    file.flush()
    np.save(decoded, there)
    partial.rename(values)
