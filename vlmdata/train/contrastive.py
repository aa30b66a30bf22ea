"""The contrastive objective: CLIP (Radford 2021, arXiv:2103.00020), models and loss from open_clip."""

import json
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmdata.errors import InputError, first_line
from vlmdata.evaluate.retrieval import retrieval
from vlmdata.recipe import ContrastiveJob
from vlmdata.signals.models import in_batches, torch_device
from vlmdata.signals.openclip import Encoder, refuse_code
from vlmdata.train import data, openclip, order, videos


def build(job: ContrastiveJob) -> Any:
    """The objective for `job.model`: `lite` trains heads on locked towers, everything else is an open_clip model."""
    if job.model == "lite":
        from vlmdata.train.locked import Locked

        return Locked(job)
    return Contrastive(job)


class Contrastive:
    """An open_clip model, its tokenizer and its loss."""

    def __init__(self, job: ContrastiveJob) -> None:
        self.job = job
        self.clip: Any
        starts = openclip.SIGLIP if job.loss == "siglip" else {}
        self.clip, self.tokenizer, self.config = openclip.make(job.model, job.pretrained, starts)
        openclip.lock(self.clip, job)
        self.model = _Paired(self.clip, job.loss)
        self.weights = {"contrastive": 1.0}
        self.size = openclip.side(self.clip)

    def terms(self, batch: dict[str, Tensor]) -> dict[str, float]:
        return {"contrastive": 1.0}

    def samples(self, shards: data.Index, out: Path) -> "Pictures":
        options = (shards, self.size, self.job.crop, self.tokenizer)
        return Clips(*options, self.job.frames) if self.job.frames > 1 else Pictures(*options)

    def evaluate(self, samples: "Pictures", batch: int) -> dict[str, float]:
        """Recall on all samples of a split; see `vlmdata.evaluate.retrieval`."""
        return retrieval(*self.vectors(samples, batch))

    def vectors(self, samples: "Pictures", batch: int) -> tuple[np.ndarray, np.ndarray]:
        """Unit vectors of a split's images and of their captions, float32 [n, d] each: see `vectors` below."""
        return vectors(self.model, samples, batch)

    def encoder(self, batch: int) -> Encoder:
        """As `load` gives it, of the model as it is now."""
        return encoder_of(self.model, self.tokenizer, self.size, batch)

    def export(self, folder: Path) -> None:
        """As open_clip's own folder: `open_clip.create_model("local-dir:<folder>")` loads it."""
        openclip.save(self.clip, self.tokenizer, self.config, folder)


@torch.inference_mode()
def vectors(model: Any, samples: "Pictures", batch: int) -> tuple[np.ndarray, np.ndarray]:
    """Of all samples that can be decoded the images' and texts' vectors, float32 [n, d], by a model's
    `encode(image, text)`. Raises DataError where none can be."""
    model.eval()
    device = next(model.parameters()).device
    images, texts = [], []
    for start in range(0, len(samples.whole), batch):
        rows = samples.batch(samples.whole[start : start + batch], None)
        image, text = model.encode(rows["image"].to(device), rows["text"].to(device))
        images.append(image.float().cpu().numpy())
        texts.append(text.float().cpu().numpy())
    return np.concatenate(images), np.concatenate(texts)


class Pictures:
    """Pairs of decoded, cut and resized images and tokenized captions; see `vlmdata.train.loop.Samples`."""

    def __init__(self, shards: data.Index, size: int, crop: float, tokenizer: Any) -> None:
        self.shards, self.uids, self.size, self.crop, self.tokenizer = shards, shards.uids, size, crop, tokenizer
        self.first, self.broken = np.arange(len(shards)), set[str]()

    @cached_property
    def whole(self) -> np.ndarray:
        """The places of what can be decoded, int64; see `data.whole`."""
        return data.whole(self.shards, round(1.5 * self.size), self.broken)

    def batch(self, places: np.ndarray, seeds: np.ndarray | None) -> dict[str, Tensor]:
        """image: uint8 RGB [b, size, size, 3]; text: int64 [b, context]."""
        draws = None if seeds is None or self.crop == 1 else order.uniform(seeds, 3)
        images, captions = [], []
        for row, wanted in enumerate(places):
            place, picture = data.decodable(self.shards, int(wanted), round(1.5 * self.size), self.broken)
            images.append(data.square(picture, self.size, None if draws is None else draws[row], self.crop))
            captions.append(data.caption(self.shards, place))
        return {"image": torch.from_numpy(np.stack(images)), "text": self.tokenizer(captions)}


class Clips(Pictures):
    """Pairs of a few frames of a video and its caption; a picture that is no frame counts as a video of its own."""

    def __init__(self, shards: data.Index, size: int, crop: float, tokenizer: Any, frames: int) -> None:
        super().__init__(shards, size, crop, tokenizer)
        self.frames, self.clips = frames, videos.clips(shards)
        self.first = np.array([clip[0] for clip in self.clips], np.int64)
        self.uids = tuple("+".join(shards.uids[place] for place in clip) for clip in self.clips)

    @cached_property
    def whole(self) -> np.ndarray:
        """The places of the clips of which a frame can be decoded, of those that are measured."""
        return videos.whole(self.shards, self.clips, self.frames, round(1.5 * self.size), self.broken)

    def batch(self, places: np.ndarray, seeds: np.ndarray | None) -> dict[str, Tensor]:
        """image: uint8 RGB [b, frames, size, size, 3], all frames of a video cut alike; text: int64 [b, context].

        With seeds each of `frames` equal parts of a video gives a frame that is drawn; without, its middle one.
        """
        draws = [None] * len(places) if seeds is None else list(order.uniform(seeds, 3 + self.frames))
        images, captions = [], []
        for wanted, draw in zip(places, draws, strict=True):
            place, pictures = videos.decoded(
                self.shards, self.clips, int(wanted), self.frames, None if draw is None else draw[3:],
                round(1.5 * self.size), self.broken,
            )  # fmt: skip
            cut = None if draw is None or self.crop == 1 else draw[:3]
            images.append(np.stack([data.square(picture, self.size, cut, self.crop) for picture in pictures]))
            captions.append(data.caption(self.shards, place))
        return {"image": torch.from_numpy(np.stack(images)), "text": self.tokenizer(captions)}


class _Paired(nn.Module):
    """From a batch to open_clip's loss, in one forward pass, so that a wrapper sees all of it."""

    clip: Any

    def __init__(self, clip: nn.Module, loss: str = "clip") -> None:
        super().__init__()
        self.clip = clip
        self.criterion = openclip.criterion(loss)

    def encode(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Pictures (see `encode_image`) and int64 [b, context] as unit vectors [b, d]."""
        return self.encode_image(image), self.encode_text(text)

    def encode_text(self, text: Tensor) -> Tensor:
        return self.clip.encode_text(text, normalize=True)

    def encode_image(self, image: Tensor) -> Tensor:
        """uint8 RGB [b, size, size, 3] as unit vectors [b, d], or the frames of videos, uint8 [b, n, size, size, 3].

        The frames' unit vectors are averaged, then normalised: CLIP4Clip's parameter-free pooling (Luo 2021,
        arXiv:2104.08860).
        """
        vectors = self.clip.encode_image(openclip.pixels(self.clip, image.flatten(0, -4)), normalize=True)
        return vectors if image.ndim == 4 else F.normalize(vectors.unflatten(0, image.shape[:2]).mean(1), dim=-1)

    def forward(self, batch: dict[str, Tensor], of: str = "losses") -> dict[str, Tensor]:
        """The loss, or with `of="features"` what `loss` makes it from: image, text [b, d], scale, bias if there is."""
        image, text = self.encode(batch["image"], batch["text"])
        # At most 100, as in the paper; the clamp stands here and not after the step, so that the loss knows of it.
        features = {"image": image, "text": text, "scale": self.clip.logit_scale.clamp(max=np.log(100)).exp()}
        if self.clip.logit_bias is not None:
            features["bias"] = self.clip.logit_bias
        return features if of == "features" else {"contrastive": self.loss(features)}

    def loss(self, features: dict[str, Tensor]) -> Tensor:
        return self.criterion(features["image"], features["text"], features["scale"], features.get("bias"))


def load(folder: Path, batch: int) -> Encoder:
    """What `export` wrote, with the preprocessing of training, in batches of one size, on a GPU where there is one.

    Raises InputError where open_clip cannot load it.
    """
    torch.set_num_threads(1)  # parts are spread over the cores
    try:
        about = json.loads((folder / "open_clip_config.json").read_text("utf-8"))
        refuse_code(about["model_cfg"], str(folder))
    except (TypeError, KeyError, ValueError, AttributeError, OSError) as error:
        raise InputError(f"{folder}: holds no trained model: {first_line(error)}") from error
    try:
        clip, tokenizer, _ = openclip.make(f"local-dir:{folder}", None, {})
    except InputError as error:  # which begins with the key of a recipe's job
        raise InputError(f"{folder}: holds no trained model: {str(error).partition(': ')[2]}") from error
    return encoder_of(_Paired(clip), tokenizer, openclip.side(clip), batch)


def encoder_of(model: Any, tokenize: Callable[[list[str]], Tensor], size: int, batch: int) -> Encoder:
    """Of pictures of any size and of texts, by a model's `encode_image` (uint8 RGB [b, size, size, 3]) and
    `encode_text` (what `tokenize` gives), in batches of one size, on a GPU where there is one."""
    device, _ = torch_device()
    model = model.eval().to(device)

    @torch.inference_mode()
    def images(squares: list[np.ndarray]) -> np.ndarray:
        return model.encode_image(torch.from_numpy(np.stack(squares)).to(device)).float().cpu().numpy()

    @torch.inference_mode()
    def texts(captions: list[str]) -> np.ndarray:
        return model.encode_text(tokenize(captions).to(device)).float().cpu().numpy()

    return Encoder(
        lambda pixels: in_batches(images, pixels, batch, lambda picture: data.square(picture, size)),
        lambda captions: in_batches(texts, captions, batch),
    )
