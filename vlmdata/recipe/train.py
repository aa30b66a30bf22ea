"""What the built-in trainer does: the options that every objective has, and each objective's own."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, ValidationInfo, field_validator, model_validator

from vlmdata.recipe.options import Name, Options
from vlmdata.recipe.place import LOCAL, Place


class LiteHeads(Options):
    """The trained part of the embedded scorer `lite`."""

    hidden: int = Field(512, gt=0, description="width of the heads' hidden layer")
    dropout: float = Field(0.6, ge=0, lt=1, description="of the image's features and of the hidden layers")
    temperature: float = Field(1.5, gt=0, description="by which the logits of ImageNet's classes are divided")
    share: float = Field(0.35, ge=0, le=1, description="of the learned residual, when scoring")
    context: float = Field(0.4, ge=0, le=1, description="how often a sample's context stands in for its caption")


class Mix(Options):
    """Samples of another dataset, or of other shards, among those trained on."""

    data: str = Field(
        min_length=1, description="a dataset's newest snapshot, or shards: a path, a glob, any fsspec URL"
    )
    weight: float = Field(1.0, gt=0, description="share of a batch against that of the job's own data, which has 1")


class TrainJob(Options):
    """The built-in trainer on a snapshot's shards, whatever the objective."""

    kind: Literal["train"]
    name: Name = "train"
    on: Place = LOCAL
    unkeyed: ClassVar[frozenset[str]] = frozenset({"on"})
    mix: list[Mix] = []
    steps: int = Field(200, gt=0)
    batch: int = Field(64, gt=0, description="samples of one forward pass in one process")
    accumulate: int = Field(1, gt=0, description="forward passes a step")
    lr: float = Field(1e-3, gt=0)
    schedule: Literal["cosine", "constant"] = Field("cosine", description="of the rate after the warm-up")
    warmup: int = Field(10, ge=0, description="steps")
    weight_decay: float = Field(0.1, ge=0)
    clip_norm: float = Field(1.0, gt=0, description="the largest norm of the gradient")
    ema: float = Field(0.0, ge=0, lt=1, description="decay of the weights' moving average, which is what is exported")
    seed: int = Field(0, ge=0)
    workers: int = Field(1, ge=0, description="threads that decode ahead")
    threads: int = Field(1, gt=0, description="threads of the model's arithmetic; another number gives other last bits")
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    compile: bool = Field(False, description="torch.compile")
    parallel: Literal["ddp", "fsdp"] = Field("ddp", description="of several processes: whole copies, or sharded ones")
    not_finite: Literal["stop", "skip"] = Field("stop", description="what a step does whose loss is not finite")
    peak_tflops: float | None = Field(None, gt=0, description="of one device, where the trainer does not know it")
    save_every: int = Field(100, gt=0)
    keep: int = Field(2, gt=0, description="checkpoints that stay")
    best: str | None = Field(
        None, description="the metric whose best checkpoint stays too; -<metric> where less is better"
    )
    eval_every: int = Field(100, gt=0)
    train_split: Name = "train"
    test_split: Name = "test"
    measure_before: bool = Field(False, description="measure before the first step too: <metric>/before")

    @model_validator(mode="after")
    def _whole_or_half(self) -> "TrainJob":
        if self.precision == "fp16" and self.parallel == "fsdp":
            raise ValueError("`precision: fp16` does not go with `parallel: fsdp`: take bf16")
        return self


class ContrastiveJob(TrainJob):
    """CLIP (Radford 2021, arXiv:2103.00020)."""

    objective: Literal["contrastive"] = "contrastive"
    model: str | dict[str, Any] = Field(
        "tiny", description="tiny, lite, an open_clip architecture, its JSON file, or that file's content"
    )
    pretrained: str | None = Field(None, description="a tag or checkpoint of the open_clip architecture to begin from")
    heads: LiteHeads = Field(LiteHeads(), description="of the model lite")
    crop: float = Field(1.0, gt=0, le=1, description="the smallest side of a random training crop, of the shorter side")
    loss: Literal["clip", "siglip"] = Field("clip", description="softmax over the batch, or a sigmoid for each pair")
    lock: list[Literal["image", "text"]] = Field([], description="towers that are not trained (LiT)")
    unlocked_groups: int = Field(0, ge=0, description="last groups of layers of a locked tower that are trained")
    cached: bool = Field(
        False, description="one loss over all `accumulate` forward passes of a step, each computed twice (GradCache)"
    )
    frames: int = Field(1, gt=0, description="of a video in a sample, where the shards' samples are frames of videos")

    @field_validator("loss", "lock", "cached", "frames")
    @classmethod
    def _not_of_lite(cls, value: Any, info: ValidationInfo) -> Any:
        if info.data.get("model") == "lite" and value != cls.model_fields[info.field_name or ""].default:
            raise ValueError("the model lite has no such option: its towers' features are computed once")
        return value


class Mixture(Options):
    """How the samples of a batch are used: this many of each kind, over and over again."""

    pairs: int = Field(1, ge=0, description="an image and its caption")
    mismatched: int = Field(1, ge=0, description="an image and another sample's caption, for image-text matching")
    images: int = Field(1, ge=0, description="an image alone")
    texts: int = Field(1, ge=0, description="a caption alone")


class MaskedWeights(Options):
    """Of FLAVA's losses in the total; what has 0 is not computed."""

    mlm: float = Field(1.0, ge=0, description="masked language modelling, on texts alone")
    mim: float = Field(1.0, ge=0, description="masked image modelling, on images alone")
    mmm_text: float = Field(1.0, ge=0, description="masked multimodal modelling: the text's part, on pairs")
    mmm_image: float = Field(1.0, ge=0, description="the image's part of it")
    itm: float = Field(1.0, ge=0, description="image-text matching, on pairs and mismatched ones")
    contrastive: float = Field(1.0, ge=0, description="on pairs, with the mismatched ones as further negatives")


class MaskedJob(TrainJob):
    """FLAVA (Singh 2022, arXiv:2112.04482)."""

    objective: Literal["masked"]
    model: str | dict[str, Any] = Field(
        "tiny",
        description="tiny, small, base; a FlavaConfig's content; or a pretrained FLAVA: a folder, a name on the hub",
    )
    image_size: int = Field(112, gt=0, description="pixels; a pretrained model has its own")
    patch_size: int = Field(16, gt=0, description="pixels")
    dropout: float = Field(0.1, ge=0, lt=1, description="of the models tiny, small and base")
    tokenizer: str | None = Field(
        None, description="a folder or a name on the hub; the embedded one is BERT's, uncased"
    )
    tokens: int = Field(64, ge=3, description="of a text at most, the two around it included")
    targets: Literal["kmeans", "codebook", "pixels"] = Field(
        "kmeans", description="of hidden patches: learned codes, FLAVA's own, or their pixels, normalised"
    )
    codes: int = Field(512, gt=1, description="of kmeans")
    codebook: str | None = Field(None, description="FLAVA's image codebook: a folder or a name on the hub")
    text_share: float = Field(0.15, gt=0, lt=1, description="of the tokens that are hidden")
    image_share: float = Field(0.4, gt=0, lt=1, description="of the patches that are hidden")
    image_masking: Literal["blocks", "random"] = Field("blocks", description="rectangles, as BEiT, or single patches")
    mixture: Mixture = Mixture()
    weights: MaskedWeights = MaskedWeights()
    images: str | None = Field(None, description="a dataset or shards that the images alone come from, not the pairs")
    texts: str | None = Field(
        None, description="a file that the texts alone come from, not the captions: .txt, a line each, or .jsonl (text)"
    )

    @model_validator(mode="after")
    def _whole(self) -> "MaskedJob":
        cycle = sum(self.mixture.model_dump().values())
        if not cycle or self.batch % cycle:
            raise ValueError(f"batch {self.batch} is no multiple of the mixture's sum, {cycle}")
        if self.targets == "codebook" and not self.codebook:
            raise ValueError("targets: codebook needs the codebook's weights: name their folder in `codebook`")
        if not self.losses():
            raise ValueError("no loss has both a weight and samples in the mixture")
        return self

    def losses(self) -> dict[str, float]:
        """The weights of the losses that have both a weight and samples in the mixture."""
        on = {"mlm": self.mixture.texts, "mim": self.mixture.images}
        weights: dict[str, float] = self.weights.model_dump()
        if weights["itm"] and self.mixture.pairs and not self.mixture.mismatched:
            raise ValueError("itm has nothing to tell apart: give mixture.mismatched, or set weights.itm to 0")
        return {name: weight for name, weight in weights.items() if weight and on.get(name, self.mixture.pairs)}


class Lora(Options):
    """Low-rank adapters (Hu 2021, arXiv:2106.09685) in every linear layer of the language model."""

    rank: int = Field(16, gt=0)
    alpha: int = Field(32, gt=0, description="the adapters' output counts alpha / rank")
    dropout: float = Field(0.05, ge=0, lt=1)


class EarlierJob(Options):
    """A job of the same recipe that stands before this one: its newest finished output on the same snapshot."""

    job: Name
    key: str | None = Field(None, pattern=r"^[0-9a-f]{16}$", description="which job that is; a run fills it in")


class ProjectorJob(TrainJob):
    """LLaVA (Liu 2023, arXiv:2304.08485)."""

    objective: Literal["projector"]
    stage: Literal[1, 2] = Field(1, description="1: the projector alone, on captions; 2: conversations")
    vision: str = Field(
        "lite",
        min_length=1,
        description="lite, or a CLIP or SigLIP tower of transformers or open_clip: docs/projector.md",
    )
    tokens: Literal[49, 16, 9] | None = Field(None, description="visual tokens of a picture by the tower lite; 49")
    vision_layer: int = Field(-2, description="of the other towers, whose output is read; -1 is the last")
    language_model: str = Field(
        "smollm2", min_length=1, description="smollm2, or a causal one: a folder, or of the hub"
    )
    projector: Literal["linear", "mlp"] = Field("mlp", description="one layer, or LLaVA-1.5's two with GELU")
    language: Literal["frozen", "lora", "full"] = Field(
        "frozen", description="what of the language model stage 2 trains: nothing, adapters, or all"
    )
    lora: Lora = Field(Lora(), description="of `language: lora`")
    start: str | EarlierJob | None = Field(
        None, description="the --out of an earlier run, such as stage 1's, to go on from; or {job: NAME} of a recipe"
    )
    conversations: str | None = Field(None, description="LLaVA's JSON: pictures with turns, trained on beside the data")
    images: str | None = Field(None, description="the folder that its pictures lie in; its own otherwise")
    prompt: str = Field("Describe the picture.", min_length=1, description="what stage 2 asks where there is a caption")
    frames: int = Field(1, gt=0, description="of a video in a sample, whose tokens are averaged place by place")
    length: int = Field(512, ge=8, description="tokens of a sample, the visual ones too; what is beyond is cut off")
    answer: int = Field(48, gt=0, description="the most tokens of a generated caption or answer")

    @model_validator(mode="after")
    def _of_a_stage(self) -> "ProjectorJob":
        if self.stage == 1 and (self.language != "frozen" or self.conversations):
            raise ValueError(
                "stage 1 trains the projector alone, on captions: `language`, `conversations` need stage: 2"
            )
        if self.tokens and self.vision != "lite":
            raise ValueError("`tokens` is of the tower lite: another one gives what it gives")
        if self.images and not self.conversations:
            raise ValueError("`images` is the folder of the pictures of `conversations`, which is not given")
        return self


class CaptioningJob(TrainJob):
    """CoCa (Yu 2022, arXiv:2205.01917)."""

    objective: Literal["captioning"]
    model: str | dict[str, Any] = Field(
        "tiny", description="tiny, a CoCa of open_clip (coca_…), its JSON file, or that file's content"
    )
    pretrained: str | None = Field(None, description="a tag or checkpoint of the open_clip architecture to begin from")
    crop: float = Field(1.0, gt=0, le=1, description="the smallest side of a random training crop, of the shorter side")
    contrastive_weight: float = Field(1.0, gt=0, description="of the contrastive loss in the total")
    caption_weight: float = Field(2.0, gt=0, description="of the caption's loss in the total")
    beams: int = Field(4, gt=0, description="of the search for a caption; 1 takes the likeliest token each time")


class DrawingJob(TrainJob):
    """Text to image: a multimodal diffusion transformer with flow matching (Esser 2024, arXiv:2403.03206)."""

    objective: Literal["drawing"]
    size: int = Field(32, ge=8, description="side of the square pictures, pixels")
    vae: str | None = Field(None, description="a folder, or of the hub, with an AutoencoderKL: latents, not pixels")
    patch: int = Field(2, gt=0, description="side of a patch, pixels or latents")
    layers: int = Field(6, gt=0)
    heads: int = Field(6, gt=0)
    head_width: int = Field(32, gt=0)
    language_model: str = Field(
        "smollm2", min_length=1, description="that encodes the text: smollm2, or a causal one: a folder, or of the hub"
    )
    words: int = Field(24, gt=0, description="tokens of a caption; what is beyond is cut off")
    unconditional: float = Field(0.1, ge=0, lt=1, description="how often a picture is drawn without its caption")

    @model_validator(mode="after")
    def _whole_patches(self) -> "DrawingJob":
        if self.size % self.patch:
            raise ValueError(f"`size` {self.size} is no multiple of `patch` {self.patch}")
        return self


OBJECTIVES: dict[str, type[TrainJob]] = {
    "contrastive": ContrastiveJob,
    "masked": MaskedJob,
    "projector": ProjectorJob,
    "captioning": CaptioningJob,
    "drawing": DrawingJob,
}


def _contrastive(value: object) -> object:
    """A job that names no objective is a contrastive one."""
    return {"objective": "contrastive", **value} if isinstance(value, dict) else value


AnyTrainJob = Annotated[
    Annotated[ContrastiveJob | MaskedJob | ProjectorJob | CaptioningJob | DrawingJob, Field(discriminator="objective")],
    BeforeValidator(_contrastive),
]
