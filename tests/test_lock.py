"""One run at a time, and none for ever."""

import json
import os
import socket
import subprocess
import sys
import threading
import time

import pytest

from vlmdata.dataset import Dataset
from vlmdata.errors import RefusedError
from vlmdata.lock import RUN_VARIABLE, end_orphans, lock, run_mark

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
