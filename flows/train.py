"""The flow `train`: one job of a recipe on a machine of its own, which a Prefect deployment leads to."""

import logging
import math
import time
from contextlib import suppress
from typing import Any
from uuid import UUID

from httpx import HTTPError
from prefect import flow
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import State
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling
from pydantic import TypeAdapter

from vlmdata.dataset import Dataset
from vlmdata.errors import InputError, MachineError
from vlmdata.jobs import Attempt, Ended, job_key, perform
from vlmdata.recipe import DeploymentPlace, Job
from vlmdata.train import places

log = logging.getLogger(__name__)

POLL_SECONDS = 5.0
PATIENCE_SECONDS = 600.0  # for a server that does not answer
CANCEL_SECONDS = 60.0  # for a worker to end what is cancelled


@flow(name="train", validate_parameters=False)
def train(job: dict[str, Any], dataset: str, snapshot: int, key: str | None = None) -> None:
    """Do a job, as a recipe has it (of this key, where its paths have been made absolute), on a snapshot of a dataset
    that this machine sees, in as many processes as its `on` says. What it prints and measures goes into the job's
    folder; the run that asked for it records it."""
    on = job["on"]
    here = "local" if on["processes"] == 1 else {"kind": "torchrun", "processes": on["processes"]}
    parsed: Job = TypeAdapter[Job](Job).validate_python({**job, "on": here})
    opened = Dataset(dataset)
    attempt = Attempt(parsed, opened, opened.snapshot(snapshot), key)
    try:
        perform(attempt)
    except Ended as error:
        opened.write_json(f"{attempt.output}/exit.json", {"exit_code": error.code})
        raise


def deploy(attempt: Attempt) -> int:
    """Have a deployment's worker do a job, and wait for its end; its exit code. A flow run that an earlier run asked
    for, and whose end is not recorded, is waited for.

    Raises InputError where there is no deployment of that name, MachineError where Prefect's server does not answer.
    """
    place = attempt.job.on
    assert isinstance(place, DeploymentPlace)
    try:
        run = _asked(attempt, place.name)
        if run.state is not None and (run.state.is_cancelling() or run.state.is_cancelled()):
            log.info("job %s: Prefect's flow run %s was cancelled: its end is waited for", attempt.job.name, run.name)
            _wait(attempt, run.id)
            attempt.over()
            run = _asked(attempt, place.name)
        log.info("job %s: Prefect's flow run %s (%s)", attempt.job.name, run.name, run.id)
        state = _wait(attempt, run.id)
    except ObjectNotFound as error:
        raise InputError(
            f"no Prefect deployment is called {place.name!r}; `prefect deployment ls` lists them"
        ) from error
    except HTTPError as error:  # it may run on: the next run finds it
        raise MachineError(f"job {attempt.job.name!r}: Prefect's server: {error or type(error).__name__}") from error
    if state.is_completed():
        return 0
    note = f"{attempt.output}/exit.json"
    code: int = attempt.dataset.read_json(note)["exit_code"] if attempt.dataset.exists(note) else 1
    if code == 1 and attempt.dataset.local:
        with attempt.log.open("a", encoding="utf-8") as told:
            told.write(f"{place.name}: {state.name}: {state.message or ''}\n")
    return code


def _asked(attempt: Attempt, deployment: str) -> Any:
    """The attempt's flow run; it is asked for where there is none."""
    job = attempt.job.model_dump(mode="json")
    if job["kind"] == "train":  # a worker's folder is another
        job = places.absolute(job)
    parameters = {
        "job": job,
        "dataset": attempt.dataset.absolute,
        "snapshot": attempt.number,
        "key": job_key(attempt.job),
    }
    return run_deployment(deployment, parameters=parameters, timeout=0, idempotency_key=attempt.token())


def _wait(attempt: Attempt, run_id: UUID) -> State[Any]:
    """A flow run's last state. Ctrl-C and SIGTERM cancel it, and leave its worker some time to end it; where it takes
    longer, or the server is away, the next run finds it."""
    with get_client(sync_client=True) as client:
        try:
            return _final(client, run_id, math.inf)
        except HTTPError:
            raise
        except BaseException:
            with suppress(HTTPError):
                client.set_flow_run_state(run_id, Cancelling())
                if _final(client, run_id, CANCEL_SECONDS).is_final():
                    attempt.over()
            raise


def _final(client: SyncPrefectClient, run_id: UUID, seconds: float) -> State[Any]:
    """A flow run's state as soon as it is final, or after so many seconds. Raises HTTPError where the server does not
    answer for long."""
    known = time.monotonic()
    end = known + seconds
    while True:
        try:
            state = client.read_flow_run(run_id).state
        except HTTPError:
            if time.monotonic() > min(known + PATIENCE_SECONDS, end):
                raise
        else:
            known = time.monotonic()
            if state is not None and (state.is_final() or known > end):
                return state
        time.sleep(POLL_SECONDS)
