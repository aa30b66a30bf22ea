"""The recipe: the one room where options and their defaults live. `vlmdata.recipe_file.load` reads one."""

from typing import Annotated

from pydantic import BeforeValidator, Field, model_validator

from vlmdata.recipe.compare import Compare
from vlmdata.recipe.dedup import (
    DecontaminateDedup,
    Dedup,
    ExactDedup,
    Groups,
    PerceptualDedup,
    PixelsDedup,
    SemanticDedup,
    UrlDedup,
)
from vlmdata.recipe.download import Consent, Download
from vlmdata.recipe.evaluate import Evaluation
from vlmdata.recipe.gates import Gates
from vlmdata.recipe.jobs import CommandJob, Job
from vlmdata.recipe.options import Bytes, Name, Options, Paths, kind_alone, nearest
from vlmdata.recipe.place import DeploymentPlace, LocalPlace, SlurmPlace, TorchrunPlace
from vlmdata.recipe.runner import Parts, Runner
from vlmdata.recipe.select import (
    Balance,
    DatacompBasicPreset,
    DatacompClipPreset,
    DatacompImageBasedPreset,
    DatacompLaion2bPreset,
    DatacompTextBasedPreset,
    LaionAestheticsPreset,
    ObelicsImagePreset,
    Preset,
    Sample,
    Select,
    Top,
)
from vlmdata.recipe.shards import Shards
from vlmdata.recipe.signals import (
    AestheticSignal,
    ClipSignal,
    FacesSignal,
    FilterSignal,
    FluencySignal,
    ImageSignal,
    LanguageSignal,
    MaskedClipSignal,
    NearTargetSignal,
    NsfwSignal,
    OcrSignal,
    PiiSignal,
    PythonSignal,
    Signal,
    SscdSignal,
    TextSignal,
    WordnetSignal,
)
from vlmdata.recipe.sources import (
    CommonCrawlSource,
    CrawlSource,
    DatacompSource,
    FolderSource,
    Source,
    TableSource,
    VideoSource,
    WebdatasetSource,
)
from vlmdata.recipe.train import (
    OBJECTIVES,
    AnyTrainJob,
    CaptioningJob,
    ContrastiveJob,
    DrawingJob,
    EarlierJob,
    LiteHeads,
    Lora,
    MaskedJob,
    Mix,
    ProjectorJob,
    TrainJob,
)

__all__ = [
    "OBJECTIVES",
    "AestheticSignal",
    "AnyTrainJob",
    "Balance",
    "Bytes",
    "CaptioningJob",
    "ClipSignal",
    "CommandJob",
    "CommonCrawlSource",
    "Compare",
    "Consent",
    "ContrastiveJob",
    "CrawlSource",
    "DatacompBasicPreset",
    "DatacompClipPreset",
    "DatacompImageBasedPreset",
    "DatacompLaion2bPreset",
    "DatacompSource",
    "DatacompTextBasedPreset",
    "DecontaminateDedup",
    "Dedup",
    "DeploymentPlace",
    "Download",
    "DrawingJob",
    "EarlierJob",
    "Evaluation",
    "ExactDedup",
    "FacesSignal",
    "FilterSignal",
    "FluencySignal",
    "FolderSource",
    "Gates",
    "Groups",
    "ImageSignal",
    "Job",
    "LaionAestheticsPreset",
    "LanguageSignal",
    "LiteHeads",
    "LocalPlace",
    "Lora",
    "MaskedClipSignal",
    "MaskedJob",
    "Mix",
    "Name",
    "NearTargetSignal",
    "NsfwSignal",
    "ObelicsImagePreset",
    "OcrSignal",
    "Options",
    "Parts",
    "Paths",
    "PerceptualDedup",
    "PiiSignal",
    "PixelsDedup",
    "Preset",
    "ProjectorJob",
    "PythonSignal",
    "Recipe",
    "Runner",
    "Sample",
    "Select",
    "SemanticDedup",
    "Shards",
    "Signal",
    "SlurmPlace",
    "Source",
    "SscdSignal",
    "TableSource",
    "TextSignal",
    "Top",
    "TorchrunPlace",
    "TrainJob",
    "UrlDedup",
    "VideoSource",
    "WebdatasetSource",
    "WordnetSignal",
    "nearest",
    "signal_name",
    "signal_suffix",
]


class Recipe(Options):
    """A whole recipe. Its JSON Schema is `schemas/recipe.schema.json`."""

    dataset: str = Field(min_length=1, description="a folder or any fsspec URL")
    sources: list[Source] = Field(min_length=1)
    consent: Consent = Consent()
    download: Download = Download()
    signals: list[Annotated[Signal, BeforeValidator(kind_alone)]] = []
    dedup: list[Annotated[Dedup, BeforeValidator(kind_alone)]] = []
    select: Select = Select()
    shards: Shards = Shards()
    runner: Runner = Runner()
    parts: Parts = Parts()
    gates: Gates = Gates()
    jobs: list[Job] = []
    compare: Compare = Compare()

    @model_validator(mode="after")
    def _without_images(self) -> "Recipe":
        if self.download.skip and (self.jobs or self.consent.known):
            what = "jobs" if self.jobs else "consent.known"
            raise ValueError(f"download.skip: without images there is nothing for {what}: leave one of the two out")
        return self

    @model_validator(mode="after")
    def _names(self) -> "Recipe":
        named: dict[str, list[str]] = {
            "sources": [s.name for s in self.sources],
            "signals": [signal_name(s) for s in self.signals],
            "dedup": [d.kind for d in self.dedup],
            "select.preset": [p.kind for p in self.select.preset],
            "jobs": [j.name for j in self.jobs],
        }
        for what, names in named.items():
            twice = sorted({n for n in names if names.count(n) > 1})
            if twice:
                raise ValueError(f"{what}: two entries are called {', '.join(twice)}; give one a `name`")
        for kind in self.select.dedup or []:
            if kind not in named["dedup"]:
                raise ValueError(f"select.dedup: `dedup` has no {kind!r}{nearest(kind, named['dedup'])}")
        if self.select.sample and isinstance(self.select.sample.weights, dict):
            for source in self.select.sample.weights:
                if source not in named["sources"]:
                    raise ValueError(
                        f"select.sample.weights: no source is called {source!r}{nearest(source, named['sources'])}"
                    )
        for job in self.jobs:
            for what, split in job.used() if isinstance(job, CommandJob) else []:
                if split not in self.shards.splits:
                    raise ValueError(
                        f"jobs.{job.name}: no split is called {split!r}{nearest(split, self.shards.splits)}"
                    )
                if what != "samples" and what not in self.shards.formats:
                    raise ValueError(f"jobs.{job.name}: {{{what}}}: shards.formats leaves these shards out")
        for signal in self.signals:
            for trusted in signal.trusted if isinstance(signal, FilterSignal) else []:
                if trusted not in named["sources"]:
                    raise ValueError(
                        f"signals.filter.trusted: no source is called {trusted!r}{nearest(trusted, named['sources'])}"
                    )
            for rule in signal.after:
                if rule not in self.select.rules and "/" not in rule:  # a preset's is looked up by the plan
                    raise ValueError(
                        f"signals.{signal.kind}.after: no rule is called {rule!r}{nearest(rule, self.select.rules)}"
                    )
        return self

    @model_validator(mode="after")
    def _chained(self) -> "Recipe":
        known: list[str] = []
        for job in self.jobs:
            if isinstance(job, ProjectorJob):
                if isinstance(job.start, EarlierJob) and job.start.job not in known:
                    near = nearest(job.start.job, known)
                    raise ValueError(
                        f"jobs.{job.name}.start: no projector training before it is called {job.start.job!r}{near}"
                    )
                known.append(job.name)
        return self


def signal_suffix(signal: Signal) -> str:
    """`_b` for `name: b`, else nothing: what stands behind the names of the signal's columns."""
    return f"_{signal.name}" if signal.name else ""


def signal_name(signal: Signal) -> str:
    """`clip`, or `clip_b` for `name: b`: the name of the signal's table."""
    return signal.kind + signal_suffix(signal)
