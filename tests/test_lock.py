"""One run at a time, and none for ever."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

import vlmdata.lock as locks
from vlmdata.dataset import Dataset
from vlmdata.errors import RefusedError
from vlmdata.lock import RUN_VARIABLE, end_orphans, lock, run_mark
from vlmdata.parts import Table
from vlmdata.pipelines.runner import run_parts
from vlmdata.recipe import Runner

HOLD = """
import sys, time
from vlmdata.dataset import Dataset
from vlmdata.lock import lock
with lock(Dataset(sys.argv[1]), "another run"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def dataset(tmp_path):
    return Dataset(str(tmp_path / "d"))


def test_a_second_run_is_refused_and_a_killed_one_is_not_waited_for(dataset):
    with subprocess.Popen([sys.executable, "-c", HOLD, dataset.root], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(RefusedError, match="another run"), lock(dataset, "this run"):
            pass
        other.kill()
        other.wait()
        with lock(dataset, "this run"):
            assert dataset.read_json("lock.json")["what"] == "this run"
    assert not dataset.exists("lock.json")


def test_what_a_killed_run_left_aside_is_removed(dataset):
    with dataset.spool() as folder:
        (folder / "half").write_bytes(b"x")
        with lock(dataset, "this run"):
            assert not folder.exists()


def test_a_lock_of_another_machine_counts_by_its_heartbeat(dataset):
    old = {"owner": "x", "what": "a run", "pid": 1, "started": 0, "host": "elsewhere", "heartbeat": time.time()}
    dataset.write_json("lock.json", old)
    with pytest.raises(RefusedError, match="elsewhere"), lock(dataset, "this run"):
        pass
    dataset.write_bytes("lock.json", json.dumps({**old, "heartbeat": time.time() - 1000}).encode())
    with lock(dataset, "this run"):
        pass


def test_a_clock_that_is_set_neither_frees_a_lock_nor_holds_it_for_ever(dataset, monkeypatch):
    with lock(dataset, "this run"):
        monkeypatch.setattr(locks.psutil.Process, "create_time", lambda self: 0.0)
        with pytest.raises(RefusedError, match="this run"), lock(Dataset(dataset.root), "the next run"):
            pass
    ahead = {
        "owner": "x",
        "what": "a run",
        "pid": 1,
        "started": 0,
        "host": "elsewhere",
        "heartbeat": time.time() + 9000,
    }
    dataset.write_json("lock.json", ahead)
    with lock(dataset, "this run"):
        pass


def take_over(dataset, monkeypatch):
    """What a run on another machine does that finds no heartbeat: it has the lock until the test ends."""
    monkeypatch.setattr(locks, "STALE_SECONDS", 0.0)
    monkeypatch.setattr(locks.socket, "gethostname", lambda: "another machine")
    return lock(Dataset(dataset.url), "the other run")


def hang(path, content):
    raise OSError("the disk does not answer")


def worked_on(number):
    """By what the test has put there: what travels to a worker is pickled, but a module's name is not."""
    return _work(number)  # noqa: F821


@pytest.mark.parametrize("heartbeat", [0.05, 60])
def test_a_run_whose_lock_was_taken_over_records_publishes_and_removes_nothing_more(dataset, monkeypatch, heartbeat):
    monkeypatch.setattr(locks, "HEARTBEAT_SECONDS", heartbeat)
    with lock(dataset, "this run"):
        dataset.write_table(Table("pairs", "before", ()))
        assert run_parts(dataset, "stage", str, [1, 2], Runner()) == ["1", "2"]
        with monkeypatch.context() as hung:
            hung.setattr(dataset, "write_json", hang)
            time.sleep(0.1)
            taken = take_over(dataset, monkeypatch)
            taken.__enter__()
        time.sleep(0.2)  # the heartbeat goes on, and leaves the other's lock as it is
        for work in (
            lambda: dataset.write_table(Table("pairs", "after", ())),
            lambda: dataset.publish({"number": 1}),
            lambda: dataset.remove("tables"),
            lambda: run_parts(dataset, "stage", str, [1], Runner()),
        ):
            with pytest.raises(RefusedError, match=r"the other run .* on another machine"):
                work()
    assert dataset.read_json("lock.json")["what"] == "the other run"
    assert dataset.read_table("pairs", "before")
    assert not dataset.exists("tables/pairs/after")
    assert not dataset.exists("latest.json")
    taken.__exit__(None, None, None)
    assert not dataset.exists("lock.json")


def test_parts_that_wait_when_the_lock_is_lost_are_not_begun(dataset, monkeypatch):
    with lock(dataset, "this run"):
        taken = take_over(dataset, monkeypatch)
        begun = []

        def work(number):
            begun.append(number)
            taken.__enter__()

        monkeypatch.setattr(sys.modules[__name__], "_work", work, raising=False)
        with pytest.raises(RefusedError, match="the other run"):
            run_parts(dataset, "stage", worked_on, [1, 2, 3], Runner(workers=1))
        assert len(begun) == 1
        assert dataset.read_json("lock.json")["what"] == "the other run"
    assert dataset.exists("lock.json")
    taken.__exit__(None, None, None)
    assert not dataset.exists("lock.json")
    dataset.write_table(Table("pairs", "later", ()))  # who holds no lock is not guarded


def test_only_the_server_of_a_run_that_is_gone_is_ended(dataset):
    command = [sys.executable, "-c", "import time; time.sleep(60)", "uvicorn"]
    gone = {**os.environ, RUN_VARIABLE: f"999999999 0.0 {dataset.root}"}
    alive = {**os.environ, RUN_VARIABLE: run_mark(dataset)}
    with subprocess.Popen(command, env=gone) as orphan, subprocess.Popen(command, env=alive) as child:
        time.sleep(0.3)
        end_orphans(dataset)
        assert orphan.wait(timeout=10) != 0
        assert child.poll() is None
        child.kill()


def test_of_many_that_start_at_once_one_gets_a_dead_runs_lock(dataset):
    dead = {
        "owner": "x",
        "what": "a run",
        "pid": 999999999,
        "started": 0.0,
        "host": socket.gethostname(),
        "heartbeat": 0,
    }
    dataset.write_json("lock.json", dead)
    go, got = threading.Barrier(8), []

    def start() -> None:
        go.wait()
        try:
            with lock(dataset, "a starter"):
                got.append(1)
                time.sleep(1)
        except RefusedError:
            pass

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == [1]
