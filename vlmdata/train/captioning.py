"""The captioning objective: CoCa (Yu 2022, arXiv:2205.01917), contrastive and generative, models and loss of open_clip.

open_clip's own `generate` needs parts that transformers no longer has, so captions are searched for here.
"""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlmdata.errors import InputError
from vlmdata.evaluate.retrieval import retrieval
from vlmdata.recipe import CaptioningJob
from vlmdata.signals.openclip import Encoder
from vlmdata.train import data, openclip, order
from vlmdata.train.contrastive import Pictures, encoder_of, vectors


def build(job: CaptioningJob) -> "Captioning":
    return Captioning(job)


class Captioning:
    """A CoCa of open_clip, its tokenizer and its losses; see `vlmdata.train.loop.Objective`."""

    def __init__(self, job: CaptioningJob) -> None:
        self.job = job
        self.clip: Any
        self.clip, self.tokenizer, self.config = openclip.make(job.model, job.pretrained, {}, "tiny_coca.json")
        if not hasattr(self.clip, "text_decoder"):
            raise InputError("jobs.train.model: has no decoder of captions; open_clip's are called coca_…")
        if (self.config["model_cfg"].get("text_cfg") or {}).get("hf_tokenizer_name"):
            raise InputError(
                "jobs.train.model: hf_tokenizer_name: captions are learnt with open_clip's tokenizer alone"
            )
        self.model = _Described(self.clip)
        self.weights = {"contrastive": job.contrastive_weight, "caption": job.caption_weight}
        self.size = openclip.side(self.clip)
        self.start, self.end = self.tokenizer([""])[0, :2].tolist()

    def terms(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """The caption's loss is the mean over all tokens but the first one and padding."""
        return {"contrastive": 1.0, "caption": float((batch["text"][:, 1:] != self.clip.pad_id).sum())}

    def samples(self, shards: data.Index, out: Path) -> Pictures:
        return Pictures(shards, self.size, self.job.crop, self.tokenizer)

    @torch.inference_mode()
    def evaluate(self, samples: Pictures, batch: int) -> dict[str, float]:
        """Recall; `caption/loss`, the mean of a token's in nats, and `caption/loss/shuffled`, that with the picture of
        another sample: what the pictures tell lies between the two."""
        self.model.eval()
        device = next(self.model.parameters()).device
        own, shuffled, tokens = 0.0, 0.0, 0.0
        whole = samples.whole
        other = whole[order.derangement(len(whole), self.job.seed)]
        for start in range(0, len(whole), batch):
            rows = {name: value.to(device) for name, value in samples.batch(whole[start : start + batch], None).items()}
            count = self.terms(rows)["caption"]
            own += count * self.model(rows)["caption"].item()
            image = samples.batch(other[start : start + batch], None)["image"].to(device)
            shuffled += count * self.model(rows | {"image": image})["caption"].item()
            tokens += count
        found = {"caption/loss": own / tokens, "caption/loss/shuffled": shuffled / tokens}
        return retrieval(*vectors(self.model, samples, batch)) | found

    def encoder(self, batch: int) -> Encoder:
        """Of pictures and captions, by the contrastive half."""
        return encoder_of(self.model, self.tokenizer, self.size, batch)

    @torch.inference_mode()
    def caption(self, pictures: list[np.ndarray]) -> list[str]:
        """The most probable caption of each picture (uint8 RGB [height, width, 3]) that a search by `beams` finds."""
        self.model.eval()
        device = next(self.model.parameters()).device
        captions = []
        for picture in pictures:
            square = torch.from_numpy(data.square(picture, self.size))[None].to(device)
            vector, seen = self.clip._encode_image(openclip.pixels(self.clip, square))
            captions.append(self._decoded(self._search(vector, seen)))
        return captions

    def _search(self, vector: Tensor, seen: Tensor) -> list[int]:
        """Beam search: the tokens of the text with the highest mean log probability a token."""
        device, beams = seen.device, self.job.beams
        texts, scores = torch.tensor([[self.start]], device=device), torch.zeros(1, device=device)
        ended: list[tuple[float, list[int]]] = []
        for length in range(1, self.clip.context_length):
            n = len(texts)
            given = {"image_latent": vector.expand(n, -1), "image_embs": seen.expand(n, -1, -1)}
            logits = self.clip(None, texts, **given, output_labels=False)["logits"][:, -1].float()
            logits[:, [self.clip.pad_id, self.start]] = -torch.inf
            sums = logits.log_softmax(-1) + scores[:, None]
            ended += [(float(sums[row, self.end]) / length, texts[row, 1:].tolist()) for row in range(n)]
            sums[:, self.end] = -torch.inf
            scores, places = sums.flatten().topk(beams)
            row, token = places // sums.shape[1], places % sums.shape[1]
            texts = torch.cat([texts[row], token[:, None]], 1)
            # A text's mean can still rise as it grows, but its sum only falls.
            best = max(ended)[0]
            if float(scores[0]) / self.clip.context_length < best:
                break
        return max(ended)[1]

    def _decoded(self, tokens: list[int]) -> str:
        return getattr(self.tokenizer, "tokenizer", self.tokenizer).decode(tokens).strip()

    def export(self, folder: Path) -> None:
        """As open_clip's own folder: `open_clip.create_model("local-dir:<folder>")` loads it."""
        openclip.save(self.clip, self.tokenizer, self.config, folder)


class _Described(nn.Module):
    """From a batch to open_clip's two losses, in one forward pass, so that a wrapper sees all of it."""

    clip: Any

    def __init__(self, clip: Any) -> None:
        super().__init__()
        self.clip = clip
        self.criterion = openclip.criterion("coca", pad_id=clip.pad_id)

    def encode(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 RGB [b, size, size, 3] and int64 [b, context] as unit vectors [b, d]."""
        return self.encode_image(image), self.encode_text(text)

    def encode_image(self, image: Tensor) -> Tensor:
        return self.clip.encode_image(openclip.pixels(self.clip, image), normalize=True)

    def encode_text(self, text: Tensor) -> Tensor:
        return self.clip.encode_text(text, normalize=True)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        found = self.clip(openclip.pixels(self.clip, batch["image"]), batch["text"])
        found["logit_scale"] = self.clip.logit_scale.clamp(max=np.log(100)).exp()
        found.pop("logit_bias", None)
        if not self.training:  # one process measures alone: it gathers nothing
            logits, labels = found["logits"].flatten(0, 1), found["labels"].flatten()
            return {"caption": nn.functional.cross_entropy(logits, labels, ignore_index=self.clip.pad_id)}
        losses = self.criterion(**found, output_dict=True)
        return {"contrastive": losses["contrastive_loss"], "caption": losses["caption_loss"]}
