"""Jobs on a real Slurm: slurmctld and slurmd run here for the time of the test (`make test-slurm`)."""

import json
import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from daemons import cluster
from made_dataset import pair, picture, publish
from pydantic import TypeAdapter

from vlmdata import catalog
from vlmdata.errors import JobError
from vlmdata.jobs import Attempt, Ended, run_job
from vlmdata.jobs import slurm as place
from vlmdata.recipe import Job

CHANGES = {
    "signals": ["text"], "dedup": [], "select": {}, "jobs": [],
    "shards": {"samples": 6, "splits": {"train": 0.7, "test": 0.3}},
}  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def running(tmp_path_factory):
    with cluster(tmp_path_factory.mktemp("slurm")) as environment, pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        patch.setenv("PATH", f"{os.environ['PATH']}:/usr/bin")
        yield


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("a folder") / "with; spaces & signs"
    folder.mkdir()
    return publish(folder, [pair(f"a house number {n}", picture(n)) for n in range(40)], CHANGES)


def job(**options):
    return TypeAdapter(Job).validate_python({"on": "slurm", **options})


def python(name, code, **more):
    return job(kind="command", name=name, run=["{python}", "-c", code, "{out}", "{webdataset}"], **more)


def ended(dataset, name):
    query = f"select state, exit_code from jobs where job = '{name}' and seconds is not null order by started_at"
    return catalog.query(catalog.connect(dataset), query).fetchall()


def test_a_command_runs_on_a_node_with_its_own_variables(published):
    dataset, manifest = published
    code = """
import json, os, sys
assert sys.argv[2].startswith(os.path.dirname(os.path.dirname(os.path.dirname(sys.argv[1])))), sys.argv
print('on a node as', os.environ['SLURM_JOB_ID'], os.environ['COLOUR'])
json.dump({'acc': 0.25}, open(sys.argv[1] + '/metrics.json', 'w'))
"""
    task = python("plain", code, env={"COLOUR": "a 'red'; one"}, on={"kind": "slurm", "partition": "all", "time": 5})
    assert run_job(task, dataset, manifest) == {"acc": 0.25}
    assert ended(dataset, "plain") == [("done", 0)]
    log = Attempt(task, dataset, manifest).log.read_text()
    assert log.splitlines()[-1].startswith("on a node as ")
    assert log.splitlines()[-1].endswith("a 'red'; one")


def test_a_failing_command_brings_its_exit_code_and_last_lines(published):
    dataset, manifest = published
    code = "import sys; [print('line', n) for n in range(50)]; sys.exit(9)"
    with pytest.raises(Ended) as failed:
        run_job(python("fails", code), dataset, manifest)
    assert ended(dataset, "fails") == [("failed", 9)]
    lines = [line.strip() for line in str(failed.value).splitlines()]
    assert "line 49" in lines
    assert "line 30" not in lines
    assert lines[-1].startswith("Slurm's job ")
    assert lines[-1].endswith("ended as FAILED")


def test_a_training_runs_in_two_processes_and_is_recorded(published):
    dataset, manifest = published
    task = job(kind="train", name="two", steps=3, batch=4, workers=0, on={"kind": "slurm", "processes": 2, "cpus": 2})
    metrics = run_job(task, dataset, manifest)
    assert metrics["train/samples"] == manifest["splits"]["train"]
    assert ended(dataset, "two") == [("done", 0)]
    folder = Attempt(task, dataset, manifest).folder
    assert (folder / "model").is_dir()
    assert '"processes": 2' in (folder / "config.json").read_text()


def test_a_cancelled_job_is_a_failed_one(published):
    dataset, manifest = published
    task = python("cancelled", "import time; print('begun'); time.sleep(120)")
    folder = Attempt(task, dataset, manifest).folder
    found = []

    def wait_for_it():
        try:
            run_job(task, dataset, manifest)
        except JobError as error:
            found.append(error)

    thread = threading.Thread(target=wait_for_it)
    thread.start()
    job_id = begun(folder)
    subprocess.run(["scancel", job_id], check=True)
    thread.join(90)
    assert "ended as CANCELLED" in str(found[0])
    assert ended(dataset, "cancelled") == [("failed", 143)]


def test_interrupting_the_run_cancels_its_job_and_a_killed_run_finds_it_again(published, tmp_path):
    dataset, manifest = published
    code = """
import os, sys, time
print('begun')
for _ in range(300):
    time.sleep(0 if os.path.exists(sys.argv[1] + '/go') else 0.2)
"""
    task = python("found", code)
    folder = Attempt(task, dataset, manifest).folder
    run = driver(dataset, task)
    first = begun(folder)
    run.kill()
    run.wait()
    assert place._state(first) == "RUNNING"
    (folder / "go").touch()
    run_job(task, dataset, manifest)
    assert begun(folder) == first, "it was waited for, not submitted again"

    task = python("interrupted", code)
    folder = Attempt(task, dataset, manifest).folder
    run = driver(dataset, task)
    job_id = begun(folder)
    run.send_signal(2)
    run.wait(60)
    for _ in range(100):
        if place._state(job_id) == "CANCELLED":
            break
        time.sleep(0.5)
    assert place._state(job_id) == "CANCELLED"


def test_what_sbatch_refuses_is_said(published):
    dataset, manifest = published
    with pytest.raises(JobError, match=r"sbatch refused it: .*invalid partition"):
        run_job(python("nowhere", "pass", on={"kind": "slurm", "partition": "none"}), dataset, manifest)


def driver(dataset, task):
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "from pydantic import TypeAdapter\n"
        "from vlmdata.dataset import Dataset\n"
        "from vlmdata.jobs import Attempt, perform\n"
        "from vlmdata.recipe import Job\n"
        "dataset = Dataset(sys.argv[1])\n"
        "perform(Attempt(TypeAdapter(Job).validate_json(sys.argv[2]), dataset, dataset.latest()))\n"
    )
    return subprocess.Popen([sys.executable, "-c", code, dataset.root, task.model_dump_json()])


def begun(folder: Path) -> str:
    """Slurm's number of the job whose program has begun."""
    for _ in range(300):
        if (folder / "slurm.json").exists() and "begun" in "".join(p.read_text() for p in folder.glob("log.txt")):
            return json.loads((folder / "slurm.json").read_text())["job_id"]
        time.sleep(0.2)
    raise AssertionError(f"{folder}: nothing has begun")
