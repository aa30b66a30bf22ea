"""Starts the recipe's jobs on a snapshot's shards, one file a place, and records how they ended."""

from collections.abc import Callable
from typing import Any

from vlmdata.catalog import logged
from vlmdata.dataset import Dataset
from vlmdata.errors import JobError, MachineError, VlmdataError
from vlmdata.jobs import local, slurm, torchrun
from vlmdata.jobs.attempt import Attempt, Ended, job_key
from vlmdata.jobs.chain import linked
from vlmdata.jobs.record import Record
from vlmdata.recipe import Job, Recipe

__all__ = ["Attempt", "Ended", "job_key", "missing", "perform", "run_job"]

Start = Callable[[Attempt], int]
INTERRUPTED = 130


def missing(recipe: Recipe, dataset: Dataset, number: int) -> list[Job]:
    """The recipe's jobs that have not been done on snapshot `number`."""
    rows = logged(dataset, "jobs", number, ["snapshot", "key", "state"]) if recipe.jobs else []
    done = {row["key"] for row in rows if row["state"] == "done"}
    return [job for job in linked(recipe.jobs) if job_key(job) not in done]


def run_job(job: Job, dataset: Dataset, manifest: dict[str, Any], deploy: Start | None = None) -> dict[str, float]:
    """Run one job to its end, going on where an earlier attempt stopped.

    deploy: starts a job on a Prefect deployment (`vlmdata.flows.train.deploy`).
    Returns its metrics. Raises JobError, with its last lines, when it fails, and MachineError when the machine does;
    its rows in `jobs` are written in either case.
    """
    attempt = Attempt(job, dataset, manifest)
    record, code = Record(attempt), 1
    over = True  # not where the job may run on, though this run will not see its end
    try:
        metrics = perform(attempt, deploy)
    except KeyboardInterrupt:
        code, over = INTERRUPTED, False
        raise
    except MachineError as error:
        code, over = error.exit_code, False
        raise
    except Ended as error:
        code = error.code
        raise
    except JobError as error:
        code = error.exit_code
        raise
    except VlmdataError as error:
        code = error.exit_code
        raise JobError(f"job {job.name!r} failed: {error}") from error
    except (RuntimeError, ValueError, OSError) as error:
        raise JobError(f"job {job.name!r} failed: {type(error).__name__}: {error}") from error
    except BaseException:  # SIGTERM, as Prefect raises it
        over = False
        raise
    else:
        record.done(metrics)
        code = 0
    finally:
        if code:
            record.failed(code)
        if over:
            attempt.over()
    return metrics


def perform(attempt: Attempt, deploy: Start | None = None) -> dict[str, float]:
    """Start a job where it is to run, wait for its end, and return its metrics; nothing is recorded. Raises Ended."""
    places: dict[str, Start] = {"local": local.start, "torchrun": torchrun.start, "slurm": slurm.start}
    if deploy:
        places["deployment"] = deploy
    try:
        code = places[attempt.job.on.kind](attempt)
    finally:
        attempt.copy_small()
    if code:
        told = "".join(f"\n  {line}" for line in attempt.last_lines())
        where = attempt.dataset.address(f"{attempt.output}/{attempt.log.name}")
        raise Ended(f"job {attempt.job.name!r} failed with exit code {code}; its log is {where}{told}", code)
    return attempt.metrics()
