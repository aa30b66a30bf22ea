"""Starts the recipe's jobs on a snapshot's shards, and records how they ended in the tables `jobs` and `metrics`."""

import datetime
import logging
import time
from pathlib import Path
from typing import Any

import pyarrow.compute as pc
from pydantic import ValidationError

from vlmdata.catalog import append
from vlmdata.dataset import Dataset, make_key
from vlmdata.errors import InputError, JobError, VlmdataError
from vlmdata.recipe import OBJECTIVES, Job, Recipe, TrainJob, nearest
from vlmdata.recipe_file import apply_setting, read_yaml

log = logging.getLogger(__name__)

VERSION = 1


def job_key(job: Job) -> str:
    """16 hex digits: which job it is, whatever its name."""
    return make_key("job", VERSION, job.keyed(), [])


def missing(recipe: Recipe, dataset: Dataset, number: int) -> list[Job]:
    """The recipe's jobs that have not been done on snapshot `number`."""
    table = dataset.read_table("jobs", "log")
    done: set[str] = set()
    for part in table.parts if table else ():
        rows = dataset.read_part(part, ["snapshot", "key", "state"])
        chosen = rows.filter(pc.and_(pc.equal(rows["snapshot"], number), pc.equal(rows["state"], "done")))
        done |= set(chosen["key"].to_pylist())
    return [job for job in recipe.jobs if job_key(job) not in done]


def run_job(job: Job, dataset: Dataset, manifest: dict[str, Any]) -> dict[str, float]:
    """Run one job to its end, going on where an earlier attempt stopped.

    Returns its metrics. Raises JobError when it fails; the row in `jobs` is written in either case.
    """
    from vlmdata.train import source
    from vlmdata.train.loop import train

    number = manifest["number"]
    output = f"jobs/{number:06d}/{job.name}-{job_key(job)}"
    started, clock = datetime.datetime.now(datetime.UTC), time.monotonic()
    state, metrics = "failed", {}
    try:
        metrics = train(job, source.of_snapshot(dataset, manifest), dataset.path(output), resume=True)
        values = [
            {"snapshot": number, "job": job.name, "step": None, "name": name, "value": float(value)}
            for name, value in metrics.items()
        ]
        append(dataset, "metrics", values)  # before the job counts as done, or a kill between would lose them
        state = "done"
    except VlmdataError as error:
        raise JobError(f"job {job.name!r} failed: {error}") from error
    except (RuntimeError, ValueError, OSError) as error:
        raise JobError(f"job {job.name!r} failed: {type(error).__name__}: {error}") from error
    finally:
        row = {
            "snapshot": number,
            "job": job.name,
            "key": job_key(job),
            "kind": job.kind,
            "state": state,
            "exit_code": 0 if state == "done" else 1,
            "started_at": started,
            "seconds": time.monotonic() - clock,
            "output": output,
        }
        append(dataset, "jobs", [row])
    return metrics


def from_options(
    objective: str, data: str, config: Path | None, settings: list[str]
) -> tuple[TrainJob, dict[str, list[str]]]:
    """The job and the shards that `vlmdata train` names. Raises InputError for what is wrong with either."""
    from vlmdata.train import source

    options: dict[str, Any] = {"kind": "train"}
    if config is not None:
        options |= read_yaml(config)
    options["objective"] = objective
    for setting in settings:
        apply_setting(options, setting)
    if objective not in OBJECTIVES:
        raise InputError(f"train: there is no objective {objective!r}{nearest(objective, OBJECTIVES)}")
    try:
        job = OBJECTIVES[objective].model_validate(options)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(step) for step in first["loc"])
        near = nearest(where, OBJECTIVES[objective].model_fields)
        raise InputError(f"train: {where}: {first['msg'].lower()}{near}") from error
    return job, source.shards(data, job.train_split, job.test_split)
