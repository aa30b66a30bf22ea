"""A training that the command line names: `vlmdata train OBJECTIVE --data … --out …`."""

import datetime
import os
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from vlmdata import tags
from vlmdata.errors import InputError
from vlmdata.jobs.attempt import write_metrics
from vlmdata.jobs.chain import started as started_from
from vlmdata.jobs.record import record_by_hand
from vlmdata.recipe import OBJECTIVES, TrainJob, nearest
from vlmdata.recipe_file import apply_setting, read_yaml


def first_process() -> bool:
    """Whether this is the process that speaks for all that torchrun has started."""
    return os.environ.get("RANK", "0") == "0"


def from_options(objective: str, config: Path | None, settings: list[str]) -> TrainJob:
    """The job that the options name. A run's own config.json will do as `config`. Raises InputError."""
    options: dict[str, Any] = {"kind": "train"}
    if config is not None:
        options |= read_yaml(config)
        options.pop("processes", None)  # how many trained: the trainer's word, no option
    options["objective"] = objective
    for setting in settings:
        apply_setting(options, setting)
    if objective not in OBJECTIVES:
        raise InputError(f"train: there is no objective {objective!r}{nearest(objective, OBJECTIVES)}")
    try:
        return OBJECTIVES[objective].model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        near = nearest(where, OBJECTIVES[objective].model_fields)
        raise InputError(f"train: {where}: {first['msg'].lower()}{near}") from error


def train(job: TrainJob, data: str, out: Path, resume: bool) -> dict[str, float]:
    """Train, write the final metrics into OUT/metrics.json, and where `data` is a dataset into its catalog too, with
    the number of the snapshot that was trained on. A job of a recipe leaves that to the run that started it."""
    from vlmdata.train import source
    from vlmdata.train.loop import train as train_loop

    found = tags.find(data)
    if found:
        job = started_from(job, found[0], found[1]["number"])
    shards = source.of_snapshot(*found) if found else source.shards(data, job.train_split, job.test_split)
    started = datetime.datetime.now(datetime.UTC)
    metrics = train_loop(job, shards, str(out), resume=resume)
    if first_process():
        write_metrics(out, metrics)
        if found and "VLMDATA_JOB" not in os.environ:
            dataset, manifest = found
            record_by_hand(dataset, manifest["number"], job, out, started, metrics)
    return metrics
