"""Contrastive training of heads on locked towers (LiT, Zhai 2022, arXiv:2111.07991, with both towers locked).

The towers' features are computed once and kept beside the run, so that a step costs milliseconds.
"""

import hashlib
import logging
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlmdata import lite, towers
from vlmdata.errors import InputError
from vlmdata.evaluate.retrieval import retrieval
from vlmdata.recipe import ContrastiveJob
from vlmdata.signals.models import file_sha256
from vlmdata.signals.openclip import Encoder
from vlmdata.train import data, openclip, order

log = logging.getLogger(__name__)
progress = logging.getLogger("vlmdata.progress")


class Locked:
    """The objective of the model `lite`; see `vlmdata.train.loop.Objective`."""

    def __init__(self, job: ContrastiveJob) -> None:
        self.options = job.heads
        self.heads = lite.Heads(job.heads)
        self.model = _Paired(self.heads)
        self.weights = {"contrastive": 1.0}

    def terms(self, batch: dict[str, Tensor]) -> dict[str, float]:
        return {"contrastive": 1.0}

    def samples(self, shards: data.Index, out: Path) -> "Features":
        """The first call, that of the training split, also sets the heads' statistics."""
        found = Features(shards, out / "features", self.options.context)
        if (self.heads.image_deviation == 1).all():  # neither measured nor loaded yet
            if not found.uids:
                raise InputError("the shards hold no sample to train on")
            pooled = found.images[:, : lite.POOLED]
            classes = _class_vectors(out / "features")
            deviation = pooled.std(0)
            statistics = {
                "image_mean": pooled.mean(0),
                # Some features are nearly always 0 here; a floor keeps another collection's from being blown up.
                "image_deviation": deviation + 0.05 * deviation.mean() + 1e-6,
                "class_vectors": classes,
                "centre": classes.mean(0),
            }
            for name, values in statistics.items():
                self.heads.get_buffer(name).copy_(torch.from_numpy(values))
        return found

    @torch.inference_mode()
    def evaluate(self, samples: "Features", batch: int) -> dict[str, float]:
        """Recall on the distinct captions of a split, and that of ConSE, which needs no training, under `conse/…`."""
        self.model.eval()
        rows = samples.batch(np.arange(len(samples.uids)), None)
        image, text = (rows[name].to(self.heads.centre.device) for name in ("image", "text"))
        start = nn.functional.normalize(text - self.heads.centre, dim=-1)
        baseline = retrieval(lite.conse(image, self.heads).cpu().numpy(), start.cpu().numpy())
        return retrieval(*self.vectors(samples, batch)) | {
            f"conse/{name}": value for name, value in baseline.items() if "R@" in name and not name.endswith("chance")
        }

    def encoder(self, batch: int) -> Encoder:
        """Of pictures and captions, with the towers, in batches of `lite`'s own."""
        scorer = lite.Lite(self.heads.cpu())
        return Encoder(scorer.encode_images, scorer.encode_texts)

    @torch.inference_mode()
    def vectors(self, samples: "Features", batch: int) -> tuple[np.ndarray, np.ndarray]:
        """Unit vectors of a split's distinct captions and of the first image of each, float32 [n, 384] each: images,
        captions."""
        self.model.eval()
        rows = samples.batch(np.arange(len(samples.uids)), None)
        image, text = (rows[name].to(self.heads.centre.device) for name in ("image", "text"))
        return self.heads.encode_images(image).cpu().numpy(), self.heads.encode_texts(text).cpu().numpy()

    def export(self, folder: Path) -> None:
        """As `vlmdata.lite.load` reads it; these two files are what stands under models/lite."""
        lite.save(self.heads, folder)


class _Paired(nn.Module):
    """From a batch to open_clip's loss."""

    def __init__(self, heads: lite.Heads) -> None:
        super().__init__()
        self.heads = heads
        self.criterion = openclip.criterion("clip")

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        images, texts = self.heads.encode_images(batch["image"]), self.heads.encode_texts(batch["text"])
        return {"contrastive": self.criterion(images, texts, self.heads.logit_scale.clamp(max=np.log(100)).exp())}


class Features:
    """The distinct captions of a split, each with all its images: one place a caption, so that no batch holds a
    caption twice and calls one of its own images wrong. See `vlmdata.train.loop.Samples`."""

    def __init__(self, shards: data.Index, folder: Path, context: float) -> None:
        self.context = context
        # Where these are some of a pool's samples the features are those of the whole pool, computed once for all.
        whole, places = shards.of or (shards, np.arange(len(shards)))
        every = [data.caption(whole, place) for place in range(len(whole))]
        beside = [str(data.meta(whole, place).get("context") or "") for place in range(len(whole))]
        kept = {name: values[places] for name, values in _cached(whole, every, beside, folder).items()}
        captions, contexts = ([texts[place] for place in places] for texts in (every, beside))
        self.broken = {shards.uids[place] for place in np.flatnonzero(~kept["decoded"])}
        self.images, self.texts, self.contexts = kept["images"], kept["texts"], kept["contexts"]
        groups: dict[str, list[int]] = {}
        for place, caption in enumerate(captions):
            if kept["decoded"][place]:
                groups.setdefault(caption, []).append(place)
        self.groups = list(groups.values())
        self.first = np.array([group[0] for group in self.groups], np.int64)
        self.has_context = [bool(context) for context in contexts]
        self.uids = tuple("+".join(shards.uids[place] for place in group) for group in self.groups)

    def batch(self, places: np.ndarray, seeds: np.ndarray | None) -> dict[str, Tensor]:
        """image: float32 [b, 2280]; text: float32 [b, 384]. With seeds one of the caption's images is drawn, and the
        context stands in for the caption now and then; without, it is the first image and the caption."""
        draw = np.zeros((len(places), 2)) if seeds is None else order.uniform(seeds, 2)
        chosen = [self.groups[p][int(draw[row, 0] * len(self.groups[p]))] for row, p in enumerate(places)]
        other = [
            seeds is not None and self.has_context[sample] and draw[row, 1] < self.context
            for row, sample in enumerate(chosen)
        ]
        texts = np.where(np.array(other)[:, None], self.contexts[chosen], self.texts[chosen])
        return {"image": torch.from_numpy(self.images[chosen]), "text": torch.from_numpy(texts)}


def _class_vectors(folder: Path) -> np.ndarray:
    """`lite.class_vectors`, kept beside the features."""
    from safetensors.numpy import load_file, save_file

    what = [*map(file_sha256, towers.weights().values()), *lite.PROMPTS, towers.PREPROCESSING]
    path = folder / f"classes-{hashlib.sha256(chr(0).join(what).encode()).hexdigest()[:16]}.safetensors"
    if not path.exists():
        partial = path.with_suffix(".partial")
        save_file({"classes": lite.class_vectors()}, partial)
        partial.replace(path)
    return load_file(path)["classes"]


def _cached(shards: data.Index, captions: list[str], contexts: list[str], folder: Path) -> dict[str, np.ndarray]:
    """The towers' features of all samples, from the file that an earlier attempt wrote, if it did."""
    from safetensors.numpy import load_file, save_file

    what = [data.identity(shards), *captions, *contexts, *map(str, towers.weights().values()), towers.PREPROCESSING]
    path = folder / f"{hashlib.sha256(chr(0).join(what).encode()).hexdigest()[:16]}.safetensors"
    if path.exists():
        return load_file(path)
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, Any] = {
        "images": np.zeros((len(shards), lite.POOLED + lite.CLASSES), np.float32),
        "decoded": np.zeros(len(shards), bool),
        "texts": towers.sentences().embed(captions),
        "contexts": towers.sentences().embed(contexts),
    }
    for places, pictures in data.pictures(shards, range(len(shards)), towers.Vision.batch, "features"):
        found["images"][places] = lite.image_features(pictures)
        found["decoded"][places] = True
    partial = path.with_suffix(".partial")
    save_file(found, partial)
    partial.replace(path)
    return found
