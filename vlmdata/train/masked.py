"""The masked objective: FLAVA (Singh 2022, arXiv:2112.04482) from transformers, on pairs, images and texts."""

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from vlmdata.errors import InputError
from vlmdata.evaluate import masked as measures
from vlmdata.recipe import MaskedJob
from vlmdata.signals.openclip import Encoder
from vlmdata.train import codebook, data, flava, mixture, source
from vlmdata.train.contrastive import encoder_of
from vlmdata.train.masking import IGNORED


def build(job: MaskedJob) -> "Masked":
    """The objective. Raises InputError for a model, tokenizer or codebook that cannot be had."""
    return Masked(job)


class Masked:
    """FLAVA's model, tokenizer and targets; see `vlmdata.train.loop.Objective`."""

    def __init__(self, job: MaskedJob) -> None:
        self.job, self.weights = job, job.losses()
        self.tokenizer = flava.tokenizer_of(job)
        self.encode: codebook.Encode | None = None
        self.opened = False
        codes = job.codes
        if job.targets == "pixels":
            codes = 3 * job.patch_size**2
        elif job.targets == "codebook":
            self.encode, codes = codebook.flava_codebook(str(job.codebook), job.image_size // job.patch_size)
        self.model = flava.Flava(
            flava.pretraining(job, len(self.tokenizer), codes),
            set(self.weights),
            self.tokenizer.pad_token_id,
            pixels=job.targets == "pixels",
            centres=(codes, codebook.WIDTH) if job.targets == "kmeans" else None,
        )
        self.size = self.model.side
        if job.targets == "kmeans" and self.model.grid != codebook.GRID:
            raise InputError(
                f"targets: the codes of kmeans lie on 7 x 7 patches, and {job.image_size} pixels in patches of "
                f"{job.patch_size} give {self.model.grid} x {self.model.grid}: take 112 and 16, 224 and 32, or pixels"
            )

    def terms(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """Hidden tokens and patches, pairs. What the contrastive loss compares is only what stands in one batch: many
        small batches have its terms, but not its negatives."""
        empty = torch.zeros(0)
        matched = batch.get("match", empty).bool()
        pair_labels = batch["pair_text_labels"] != IGNORED if "match" in batch else empty[None].bool()
        counts = {
            "mlm": (batch.get("text_labels", torch.full((0,), IGNORED)) != IGNORED).sum(),
            "mim": batch.get("hidden", empty).sum(),
            "mmm_text": pair_labels[matched].sum(),
            "mmm_image": batch["pair_hidden"][matched].sum() if "match" in batch else empty.sum(),
            "itm": torch.tensor(len(matched)),
            "contrastive": matched.sum(),
        }
        return {name: float(counts[name]) for name in self.weights}

    def samples(self, shards: data.Index, out: Path) -> mixture.Mixed:
        """The first call, that of the training split, also learns the codes of `targets: kmeans`, and opens `images`
        and `texts`, which nothing that is only measured needs."""
        pictures = self._pictures(shards, out / "features")
        images = texts = None
        to_train, self.opened = self.model.training and not self.opened, True
        if self.job.images and to_train:
            found = source.shards(self.job.images, self.job.train_split, self.job.test_split)
            if not found.get(self.job.train_split):
                raise InputError(f"images: {self.job.images} has no shards of the split {self.job.train_split!r}")
            images = self._pictures(data.index(found[self.job.train_split], out), out / "features")
            pictures.broken |= images.broken
            images.broken = pictures.broken  # one count
        if self.job.texts and to_train:
            texts = mixture.texts_of(self.job.texts)
        return mixture.Mixed(self.job, self.tokenizer, self.model.grid, pictures, images, texts)

    def _pictures(self, shards: data.Index, folder: Path) -> mixture.Pictures:
        job = self.job
        if job.targets == "pixels":
            return mixture.Pictures(shards, self.model.side, None, set())
        encode, identity = self.encode, f"{job.codebook} {self.model.grid}"
        if encode is None:
            kept = self.model.get_buffer("centres")
            if not kept.any():  # neither learned nor loaded yet
                kept.copy_(torch.from_numpy(codebook.learn(shards, job.codes, job.seed, folder)))
            centres = kept.cpu().numpy()
            encode, identity = codebook.nearest(centres), hashlib.sha256(centres.tobytes()).hexdigest()
        codes, whole = codebook.coded(shards, encode, identity, folder)
        return mixture.Pictures(shards, self.model.side, codes, {shards.uids[n] for n in np.flatnonzero(~whole)})

    def evaluate(self, samples: mixture.Mixed, batch: int) -> dict[str, float]:
        """See `vlmdata.evaluate.masked.measure`."""
        return measures.measure(self.model, samples, batch)

    def encoder(self, batch: int) -> Encoder | None:
        """Of pictures and captions, by the global contrastive heads; None where the run did not train these."""
        if "contrastive" not in self.weights:
            return None

        def tokenize(captions: list[str]) -> Tensor:
            ids = np.full((len(captions), self.job.tokens), self.tokenizer.pad_token_id, np.int64)
            for row, caption in zip(ids, captions, strict=True):
                found = self.tokenizer.backend_tokenizer.encode(caption).ids
                row[: len(found)] = found
            return torch.from_numpy(ids)

        return encoder_of(self.model, tokenize, self.size, batch)

    def export(self, folder: Path) -> None:
        """In transformers' form: FlavaForPreTraining, FlavaModel, AutoTokenizer and FlavaImageProcessor load it."""
        from transformers import FlavaImageProcessor

        self.model.net.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        side = {"height": self.model.side, "width": self.model.side}
        FlavaImageProcessor(size=side, crop_size=side).save_pretrained(folder)
