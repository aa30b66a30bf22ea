"""The deployment that runs `refresh` on a schedule: Prefect's server starts it, a worker does it."""

import os
from pathlib import Path
from typing import Any

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import DeploymentScheduleCreate, WorkPoolCreate
from prefect.client.schemas.schedules import CronSchedule
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import PREFECT_API_URL
from prefect.utilities.callables import parameter_schema
from pydantic import ValidationError

from vlmdata.errors import InputError, MachineError
from vlmdata.flows.refresh import refresh

ENTRYPOINT = "vlmdata.flows.refresh.refresh"


def deploy(recipe: Path, cron: str, timezone: str, pool: str, name: str) -> str:
    """Make or change the deployment `refresh/<name>` on the server at PREFECT_API_URL, and its work pool (of processes)
    where there is none; returns the deployment's full name.

    It knows the recipe by its path alone, and runs in the folder in which this is called, whose relative paths the
    recipe means. Raises InputError for a cron line that is none and without a server, MachineError where it does not
    answer.
    """
    url = PREFECT_API_URL.value()
    if not url:
        raise InputError(
            "no Prefect server is named: start one by `prefect server start`, then "
            "`export PREFECT_API_URL=http://127.0.0.1:4200/api`"
        )
    try:
        schedule: Any = CronSchedule(cron=cron, timezone=timezone)
    except ValidationError as error:
        raise InputError(f"--cron {cron!r}: {error.errors()[0]['msg'].removeprefix('Value error, ')}") from error
    try:
        with get_client(sync_client=True) as client:
            try:
                client.read_work_pool(pool)
            except ObjectNotFound:
                client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
            # Without a step that only changes the folder Prefect would copy all that is in it before each run.
            pull = {"prefect.deployments.steps.set_working_directory": {"directory": os.getcwd()}}
            client.create_deployment(  # or changes the one of this name
                flow_id=client.create_flow(refresh),
                name=name,
                entrypoint=ENTRYPOINT,
                description="What is new in a recipe's sources, as the next snapshot",
                parameters={"recipe": str(recipe.resolve())},
                parameter_openapi_schema=parameter_schema(refresh).model_dump_for_openapi(),
                schedules=[DeploymentScheduleCreate(schedule=schedule, active=True)],
                work_pool_name=pool,
                job_variables={"working_dir": os.getcwd()},
                pull_steps=[pull],
            )
    except httpx.TransportError as error:
        raise MachineError(f"no Prefect server answers at {url}: {error}") from error
    except PrefectHTTPStatusError as error:
        if error.response.status_code >= 500:
            raise MachineError(f"the Prefect server at {url} is overloaded or broken: {error}") from error
        raise InputError(f"the Prefect server at {url} refuses it: {error.response.text[:300]}") from error
    return f"{refresh.name}/{name}"
