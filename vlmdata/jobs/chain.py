"""Jobs that go on from what an earlier job of the recipe left: `start: {job: NAME}`."""

from collections.abc import Iterable
from typing import TypeVar

from vlmdata.catalog import logged
from vlmdata.dataset import Dataset
from vlmdata.errors import InputError
from vlmdata.jobs.attempt import job_key
from vlmdata.recipe import EarlierJob, Job, ProjectorJob, TrainJob, nearest

_COLUMNS = ["snapshot", "job", "key", "kind", "state", "started_at", "output"]
T = TypeVar("T", bound=TrainJob)


def linked(jobs: Iterable[Job]) -> list[Job]:
    """A recipe's jobs, each with the key of the one that it goes on from: where that changes, this is another job."""
    keys: dict[str, str] = {}
    found: list[Job] = []
    for job in jobs:
        if isinstance(job, ProjectorJob) and isinstance(job.start, EarlierJob):
            start = job.start.model_copy(update={"key": keys[job.start.job]})
            job = job.model_copy(update={"start": start})
        keys[job.name] = job_key(job)
        found.append(job)
    return found


def started(job: T, dataset: Dataset, number: int) -> T:
    """The job with the folder of the training that it goes on from: the newest one of that key (of
    that name, where no key is given) that was done on snapshot `number`. Raises InputError where there is none."""
    start = getattr(job, "start", None)
    if not isinstance(start, EarlierJob):
        return job
    rows = logged(dataset, "jobs", number, _COLUMNS)
    done = [row for row in rows if row["state"] == "done" and row["kind"] == "train"]
    mine = [row for row in done if (row["key"] == start.key if start.key else row["job"] == start.job)]
    if not mine:
        near = nearest(start.job, {row["job"] for row in done})
        raise InputError(
            f"start: the job {start.job!r} has no finished output on snapshot {number} of {dataset.url}{near}; run it "
            "first, or name the folder of a training"
        )
    output: str = max(mine, key=lambda row: row["started_at"])["output"]
    folder = dataset.kept_folder(output)
    if not (folder / "checkpoints").is_dir():
        raise InputError(f"start: the output of the job {start.job!r}, {folder}, is not on this machine any more")
    return job.model_copy(update={"start": str(folder)})
