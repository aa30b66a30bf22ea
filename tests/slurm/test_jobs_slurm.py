"""Jobs on a real Slurm: slurmctld and slurmd run here for the time of the test (`make test-slurm`)."""

import os
import re
import signal
import subprocess
import sys
import threading
import time

import pytest
from daemons import cluster
from made_dataset import pair, picture, publish
from pydantic import TypeAdapter

from vlmdata import catalog
from vlmdata.errors import JobError, MachineError
from vlmdata.jobs import Attempt, Ended, run_job
from vlmdata.jobs import slurm as place
from vlmdata.recipe import Job

CHANGES = {
    "signals": ["text"], "dedup": [], "select": {}, "jobs": [],
    "shards": {"samples": 6, "splits": {"train": 0.7, "test": 0.3}},
}  # fmt: skip
# Says when it starts and ends, measures something at its start, and ends when it finds a file.
WAITS = """
import json, os, sys, time
print('begun', os.environ['SLURM_JOB_ID'])
json.dump({'acc': 0.5}, open(sys.argv[1] + '/metrics.json', 'w'))
while not os.path.exists(sys.argv[1] + '/go'):
    time.sleep(0.2)
print('gone')
"""


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
    task = python("cancelled", WAITS)
    attempt = Attempt(task, dataset, manifest)
    found = []

    def wait_for_it():
        try:
            run_job(task, dataset, manifest)
        except JobError as error:
            found.append(error)

    thread = threading.Thread(target=wait_for_it)
    thread.start()
    job_id = begun(attempt)
    subprocess.run(["scancel", job_id], check=True)
    thread.join(90)
    assert "ended as CANCELLED" in str(found[0])
    assert ended(dataset, "cancelled") == [("failed", 143)]


def test_a_killed_run_finds_its_job_in_the_queue_with_what_it_has_measured(published):
    dataset, manifest = published
    task = python("found", WAITS)
    attempt = Attempt(task, dataset, manifest)
    run = driver(dataset, task)
    first = begun(attempt)
    run.kill()
    run.wait()
    assert place._state(first) == "RUNNING"
    threading.Timer(4, (attempt.folder / "go").touch).start()
    assert run_job(task, dataset, manifest) == {"acc": 0.5}
    assert starts(attempt) == [first], "it was waited for, not submitted again"
    assert ended(dataset, "found") == [("done", 0)]


@pytest.mark.parametrize("forgotten", [False, True])
def test_a_job_that_ended_after_its_run_was_killed_is_done(published, monkeypatch, forgotten):
    dataset, manifest = published
    task = python(f"ended{forgotten:d}", WAITS)
    attempt = Attempt(task, dataset, manifest)
    run = driver(dataset, task)
    first = begun(attempt)
    run.kill()
    run.wait()
    (attempt.folder / "go").touch()
    until(lambda: place._state(first) == "COMPLETED")
    if forgotten:  # as after MinJobAge
        monkeypatch.setattr(place, "_squeue", lambda *options: [])
    assert run_job(task, dataset, manifest) == {"acc": 0.5}
    assert starts(attempt) == [first]
    assert ended(dataset, task.name) == [("done", 0)]


def test_a_job_that_failed_after_its_run_was_killed_is_a_failed_one_and_the_next_run_starts_it_anew(published):
    dataset, manifest = published
    task = python("failed", WAITS + "sys.exit(7 if os.environ['VLMDATA_RESUME'] == '0' else 0)")
    attempt = Attempt(task, dataset, manifest)
    run = driver(dataset, task)
    first = begun(attempt)
    run.kill()
    run.wait()
    (attempt.folder / "go").touch()
    until(lambda: place._state(first) == "FAILED")
    with pytest.raises(Ended, match="exit code 7"):
        run_job(task, dataset, manifest)
    assert starts(attempt) == [first]
    run_job(task, dataset, manifest)
    assert len(starts(attempt)) == 2
    assert ended(dataset, "failed") == [("failed", 7), ("done", 0)]


def test_a_run_that_is_killed_while_it_submits_has_submitted_once(published, tmp_path, monkeypatch):
    dataset, manifest = published
    task = python("once", WAITS)
    attempt = Attempt(task, dataset, manifest)
    (tmp_path / "sbatch").write_text('#!/bin/sh\n/usr/bin/sbatch "$@"\nkill -9 $PPID\n')
    (tmp_path / "sbatch").chmod(0o755)
    with monkeypatch.context() as patch:
        patch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
        assert driver(dataset, task).wait(60) == -9
    threading.Timer(6, (attempt.folder / "go").touch).start()
    assert run_job(task, dataset, manifest) == {"acc": 0.5}
    assert len(starts(attempt)) == 1
    assert len(list((attempt.folder / "slurm").glob("*_submission.sh"))) <= 1


@pytest.mark.parametrize("sign", [signal.SIGINT, signal.SIGTERM])
def test_interrupting_the_run_cancels_its_job_and_the_next_waits_until_that_has_ended(published, sign):
    dataset, manifest = published
    slow = "import signal, time\nsignal.signal(signal.SIGTERM, lambda *_: (time.sleep(3), print('gone'), exit(1)))\n"
    task = python(f"interrupted{sign:d}", slow + WAITS)
    attempt = Attempt(task, dataset, manifest)
    run = driver(dataset, task)
    first = begun(attempt)
    run.send_signal(sign)
    run.wait(60)
    (attempt.folder / "go").touch()
    assert run_job(task, dataset, manifest) == {"acc": 0.5}
    assert place._state(first) == "CANCELLED"
    said = [line.split()[0] for line in attempt.log.read_text().splitlines() if line.startswith(("begun", "gone"))]
    assert said == ["begun", "gone", "begun", "gone"]


def test_a_controller_that_does_not_answer_leaves_the_job_in_the_queue(published, monkeypatch):
    dataset, manifest = published
    task = python("silent", WAITS)
    attempt = Attempt(task, dataset, manifest)

    def silence(job_id):
        begun(attempt)
        raise MachineError("squeue: no word")

    with monkeypatch.context() as patch:
        patch.setattr(place, "PATIENCE_SECONDS", 0)
        patch.setattr(place, "_state", silence)
        with pytest.raises(MachineError):
            run_job(task, dataset, manifest)
    (attempt.folder / "go").touch()
    assert run_job(task, dataset, manifest) == {"acc": 0.5}
    assert len(starts(attempt)) == 1


def test_what_sbatch_refuses_is_said(published):
    dataset, manifest = published
    with pytest.raises(JobError, match=r"sbatch refused it: .*invalid partition"):
        run_job(python("nowhere", "pass", on={"kind": "slurm", "partition": "none"}), dataset, manifest)


def driver(dataset, task):
    """A run of its own, which SIGTERM ends as Prefect has it: by an exception."""
    code = (
        "import signal, sys\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))\n"
        "from pydantic import TypeAdapter\n"
        "from vlmdata.dataset import Dataset\n"
        "from vlmdata.jobs import Attempt, perform\n"
        "from vlmdata.recipe import Job\n"
        "dataset = Dataset(sys.argv[1])\n"
        "perform(Attempt(TypeAdapter(Job).validate_json(sys.argv[2]), dataset, dataset.latest()))\n"
    )
    return subprocess.Popen([sys.executable, "-c", code, dataset.root, task.model_dump_json()])


def starts(attempt) -> list[str]:
    """Slurm's numbers of the jobs whose program has begun."""
    return re.findall(r"^begun (\d+)$", attempt.log.read_text(), re.MULTILINE) if attempt.log.exists() else []


def begun(attempt) -> str:
    """Slurm's number of the job, as soon as its program has begun."""
    return until(lambda: starts(attempt))[0]


def until(condition):
    for _ in range(300):
        if found := condition():
            return found
        time.sleep(0.2)
    raise AssertionError("it never came")
