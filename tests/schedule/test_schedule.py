"""Refreshes that a real Prefect server starts and a real worker runs, as `vlmdata schedule` has them
(`make test-schedule`)."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest
import yaml

from vlmdata.dataset import Dataset
from vlmdata.lock import lock

PREFECT = [sys.executable, "-m", "prefect"]


@contextmanager
def process(*command, cwd, env, log):
    with log.open("wb") as told:
        started = subprocess.Popen(command, cwd=cwd, env=env, stdout=told, stderr=told)
        try:
            yield started
        finally:
            started.terminate()
            try:
                started.wait(20)
            except subprocess.TimeoutExpired:
                started.kill()
                started.wait()


def wait_for(what, seconds=300):  # starting a process may take a minute on a busy machine
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := what():
            return found
        time.sleep(0.5)
    raise AssertionError("it did not come")


def add(folder, number, caption):
    small = np.random.default_rng(number).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / f"photos/{number}.jpg"), cv2.resize(small, (160, 120)))
    (folder / f"photos/{number}.txt").write_text(caption)


class Prefect:
    """The server's API."""

    def __init__(self, url):
        self.api = httpx.Client(base_url=url, timeout=30)

    def runs(self, state=None):
        found = self.api.post("/flow_runs/filter", json={"sort": "EXPECTED_START_TIME_ASC"}).json()
        return [run for run in found if state is None or run["state_type"] == state]

    def start(self, deployment):
        return self.api.post(f"/deployments/{deployment['id']}/create_flow_run", json={}).json()

    def ended(self, run):
        """The run as it is, once it has come to an end."""
        now = self.api.get(f"/flow_runs/{run['id']}").json()
        return now if now["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

    def tasks(self, run):
        wanted = {"flow_runs": {"id": {"any_": [run["id"]]}}}
        return {task["name"].rsplit("-", 1)[0]: task for task in self.api.post("/task_runs/filter", json=wanted).json()}

    def artifacts(self):
        return self.api.post("/artifacts/filter", json={}).json()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """(folder with a recipe and a published snapshot, environment, Prefect's API)."""
    home = tmp_path_factory.mktemp("prefect")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/api"
    environment = {
        **os.environ,
        "PREFECT_HOME": str(home),
        "PREFECT_API_URL": url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_SERVICES_SCHEDULER_LOOP_SECONDS": "2",
        "PREFECT_WORKER_QUERY_SECONDS": "1",
        "PREFECT_SERVER_API_PORT": str(port),
    }
    command = [*PREFECT, "server", "start", "--host", "127.0.0.1", "--port", str(port)]
    with process(*command, cwd=home, env=environment, log=home / "server.log"):
        prefect = Prefect(url)

        def up():
            try:
                return prefect.api.get("/health").status_code == 200
            except httpx.TransportError:
                return False

        wait_for(up)
        yield environment, prefect


def vlmdata(folder, environment, *arguments):
    command = [sys.executable, "-m", "vlmdata.cli", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


def test_a_schedule_refreshes_retries_is_refused_by_the_lock_and_leaves_what_is_in_force(server, tmp_path):
    environment, prefect = server
    folder = tmp_path / "a folder"
    (folder / "photos").mkdir(parents=True)
    for number in range(6):
        add(folder, number, f"a photo of the secret thing number {number}")
    recipe = {
        "dataset": "runs/it",
        "sources": [{"kind": "folder", "name": "photos", "path": "photos"}],
        "signals": ["text"],
        "select": {"rules": {"words": "words >= 3"}},
        "parts": {"rows": 10},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    dataset = Dataset(str(folder / "runs/it"))
    made = vlmdata(folder, environment, "schedule", "recipe.yaml", "--cron", "* * * * *")
    assert made.returncode == 0, made.stderr
    assert made.stdout == "refresh/runs-it\n"
    deployment = prefect.api.get("/deployments/name/refresh/runs-it").json()
    assert deployment["parameters"] == {"recipe": str(folder / "recipe.yaml")}
    worker = [*PREFECT, "worker", "start", "--pool", "vlmdata"]
    with process(*worker, cwd=tmp_path, env=environment, log=tmp_path / "worker.log"):
        # the scheduled run finds no snapshot and publishes the first
        assert not dataset.exists("latest.json")
        begun = wait_for(lambda: prefect.runs("RUNNING"))
        change = ("schedule", "recipe.yaml", "--cron", "0 3 1 1 *", "--timezone", "Asia/Tokyo")
        wait_for(lambda: vlmdata(folder, environment, *change).returncode == 0)  # a busy server may say 503 at first
        assert wait_for(lambda: prefect.ended(begun[0]))["state_type"] == "COMPLETED"
        assert begun[0]["auto_scheduled"]
        assert dataset.latest()["number"] == 1
        wait_for(lambda: not prefect.runs("RUNNING") and not prefect.runs("PENDING"))
        (schedule,) = prefect.api.get("/deployments/name/refresh/runs-it").json()["schedules"]
        assert (schedule["schedule"]["cron"], schedule["schedule"]["timezone"]) == ("0 3 1 1 *", "Asia/Tokyo")

        # a task that fails for the machine's sake is tried again, and the run ends well
        (table,) = dataset.tables_named("text")
        in_the_way = folder / f"runs/it/tables/text/{table.key}/000002-0000000.parquet"
        in_the_way.mkdir()
        add(folder, 10, "a new photo of the secret thing")
        run = prefect.start(deployment)
        wait_for(lambda: _measuring(prefect, run)["state_name"] == "AwaitingRetry")
        assert dataset.latest()["number"] == 1
        in_the_way.rmdir()
        assert wait_for(lambda: prefect.ended(run))["state_type"] == "COMPLETED"
        assert _measuring(prefect, run)["run_count"] == 2
        assert dataset.latest()["number"] == 2

        # while another holds the dataset a run is refused, and nothing changes
        add(folder, 11, "one more photo of the secret thing")
        with lock(dataset, "the test"):
            other = prefect.start(deployment)
            refused = wait_for(lambda: prefect.ended(other))
        assert refused["state_type"] == "FAILED"
        assert "the test (process" in refused["state"]["message"]
        assert "is working on this dataset" in refused["state"]["message"]
        assert dataset.latest()["number"] == 2
        if shots := os.environ.get("VLMDATA_TEST_SCREENSHOTS"):
            _look(prefect, Path(shots))
    kinds = {artifact["key"]: artifact["type"] for artifact in prefect.artifacts() if artifact["key"]}
    assert kinds == {"progress": "progress", "funnel": "table", "report": "markdown"}
    text = json.dumps(prefect.artifacts()) + json.dumps(prefect.runs())
    assert "secret thing" not in text
    assert "photos:/" not in text


def _measuring(prefect, run):
    """The run's task `signals`, if it has come to that."""
    return prefect.tasks(run).get("signals", {"state_name": None, "run_count": 0})


def _look(prefect, folder):
    """Screenshots of Prefect's pages, to look at."""
    folder.mkdir(parents=True, exist_ok=True)
    base = str(prefect.api.base_url).removesuffix("/api/")
    run = prefect.runs("COMPLETED")[-1]
    for name, page in (("runs", "/runs"), ("run", f"/runs/flow-run/{run['id']}"), ("artifacts", "/artifacts"),
                       ("deployments", "/deployments")):  # fmt: skip
        subprocess.run(
            [shutil.which("chromium"), "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000",
             "--virtual-time-budget=20000", f"--screenshot={folder / f'{name}.png'}", base + page],
            check=False, capture_output=True, timeout=120,
        )  # fmt: skip
