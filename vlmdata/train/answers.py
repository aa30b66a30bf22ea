"""What a LLaVA learns from: pictures' features with the tokens of their captions or conversations."""

import logging

import numpy as np
import torch
from torch import Tensor

from vlmdata.errors import DataError
from vlmdata.recipe import ProjectorJob
from vlmdata.train import data, order, videos
from vlmdata.train.conversations import Prompts, Tokens, turns
from vlmdata.train.masking import IGNORED
from vlmdata.train.vision_towers import Features

log = logging.getLogger(__name__)


class Answers:
    """Pictures' features with captions (stage 1) or conversations (stage 2); see `vlmdata.train.loop.Samples`.

    A sample whose JSON has `conversations` is one in stage 2; of another the caption answers the job's `prompt`. With
    `frames` above 1 the frames of a video that share a caption (`videos.clips`) are one sample, with the first one's
    text; what is no frame is a video of its own.
    """

    def __init__(self, shards: data.Index, features: Features, prompts: Prompts, job: ProjectorJob) -> None:
        self.shards, self.features, self.prompts, self.job = shards, features.values, prompts, job
        self.broken = {shards.uids[place] for place in np.flatnonzero(~features.decoded)}
        malformed = self._malformed(np.flatnonzero(features.decoded)) if job.stage == 2 else {}
        if malformed:
            uid, why = next(iter(malformed.items()))
            log.warning("%d conversations are skipped, the first %s: %s", len(malformed), uid, why)
        self.broken |= malformed.keys()
        good = np.array([uid not in self.broken for uid in shards.uids], bool)
        clips = videos.clips(shards) if job.frames > 1 else list(np.arange(len(shards))[:, None])
        self.clips = [kept for clip in clips if len(kept := clip[good[clip]])]
        self.first = np.array([clip[0] for clip in self.clips], np.int64)
        self.uids = tuple("+".join(shards.uids[place] for place in clip) for clip in self.clips)

    def batch(self, places: np.ndarray, seeds: np.ndarray | None) -> dict[str, Tensor]:
        """image: float32 [b, tokens, width]; ids, labels, mask: int64 [b, length], filled up behind each sample's end.

        Raises DataError, naming the samples, where there is nothing to learn in any of them.
        """
        written = [self._tokens(int(self.first[place])) for place in places]
        written = [Tokens(ids[: self.job.length], labels[: self.job.length]) for ids, labels in written]
        length = max(len(ids) for ids, _ in written)
        ids = np.full((len(places), length), self.prompts.tokenizer.pad_token_id, np.int64)
        labels, mask = np.full_like(ids, IGNORED), np.zeros_like(ids)
        for row, each in enumerate(written):
            ids[row, : len(each.ids)], labels[row, : len(each.ids)], mask[row, : len(each.ids)] = *each, 1
        if seeds is not None and (labels == IGNORED).all():  # a measure adds up what there is
            uids = ", ".join(self.uids[place] for place in places)
            raise DataError(f"a batch holds no answer to learn, all are blank or beyond `length`: {uids}")
        rows = {"ids": ids, "labels": labels, "mask": mask}
        return {"image": self.image(places, seeds)} | {name: torch.from_numpy(value) for name, value in rows.items()}

    def image(self, places: np.ndarray, seeds: np.ndarray | None = None) -> Tensor:
        """The pictures' features, float32 [b, tokens, width].

        Of a video the tokens of `frames` frames are averaged place by place: the spatial features of Video-ChatGPT
        (Maaz 2023, arXiv:2306.05424). Which frames: see `videos.drawn`, with seeds drawn, without in the middle.
        """
        n = self.job.frames
        if n == 1:
            return torch.from_numpy(self.features[self.first[places]].astype(np.float32))
        draws = [None] * len(places) if seeds is None else list(order.uniform(seeds, n))
        pooled = []
        for place, draw in zip(places, draws, strict=True):
            clip = self.clips[place]
            pooled.append(self.features[clip[videos.drawn(len(clip), n, draw)]].astype(np.float32).mean(0))
        return torch.from_numpy(np.stack(pooled))

    def _tokens(self, sample: int) -> Tokens:
        if self.job.stage == 1:
            return self.prompts.caption(data.caption(self.shards, sample))
        said = data.meta(self.shards, sample).get("conversations")
        if said:
            return self.prompts.conversation(turns(said))
        return self.prompts.conversation([("user", self.job.prompt), ("assistant", data.caption(self.shards, sample))])

    def _malformed(self, samples: np.ndarray) -> dict[str, str]:
        """uid -> what is wrong with its conversation."""
        found = {}
        for sample in samples:
            try:
                said = data.meta(self.shards, int(sample)).get("conversations")
                if said:
                    turns(said)
            except ValueError as error:
                found[self.shards.uids[sample]] = str(error)
        return found
