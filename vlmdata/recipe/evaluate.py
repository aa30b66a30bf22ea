"""What `vlmdata evaluate` measures, and how."""

from typing import Literal

from pydantic import Field

from vlmdata.recipe.options import Options

Task = Literal["retrieval", "zeroshot", "masked", "captions", "answers"]


class Evaluation(Options):
    """The options of `vlmdata evaluate`; one that is None is chosen by what the data is."""

    tasks: tuple[Task, ...] = Field((), description="none: all that the checkpoint and the data allow")
    split: str | None = Field(None, description="of a dataset, of shards, or of a set of Hugging Face")
    captions: Literal["first", "all"] = Field(
        "first", description="retrieval: the .txt alone, or all captions of an image, each of which counts"
    )
    classes: str | None = Field(None, description="zeroshot: a file with a class's name a line, in the labels' order")
    label: str | None = Field(None, description="zeroshot: the key of the samples' JSON, or the column, with the class")
    templates: str | None = Field(
        None, description="zeroshot: imagenet (open_clip's 80), simple (its 7), or a file with a template a line"
    )
    batch: int = Field(32, gt=0, description="pictures in one batch of the model")
    workers: int = Field(1, ge=0, description="threads that decode ahead")
    threads: int = Field(1, gt=0, description="threads of the model's arithmetic; another number gives other last bits")
    limit: int | None = Field(None, gt=0, description="only so many samples, drawn with the seed")
    resamples: int = Field(1000, ge=0, description="of the bootstrap; 0: no intervals")
    seed: int = Field(0, ge=0)
