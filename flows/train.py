"""The flow `train`: one job of a recipe on a machine of its own, which a Prefect deployment leads to."""

from typing import Any

from prefect import flow
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from pydantic import TypeAdapter

from vlmdata.dataset import Dataset
from vlmdata.errors import InputError
from vlmdata.jobs import Attempt, Ended, perform
from vlmdata.recipe import DeploymentPlace, Job

POLL_SECONDS = 5.0


@flow(name="train", validate_parameters=False)
def train(job: dict[str, Any], dataset: str, snapshot: int) -> None:
    """Do a job, as a recipe has it, on a snapshot of a dataset that this machine sees, in as many processes as its
    `on` says. What it prints and measures goes into the job's folder; the run that asked for it records it."""
    on = job["on"]
    here = "local" if on["processes"] == 1 else {"kind": "torchrun", "processes": on["processes"]}
    parsed: Job = TypeAdapter[Job](Job).validate_python({**job, "on": here})
    opened = Dataset(dataset)
    attempt = Attempt(parsed, opened, opened.snapshot(snapshot))
    try:
        perform(attempt)
    except Ended as error:
        opened.write_json(f"{attempt.output}/exit.json", {"exit_code": error.code})
        raise


def deploy(attempt: Attempt) -> int:
    """Have a deployment's worker do a job, and wait for its end; its exit code. Raises InputError where there is none
    of that name."""
    place = attempt.job.on
    assert isinstance(place, DeploymentPlace)
    job = attempt.job.model_dump(mode="json")
    parameters = {"job": job, "dataset": attempt.dataset.absolute, "snapshot": attempt.number}
    try:
        run: Any = run_deployment(place.name, parameters=parameters, poll_interval=POLL_SECONDS)
    except ObjectNotFound as error:
        raise InputError(
            f"no Prefect deployment is called {place.name!r}; `prefect deployment ls` lists them"
        ) from error
    if run.state.is_completed():
        return 0
    note = f"{attempt.output}/exit.json"
    code: int = attempt.dataset.read_json(note)["exit_code"] if attempt.dataset.exists(note) else 1
    if code == 1 and attempt.dataset.local:
        with attempt.log.open("a", encoding="utf-8") as log:
            log.write(f"{place.name}: {run.state.name}: {run.state.message or ''}\n")
    return code
