"""The projector objective: LLaVA (Liu 2023, arXiv:2304.08485; two layers as in LLaVA-1.5, arXiv:2310.03744).

A frozen vision tower and a causal language model, both pretrained, are joined by a projector. Stage 1 trains that alone
on captions, stage 2 on conversations too, with the language model whole or by LoRA. The tower's features are computed
once and kept, so that a step is the language model's alone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vlmdata.errors import DataError, InputError
from vlmdata.recipe import EarlierJob, ProjectorJob
from vlmdata.train import checkpoint, data, language_models, order, places, vision_towers
from vlmdata.train.answers import Answers
from vlmdata.train.conversations import Prompts
from vlmdata.train.masking import IGNORED

ALIKE = ("vision", "tokens", "vision_layer", "language_model", "projector")  # in a run and the one it starts from
Seen = np.ndarray | list[np.ndarray]  # a picture, uint8 RGB [height, width, 3] of any size, or a video's frames
ASKED = 8  # pictures that a caption is generated for at once


def build(job: ProjectorJob) -> "Projector":
    """The objective. Raises InputError for models that cannot be had and a `start` of another kind."""
    return Projector(job)


class Projector:
    """See `vlmdata.train.loop.Objective`. `llava` is transformers' model, of which `model` is what training needs."""

    def __init__(self, job: ProjectorJob) -> None:
        self.job = job
        if job.start is None:
            self.tower = vision_towers.load(job)
            causal, self.tokenizer = language_models.load(job.language_model)
            self.llava = _llava(self.tower, causal, self.tokenizer, job)
        else:
            earlier = _earlier(job)
            self.tower, self.tokenizer = earlier.tower, earlier.tokenizer
            self.llava = language_models.without_lora(earlier.llava)
        self.llava.requires_grad_(False)
        body = self.llava.model
        if job.language == "lora":
            language_models.add_lora(body.language_model, job.lora)
        elif job.language == "full":
            body.language_model.requires_grad_(True)
            self.llava.lm_head.requires_grad_(True)
        body.multi_modal_projector.linear_1.requires_grad_(True)
        body.multi_modal_projector.linear_2.requires_grad_(job.projector == "mlp")
        if job.length <= self.tower.tokens:
            raise InputError(f"length: {job.length} is too short: a picture alone has {self.tower.tokens} tokens")
        self.identity = self.tower.identity()
        self.prompts = Prompts(self.tokenizer, self.tower.tokens)
        self.model = _Joined(self.llava, self.prompts.image, self.identity)
        self.weights = {"projector": 1.0}

    def terms(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """The tokens that are learnt."""
        return {"projector": float((batch["labels"] != IGNORED).sum())}

    def samples(self, shards: data.Index, out: Path) -> Answers:
        self.tower.model.to(next(self.model.parameters()).device)
        features = vision_towers.cached(shards, self.tower, self.identity, out / "features")
        return Answers(shards, features, self.prompts, self.job)

    @torch.inference_mode()
    def evaluate(self, samples: Answers, batch: int) -> dict[str, float]:
        """How much the pictures help, on all samples of a split: each answer beside its own and beside another one's.

        projector/loss, loss_shuffled: mean loss of the answers' tokens, nats, with the right and a wrong picture;
        gap: how much less the first is. accuracy, accuracy_shuffled: share of the tokens that are the likeliest, all
        before them given; its chance is the share of the commonest token. preferred: share of the samples whose loss
        is less with the right picture. One sample alone has no wrong picture.
        """
        self.model.eval()
        n, device = len(samples.uids), next(self.model.parameters()).device
        other = order.derangement(n, self.job.seed)
        loss, right, counts = np.zeros((2, n)), np.zeros((2, n)), np.zeros(n)
        commonest: dict[int, int] = {}
        for start in range(0, n, batch):
            places = np.arange(start, min(start + batch, n))
            rows = samples.batch(places, None)
            learnt = rows["labels"][:, 1:] != IGNORED
            row = np.nonzero(learnt.numpy())[0]
            counts[places] = learnt.sum(1).numpy()
            for token, count in zip(*np.unique(rows["labels"][:, 1:][learnt], return_counts=True), strict=True):
                commonest[int(token)] = commonest.get(int(token), 0) + int(count)
            for which, shown in enumerate((places, other[places])):
                rows["image"] = samples.image(shown)
                logits, targets = self.model.scores({name: value.to(device) for name, value in rows.items()})
                each = F.cross_entropy(logits, targets, reduction="none").double().cpu().numpy()
                hit = (logits.argmax(-1) == targets).cpu().numpy()
                loss[which, places] = np.bincount(row, each, len(places))
                right[which, places] = np.bincount(row, hit, len(places))
        total = counts.sum()
        if not total:
            raise DataError(
                f"the {n} samples to be measured, {samples.uids[0]} and others, hold no answer to learn: all are blank "
                "or beyond `length`"
            )
        found = {"loss": loss[0].sum() / total, "accuracy": right[0].sum() / total}
        found |= {"accuracy/chance": max(commonest.values()) / total, "tokens": total, "n": n}
        if n > 1:
            found |= {
                "loss_shuffled": loss[1].sum() / total,
                "gap": (loss[1] - loss[0]).sum() / total,
                "accuracy_shuffled": right[1].sum() / total,
                "preferred": (loss[0] < loss[1]).mean(),
                "preferred/chance": 0.5,
            }
        return {f"projector/{name}": float(value) for name, value in found.items()}

    def caption(self, pictures: Sequence[Seen]) -> list[str]:
        """Captions of pictures, or of videos, as the training's stage wrote them."""
        if self.job.stage == 1:
            ids = self.prompts.caption(None).ids
        else:
            ids = self.prompts.conversation([("user", self.job.prompt)]).ids
        parts = [pictures[start : start + ASKED] for start in range(0, len(pictures), ASKED)]
        return [text for part in parts for text in self._generate(ids, part)]

    def answer(self, picture: Seen, question: str) -> str:
        """What the model answers to a question about a picture or a video."""
        return self._generate(self.prompts.conversation([("user", question)]).ids, [picture])[0]

    @torch.inference_mode()
    def _generate(self, ids: list[int], pictures: Sequence[Seen]) -> list[str]:
        """What follows ids for each picture, by the likeliest token each time."""
        llava = self.llava.to(next(self.model.parameters()).device).eval()
        given = torch.tensor([ids] * len(pictures), device=llava.device)
        frames = [picture if isinstance(picture, list) else [picture] for picture in pictures]
        seen = self.tower.read([frame for each in frames for frame in each])
        pooled = torch.stack([part.mean(0) for part in seen.split([len(each) for each in frames])])
        written = llava.generate(
            inputs_embeds=self.model.embedded(given, pooled),
            attention_mask=torch.ones_like(given),
            do_sample=False,
            max_new_tokens=self.job.answer,
        )
        texts = self.tokenizer.batch_decode(written, skip_special_tokens=True)
        return [text.strip() for text in texts]

    def export(self, folder: Path) -> None:
        """As transformers' own: LlavaForConditionalGeneration and LlavaProcessor load it (with the tower `lite`, after
        `import vlmdata.train.lite_tower`). Adapters are merged into the layers."""
        from transformers import LlavaProcessor

        with language_models.quiet():
            language_models.without_lora(self.llava).save_pretrained(folder)
        tower = self.tower
        LlavaProcessor(
            tower.processor,
            self.tokenizer,
            patch_size=tower.model.config.patch_size,
            vision_feature_select_strategy=tower.select,
            num_additional_image_tokens=tower.extra,
            chat_template=self.tokenizer.chat_template,
        ).save_pretrained(folder)


class _Joined(nn.Module):
    """Projector and language model: what is trained, or trained through.

    The head is a part of its own only where it is not the embedding's matrix: a checkpoint holds each weight once.
    `vision` stands for the tower, so that a run is not gone on with beside another one.
    """

    def __init__(self, llava: Any, image: int, tower: str) -> None:
        super().__init__()
        self.image = image
        self.projector = llava.model.multi_modal_projector
        self.language_model = llava.model.language_model
        tied = llava.lm_head.weight is self.language_model.get_input_embeddings().weight
        self.head = None if tied else llava.lm_head
        self.vision = nn.Parameter(torch.tensor(list(bytes.fromhex(tower)), dtype=torch.float32), requires_grad=False)

    def train(self, mode: bool = True) -> "_Joined":
        """A language model that is not trained has no dropout either."""
        super().train(mode)
        if not any(parameter.requires_grad for parameter in self.language_model.parameters()):
            self.language_model.eval()
        return self

    def embedded(self, ids: Tensor, image: Tensor) -> Tensor:
        """Tokens, int64 [b, length], with pictures' features [b, tokens, width] in their place: [b, length, width]."""
        known = self.language_model.get_input_embeddings()(ids)
        return known.masked_scatter((ids == self.image)[..., None], self.projector(image).to(known.dtype))

    def scores(self, batch: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Logits of the k tokens that are learnt, float32 [k, vocabulary], and these tokens, int64 [k]."""
        known = self.embedded(batch["ids"], batch["image"])
        hidden = self.language_model(inputs_embeds=known, attention_mask=batch["mask"], use_cache=False)[0]
        targets = batch["labels"][:, 1:]
        learnt = targets != IGNORED
        weight = self.language_model.get_input_embeddings().weight if self.head is None else self.head.weight
        return F.linear(hidden[:, :-1][learnt], weight).float(), targets[learnt]

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"projector": F.cross_entropy(*self.scores(batch))}


def _llava(tower: vision_towers.Tower, causal: Any, tokenizer: Any, job: ProjectorJob) -> Any:
    """transformers' LlavaForConditionalGeneration of two pretrained models and a new projector."""
    from transformers import LlavaConfig, LlavaForConditionalGeneration
    from transformers.models.llava.modeling_llava import LlavaMultiModalProjector

    config = LlavaConfig(
        vision_config=tower.model.config,
        text_config=causal.config,
        image_token_index=tokenizer.convert_tokens_to_ids(language_models.IMAGE),
        image_seq_length=tower.tokens,
        vision_feature_layer=tower.layer,
        vision_feature_select_strategy=tower.select,
        projector_hidden_act="gelu" if job.projector == "mlp" else "linear",
        tie_word_embeddings=causal.config.tie_word_embeddings,
    )
    with torch.device("meta"):
        llava = LlavaForConditionalGeneration(config)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(job.seed)
        projector = LlavaMultiModalProjector(config)
    if job.projector == "linear":  # the second layer passes on what it gets
        with torch.no_grad():
            projector.linear_2.weight.copy_(torch.eye(len(projector.linear_2.weight)))
            projector.linear_2.bias.zero_()
    llava.model.vision_tower, llava.model.language_model = tower.model, causal.base_model
    llava.model.multi_modal_projector, llava.lm_head = projector, causal.get_output_embeddings()
    llava.generation_config = causal.generation_config
    return llava.eval()


def _earlier(job: ProjectorJob) -> Projector:
    """The objective of the run that `start` names. Raises InputError where that is of other models."""
    if isinstance(job.start, EarlierJob):
        raise InputError(f"start: the job {job.start.job!r} is of a dataset's snapshot, and these data are none")
    found = checkpoint.load(str(job.start))
    if not isinstance(found, Projector):
        raise InputError(f"start: {job.start} is no run of the objective projector")
    mine, theirs = (places.absolute(each.model_dump(mode="json")) for each in (job, found.job))
    for key in ALIKE:
        if mine[key] != theirs[key]:
            raise InputError(f"start: {job.start} has {key}: {theirs[key]!r}, this run {mine[key]!r}")
    return found
