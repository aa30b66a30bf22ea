"""How jobs ended and what they measured, as rows of the tables `jobs` and `metrics`."""

import datetime
import logging
import time
from pathlib import Path
from typing import Any

from vlmdata.catalog import append
from vlmdata.dataset import Dataset
from vlmdata.errors import MachineError, RefusedError
from vlmdata.jobs.attempt import METRICS, Attempt, job_key
from vlmdata.lock import lock
from vlmdata.recipe import TrainJob

log = logging.getLogger(__name__)


class Record:
    """The rows of one attempt: `running` when it begins, then `done` or `failed`."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt, self.clock = attempt, time.monotonic()
        self.row = {
            "snapshot": attempt.number,
            "job": attempt.job.name,
            "key": job_key(attempt.job),
            "kind": attempt.job.kind,
            "started_at": datetime.datetime.now(datetime.UTC),
            "output": attempt.output,
            "log": f"{attempt.output}/{attempt.log.name}",
        }
        append(attempt.dataset, "jobs", [self.row | {"state": "running"}])

    def done(self, metrics: dict[str, float]) -> None:
        # the metrics first: a kill between the two would lose them for a job that counts as done
        _append_metrics(self.attempt.dataset, self.attempt.number, self.attempt.job.name, metrics)
        self._end("done", 0)

    def failed(self, code: int) -> None:
        self._end("failed", code)

    def _end(self, state: str, code: int) -> None:
        row = self.row | {"state": state, "exit_code": code, "seconds": time.monotonic() - self.clock}
        append(self.attempt.dataset, "jobs", [row])


def record_by_hand(
    dataset: Dataset, number: int, job: TrainJob, out: Path, started: datetime.datetime, metrics: dict[str, float]
) -> bool:
    """Record a training that `vlmdata train` did on a snapshot; its job's name is its folder. Whether it could be:
    while a run holds the dataset's lock, and where the dataset cannot be written, a line says so."""
    name = str(out.absolute())
    row: dict[str, Any] = {
        "snapshot": number,
        "job": name,
        "key": None,  # or the recipe's job with the same options would count as done
        "kind": job.kind,
        "state": "done",
        "exit_code": 0,
        "started_at": started,
        "seconds": (datetime.datetime.now(datetime.UTC) - started).total_seconds(),
        "output": name,
        "log": None,
    }
    try:
        with lock(dataset, "vlmdata train"):
            _append_metrics(dataset, number, name, metrics)
            append(dataset, "jobs", [row])
    except (RefusedError, MachineError, OSError) as error:
        log.warning("the metrics are in %s alone and not in the dataset's catalog: %s", out / METRICS, error)
        return False
    return True


def _append_metrics(dataset: Dataset, number: int, job: str, metrics: dict[str, float]) -> None:
    rows = [
        {"snapshot": number, "job": job, "step": None, "name": name, "value": float(value)}
        for name, value in metrics.items()
    ]
    if rows:
        append(dataset, "metrics", rows)
