"""What is trained on a snapshot."""

from typing import Annotated, Any, Literal

from pydantic import Field

from vlmdata.recipe.options import Name, Options


class LiteHeads(Options):
    """The trained part of the embedded scorer `lite`."""

    hidden: int = Field(512, gt=0, description="width of the heads' hidden layer")
    dropout: float = Field(0.6, ge=0, lt=1, description="of the image's features and of the hidden layers")
    temperature: float = Field(1.5, gt=0, description="by which the logits of ImageNet's classes are divided")
    share: float = Field(0.35, ge=0, le=1, description="of the learned residual, when scoring")
    context: float = Field(0.4, ge=0, le=1, description="how often a sample's context stands in for its caption")


class TrainJob(Options):
    """The built-in trainer on the snapshot's shards."""

    kind: Literal["train"]
    name: Name = "train"
    objective: Literal["contrastive"] = "contrastive"
    model: str | dict[str, Any] = Field(
        "tiny", description="tiny, lite, an open_clip architecture, its JSON file, or that file's content"
    )
    pretrained: str | None = Field(None, description="a tag or checkpoint of the open_clip architecture to begin from")
    heads: LiteHeads = Field(LiteHeads(), description="of the model lite")
    steps: int = Field(200, gt=0)
    batch: int = Field(64, gt=1, description="samples of one forward pass in one process")
    accumulate: int = Field(1, gt=0, description="forward passes a step")
    lr: float = Field(1e-3, gt=0)
    warmup: int = Field(10, ge=0, description="steps")
    weight_decay: float = Field(0.1, ge=0)
    clip_norm: float = Field(1.0, gt=0, description="the largest norm of the gradient")
    crop: float = Field(1.0, gt=0, le=1, description="the smallest side of a random training crop, of the shorter side")
    seed: int = Field(0, ge=0)
    workers: int = Field(1, ge=0, description="threads that decode ahead")
    threads: int = Field(1, gt=0, description="threads of the model's arithmetic; another number gives other last bits")
    precision: Literal["fp32", "bf16"] = "fp32"
    save_every: int = Field(100, gt=0)
    keep: int = Field(2, gt=0, description="checkpoints that stay")
    eval_every: int = Field(100, gt=0)
    train_split: Name = "train"
    test_split: Name = "test"


Job = Annotated[TrainJob, Field()]
