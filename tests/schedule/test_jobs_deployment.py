"""Jobs on a real Prefect deployment: a server, and a worker that serves the flow `train` (`make test-schedule`)."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from uuid import uuid4

import pytest
from conftest import prefect_server
from httpx import ConnectError
from made_dataset import pair, picture, publish
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterIdempotencyKey
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import Cancelling, Completed
from pydantic import TypeAdapter

from vlmdata import catalog
from vlmdata.errors import InputError, JobError, MachineError
from vlmdata.flows import train
from vlmdata.jobs import Attempt, Ended, job_key, run_job
from vlmdata.jobs.command import arguments
from vlmdata.recipe import Job

CHANGES = {"signals": ["text"], "dedup": [], "select": {}, "jobs": [], "shards": {"samples": 3}}
# Says when it starts, measures something, and ends when it finds a file.
WAITS = """
import json, os, sys, time
print('begun', os.getpid())
json.dump({'acc': 0.5}, open(sys.argv[1] + '/metrics.json', 'w'))
while not os.path.exists(sys.argv[1] + '/go'):
    time.sleep(0.1)
"""
WORKER = """
import sys
from vlmdata.flows.train import train
train.serve(name="gpu", limit=1, print_starting_message=False)
"""
RUN = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # by an exception, as Prefect does it
from pydantic import TypeAdapter
from vlmdata.dataset import Dataset
from vlmdata.flows import train
from vlmdata.jobs import run_job
from vlmdata.recipe import Job
train.POLL_SECONDS = 0.2
dataset = Dataset(sys.argv[1])
run_job(TypeAdapter(Job).validate_json(sys.argv[2]), dataset, dataset.latest(), train.deploy)
"""


@pytest.fixture(scope="module")
def server():
    """The server's URL, with a worker that asks it for work every second."""
    url = prefect_server()
    with temporary_settings({PREFECT_API_URL: url}):
        yield url


@pytest.fixture(scope="module")
def worker(server, tmp_path_factory):
    log = tmp_path_factory.mktemp("worker") / "log"
    environment = {**os.environ, "PREFECT_API_URL": server, "PREFECT_RUNNER_POLL_FREQUENCY": "1"}
    with log.open("wb") as out:
        process = subprocess.Popen([sys.executable, "-c", WORKER], env=environment, stdout=out, stderr=out)
    try:
        with get_client(sync_client=True) as client:
            until(lambda: process.poll() is not None or client.read_deployments())
        assert process.poll() is None, log.read_text()
        yield
    finally:
        process.terminate()
        process.wait(60)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    return publish(folder, [pair(f"a house number {n}", picture(n)) for n in range(6)], CHANGES)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(train, "POLL_SECONDS", 0.2)


def python(name, code, deployment="train/gpu"):
    on = {"kind": "deployment", "name": deployment}
    run = ["{python}", "-c", code, "{out}"]
    return TypeAdapter(Job).validate_python({"kind": "command", "name": name, "run": run, "on": on})


def ended(dataset, name):
    query = f"select state, exit_code from jobs where job = '{name}' and seconds is not null order by started_at"
    return catalog.query(catalog.connect(dataset), query).fetchall()


def driver(server, dataset, task):
    command = [sys.executable, "-c", RUN, dataset.root, task.model_dump_json()]
    return subprocess.Popen(command, env={**os.environ, "PREFECT_API_URL": server}, stderr=subprocess.DEVNULL)


def starts(attempt) -> list[str]:
    lines = attempt.log.read_text().splitlines() if attempt.log.exists() else []
    return [line.split()[1] for line in lines if line.startswith("begun ")]


def flow_runs(token):
    with get_client(sync_client=True) as client:
        return client.read_flow_runs(
            flow_run_filter=FlowRunFilter(idempotency_key=FlowRunFilterIdempotencyKey(any_=[token]))
        )


def until(condition, seconds=240):
    end = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found


def test_a_killed_run_joins_the_flow_run_it_had_asked_for_and_a_failure_is_recorded_here(worker, server, published):
    dataset, manifest = published
    task = python("found", WAITS + "print('no GPU'); sys.exit(6 if os.environ['VLMDATA_RESUME'] == '0' else 0)")
    attempt = Attempt(task, dataset, manifest)
    run = driver(server, dataset, task)
    until(lambda: starts(attempt))
    run.kill()
    run.wait()
    (attempt.folder / "go").touch()
    with pytest.raises(Ended, match=r"(?s)failed with exit code 6.*\n  no GPU"):
        run_job(task, dataset, manifest, train.deploy)
    assert len(starts(attempt)) == 1, "it was waited for, not asked for again"
    assert run_job(task, dataset, manifest, train.deploy) == {"acc": 0.5}
    assert len(starts(attempt)) == 2
    assert ended(dataset, "found") == [("failed", 6), ("done", 0)]


def test_interrupting_the_run_cancels_the_flow_run_and_its_program(worker, server, published):
    dataset, manifest = published
    task = python("interrupted", WAITS)
    attempt = Attempt(task, dataset, manifest)
    run = driver(server, dataset, task)
    pid = until(lambda: starts(attempt))[0]
    token = attempt.token()
    run.send_signal(signal.SIGINT)
    run.wait(240)
    assert [run.state.name for run in flow_runs(token)] == ["Cancelled"]
    until(lambda: not Path(f"/proc/{pid}").exists(), 20)
    assert ended(dataset, "interrupted") == [("failed", 130)]
    assert attempt.token() != token, "the next run asks for another"


def test_a_flow_run_that_no_worker_has_taken_is_cancelled_by_sigterm(server, published):
    dataset, manifest = published
    with get_client(sync_client=True) as client:
        client.create_deployment(client.create_flow(train.train), name="nobody")
    task = python("waiting", WAITS, "train/nobody")
    attempt = Attempt(task, dataset, manifest)
    run = driver(server, dataset, task)
    until(lambda: (attempt.folder / "attempt.json").exists())
    token = attempt.token()
    until(lambda: flow_runs(token))
    time.sleep(2)
    run.send_signal(signal.SIGTERM)
    run.wait(240)
    assert [run.state.name for run in flow_runs(token)] == ["Cancelled"]


def test_what_a_killed_run_had_asked_for_and_somebody_cancelled_is_asked_for_anew(server, published):
    dataset, manifest = published
    task = python("anew", WAITS, "train/nobody")
    attempt = Attempt(task, dataset, manifest)
    with get_client(sync_client=True) as client:
        client.create_deployment(client.create_flow(train.train), name="nobody")
        earlier = run_deployment("train/nobody", parameters={}, timeout=0, idempotency_key=attempt.token())
        client.set_flow_run_state(earlier.id, Cancelling())
    token = attempt.token()
    run = driver(server, dataset, task)
    asked = until(lambda: [found for found in flow_runs(attempt.token()) if found.id != earlier.id])
    run.send_signal(signal.SIGTERM)
    run.wait(240)
    assert asked[0].idempotency_key != token
    assert asked[0].parameters["key"] == job_key(task)


def test_a_worker_gets_absolute_paths_and_the_folder_of_the_job_as_it_was_written(published, monkeypatch):
    options = {"objective": "projector", "stage": 2, "conversations": "chat.json"}
    on = {"kind": "deployment", "name": "train/gpu"}
    attempt = Attempt(TypeAdapter(Job).validate_python({"kind": "train", "on": on, **options}), *published)
    monkeypatch.setattr(train, "run_deployment", lambda name, **given: given["parameters"])
    given = train._asked(attempt, "train/gpu")
    assert given["job"]["conversations"] == str(Path("chat.json").absolute())
    there = Attempt(TypeAdapter(Job).validate_python(given["job"]), *published, given["key"])
    assert there.output == attempt.output
    attempt.begin()
    arguments(attempt)
    assert json.loads((attempt.folder / "job.json").read_text())["conversations"] == given["job"]["conversations"]


class Away:
    """Prefect's server, of which each question gets the next answer."""

    def __init__(self, *answers):
        self.answers = list(answers)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def read_flow_run(self, run_id):
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return FlowRun(flow_id=run_id, state=answer)

    def set_flow_run_state(self, run_id, state):
        self.read_flow_run(run_id)


@pytest.mark.parametrize("answers", [[ConnectError("away")], [None, Cancelling()]])
def test_an_interrupt_stays_one_and_what_has_not_ended_is_not_forgotten(published, monkeypatch, answers):
    attempt = Attempt(python("away", WAITS), *published)
    token = attempt.token()
    monkeypatch.setattr(train, "CANCEL_SECONDS", -1)
    monkeypatch.setattr(train, "get_client", lambda **_: Away(KeyboardInterrupt(), *answers))
    with pytest.raises(KeyboardInterrupt):
        train._wait(attempt, uuid4())
    assert attempt.token() == token


def test_a_server_that_is_away_for_a_while_is_asked_again(published, monkeypatch):
    attempt = Attempt(python("patient", WAITS), *published)
    monkeypatch.setattr(train, "get_client", lambda **_: Away(ConnectError("away"), ConnectError("away"), Completed()))
    assert train._wait(attempt, uuid4()).is_completed()
    monkeypatch.setattr(train, "PATIENCE_SECONDS", -1)
    monkeypatch.setattr(train, "get_client", lambda **_: Away(ConnectError("away"), Completed()))
    with pytest.raises(ConnectError):
        train._wait(attempt, uuid4())


def test_a_deployment_that_is_none_and_a_server_that_is_gone_are_told_apart(server, published):
    dataset, manifest = published
    with pytest.raises(JobError, match="no Prefect deployment is called 'train/gpus'") as none:
        run_job(python("none", WAITS, "train/gpus"), dataset, manifest, train.deploy)
    assert isinstance(none.value.__cause__, InputError)
    task = python("gone", WAITS)
    attempt = Attempt(task, dataset, manifest)
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}), pytest.raises(MachineError, match="server"):
        run_job(task, dataset, manifest, train.deploy)
    assert (attempt.folder / "attempt.json").exists(), "the next run finds it"
