"""`lite`, the embedded scorer: two frozen towers from packages and small heads that this project trained.

The image's vector starts from ConSE (Norouzi 2013, arXiv:1312.5650): the embeddings of ImageNet's class names,
weighted by their probabilities. A head adds a learned residual to it, another one to the caption's MiniLM embedding.
When scoring, the residuals count by a share below 1, as robust fine-tuning does between a zero-shot and a fine-tuned
model (Wortsman 2022, arXiv:2109.01903): a little less on the training's packages, a good deal more on others.
"""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmdata import towers
from vlmdata.errors import InputError
from vlmdata.recipe import LiteHeads
from vlmdata.signals.models import file_sha256, package_file

DIM = 384
POOLED = 1280
CLASSES = 1000
PROMPTS = (
    "a photo of a {}.",
    "a picture of the {}.",
    "a drawing of a {}.",
    "a cartoon {}.",
    "an icon of a {}.",
    "a {}, clip art",
    "{}",
)


class Heads(nn.Module):
    """The trained part, with what it needs to know of the training data and of the classes."""

    image_mean: Tensor  # [1280] of the training images' pooled features
    image_deviation: Tensor  # [1280]
    class_vectors: Tensor  # [1000, 384], unit length
    centre: Tensor  # [384], the class vectors' mean

    def __init__(self, options: LiteHeads) -> None:
        super().__init__()
        self.options = options

        def residual(width: int, dropout: float) -> nn.Sequential:
            layers = [nn.Linear(width, options.hidden), nn.GELU(), nn.Dropout(options.dropout)]
            last = nn.Linear(options.hidden, DIM)
            nn.init.zeros_(last.weight)  # training starts from ConSE
            nn.init.zeros_(last.bias)
            return nn.Sequential(nn.Dropout(dropout), *layers, last)

        self.image = residual(POOLED + DIM, options.dropout)
        self.text = residual(DIM, 0.1)
        self.logit_scale = nn.Parameter(torch.tensor(20.0).log())
        for name, shape in (
            ("image_mean", [POOLED]),
            ("image_deviation", [POOLED]),
            ("class_vectors", [CLASSES, DIM]),
            ("centre", [DIM]),
        ):
            self.register_buffer(name, torch.ones(shape))

    def encode_images(self, features: Tensor) -> Tensor:
        """Unit vectors [n, 384] of what `image_features` gives, [n, 2280]."""
        pooled, logits = features.split([POOLED, CLASSES], -1)
        probability = (logits / self.options.temperature).softmax(-1)
        start = F.normalize(probability @ self.class_vectors - self.centre, dim=-1)
        known = torch.cat([(pooled - self.image_mean) / self.image_deviation, start * DIM**0.5], -1)
        return F.normalize(start + self._share() * self.image(known), dim=-1)

    def encode_texts(self, embeddings: Tensor) -> Tensor:
        """Unit vectors [n, 384] of MiniLM's embeddings, [n, 384]."""
        start = F.normalize(embeddings - self.centre, dim=-1)
        return F.normalize(start + self._share() * self.text(start * DIM**0.5), dim=-1)

    def _share(self) -> float:
        return 1.0 if self.training else self.options.share


def image_features(pictures: list[np.ndarray]) -> np.ndarray:
    """The mean of the vision tower's cells and ImageNet's logits: float32 [n, 1280 + 1000].

    pictures: uint8 RGB [height, width, 3].
    """
    pooled = towers.vision().cells(pictures).mean(1)
    return np.concatenate([pooled, towers.vision().logits(pooled)], 1)


@cache
def class_vectors() -> np.ndarray:
    """ImageNet's class names as sentences, PROMPTS averaged: unit vectors, float32 [1000, 384]. Takes a minute."""
    from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES

    embed = towers.sentences().embed
    return _unit(sum(embed([prompt.format(name) for name in IMAGENET_CLASSNAMES]) for prompt in PROMPTS))


def _unit(rows: Any) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=-1, keepdims=True)).astype(np.float32)


class Lite:
    """Images and captions as unit vectors of one space; the score of a pair is their dot product, -1 to 1."""

    def __init__(self, heads: Heads) -> None:
        self.heads = heads.eval()

    @torch.inference_mode()
    def encode_images(self, pictures: list[np.ndarray]) -> np.ndarray:
        """Unit vectors, float32 [n, 384]; pictures: uint8 RGB [height, width, 3] of any size."""
        return self._rows(self.heads.encode_images, image_features(pictures)) if pictures else _nothing()

    @torch.inference_mode()
    def encode_texts(self, texts: list[str]) -> np.ndarray:
        """Unit vectors, float32 [n, 384]; of a text the first 128 tokens count."""
        return self._rows(self.heads.encode_texts, towers.sentences().embed(texts)) if texts else _nothing()

    def _rows(self, encode: Any, rows: np.ndarray) -> np.ndarray:
        """`encode` on blocks of one fixed size, so that a row's value does not depend on how many there are."""
        blocks = np.zeros((-(-len(rows) // 32) * 32, rows.shape[1]), np.float32)
        blocks[: len(rows)] = rows
        encoded = [encode(torch.from_numpy(blocks[start : start + 32])) for start in range(0, len(blocks), 32)]
        return torch.cat(encoded)[: len(rows)].numpy()


def _nothing() -> np.ndarray:
    return np.zeros((0, DIM), np.float32)


@torch.inference_mode()
def conse(features: Tensor, heads: Heads, top: int = 5) -> Tensor:
    """The baseline without training (Norouzi 2013): unit vectors, float32 [n, 384], of `image_features`' rows.

    The `top` most probable classes' name embeddings, weighted by probability, less the mean of all classes. Captions
    are compared as MiniLM's embeddings less that same mean.
    """
    value, place = features[:, POOLED:].softmax(-1).topk(top)
    mixed = (value / value.sum(-1, keepdim=True))[..., None] * heads.class_vectors[place]
    return F.normalize(mixed.sum(1) - heads.centre, dim=-1)


def save(heads: Heads, folder: Path) -> None:
    """Write heads.safetensors (half precision) and config.json."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.half().contiguous() for name, value in heads.state_dict().items()}, folder / "heads.safetensors"
    )
    config = {"format_version": 1, "dim": DIM, "heads": heads.options.model_dump(mode="json")}
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")


def load(heads: str | Path | None = None) -> Lite:
    """The scorer; `heads` is a folder that `save` wrote, by default the package's own.

    Sets torch to one thread: with more, the last bits of a score would depend on the machine.
    Raises InputError for a folder that holds no such heads, MachineError where a package is missing.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    torch.set_num_threads(1)
    folder = Path(heads) if heads else package_file("vlmdata.models", "lite", "heads.safetensors").parent
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        made = Heads(LiteHeads.model_validate(config["heads"]))
        weights = load_file(folder / "heads.safetensors")
        made.load_state_dict({name: value.float() for name, value in weights.items()})
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        raise InputError(f"{folder}: holds no heads of the model lite: {error}") from error
    return Lite(made.requires_grad_(False))


def identity(heads: str | Path | None = None) -> dict[str, str]:
    """What determines every vector: sha256 of the model files, and the preprocessing in words."""
    folder = Path(heads) if heads else package_file("vlmdata.models", "lite", "heads.safetensors").parent
    files = {**towers.weights(), "heads": folder / "heads.safetensors", "config": folder / "config.json"}
    return {**{name: file_sha256(path) for name, path in files.items()}, "preprocessing": towers.PREPROCESSING}
