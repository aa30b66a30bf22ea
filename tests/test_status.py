"""What another process is told of a run."""

import json
import logging
import os
import socket
import subprocess
import sys
import time
from datetime import datetime

import psutil
import pytest
from made_snapshots import publish

from vlmdata import status, tags
from vlmdata.dataset import Dataset
from vlmdata.errors import DataError, RefusedError
from vlmdata.lock import lock

progress = logging.getLogger("vlmdata.progress")


@pytest.fixture
def dataset(tmp_path):
    return Dataset(str(tmp_path / "it"))


def ask(dataset):
    """The command line in a process of its own."""
    command = [sys.executable, "-m", "vlmdata.cli", "status", dataset.root, "--format", "json"]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_another_process_sees_what_runs_and_how_far_it_is(dataset):
    with lock(dataset, "vlmdata run") as held, status.recorded(dataset, held):
        progress.info("download: begins", extra={"stage": "download", "done": 0, "total": 8})
        time.sleep(1.1)
        progress.info("download: 2 of 8", extra={"stage": "download", "done": 2, "total": 8})
        found = ask(dataset)
    running = found["running"]
    assert (running["what"], running["pid"], running["host"]) == ("vlmdata run", os.getpid(), socket.gethostname())
    assert (running["stage"], running["done"], running["total"]) == ("download", 2, 8)
    assert running["begun"] <= running["stage_begun"] < running["stage_ends"]
    assert found["last"] is None
    assert found["snapshot"] is None


def test_when_all_will_be_done_is_told_from_the_last_run_that_came_to_its_end(dataset):
    def run(fails=False):
        with lock(dataset, "vlmdata refresh") as held, status.recorded(dataset, held):
            progress.info("download: begins", extra={"stage": "download", "done": 0, "total": 4})
            time.sleep(1.1)
            progress.info("download: 4 of 4", extra={"stage": "download", "done": 4, "total": 4})
            found = status.status(dataset)["running"]
            if fails:
                raise DataError("part 3")
            progress.info("download: begins", extra={"stage": "download", "done": 0, "total": 2})  # another group
            progress.info("shards: begins", extra={"stage": "shards", "done": 0, "total": 4})
            time.sleep(2.5)
            progress.info("shards: 4 of 4", extra={"stage": "shards", "done": 4, "total": 4})
        return found

    assert run()["ends"] is None
    with pytest.raises(DataError):
        run(fails=True)
    found = run()
    before = dataset.read_json("status.json")["before"]
    assert [name for name, _ in before["stages"]] == ["download", "download", "shards"]
    rest = before["seconds"] - before["stages"][0][1]
    assert rest >= 2.5
    took = datetime.fromisoformat(found["ends"]) - datetime.fromisoformat(found["stage_ends"])
    assert abs(took.total_seconds() - rest) <= 1  # both were cut to seconds
    assert any(
        "all will be done about" in line for line in status.lines({"running": found, "last": None, "snapshot": None})
    )


def test_how_the_last_run_ended_is_told_beside_the_snapshot_in_force(dataset):
    publish(dataset, [("a", None), ("b", "words")])
    tags.tag(dataset, "paper")
    with (
        pytest.raises(DataError, match="row 7"),
        lock(dataset, "vlmdata refresh") as held,
        status.recorded(dataset, held),
    ):
        raise DataError("part 3 is corrupt at row 7")
    found = status.status(dataset)
    assert found["running"] is None
    assert (found["last"]["what"], found["last"]["state"]) == ("vlmdata refresh", "failed")
    assert found["last"]["error"] == "part 3 is corrupt at row 7"
    assert (found["snapshot"]["number"], found["snapshot"]["kept"], found["snapshot"]["tags"]) == (1, 1, ["paper"])
    assert "  part 3 is corrupt at row 7" in status.lines(found)
    with pytest.raises(RefusedError), lock(dataset, "vlmdata refresh") as held, status.recorded(dataset, held):
        raise RefusedError("gates.kept_share")
    assert status.status(dataset)["last"]["state"] == "refused"
    with lock(dataset, "vlmdata run") as held, status.recorded(dataset, held):
        pass
    assert status.status(dataset)["last"]["state"] == "done"


def test_a_run_that_was_killed_is_not_running(dataset):
    with lock(dataset, "vlmdata run") as held, status.recorded(dataset, held):
        left, mine = dataset.read_bytes("lock.json"), dataset.read_bytes("status.json")
    gone = {**json.loads(left), "pid": 2**22 - 1, "started": psutil.boot_time()}
    dataset.write_bytes("status.json", mine)
    dataset.write_json("lock.json", gone)
    found = status.status(dataset)
    assert found["running"] is None
    assert found["last"]["state"] == "killed"


def test_a_status_of_a_wrong_shape_is_told(dataset):
    whole = {"owner": "x", "what": "a run", "state": "done", "begun": 1.0}
    wrongs = ([], {}, {**whole, "begun": "today"}, {**whole, "before": {"x": 1}}, {**whole, "stages": [["a", "b"]]})
    for wrong in wrongs:
        dataset.write_json("status.json", wrong)
        with pytest.raises(DataError, match=r"status\.json: not a run's status"):
            status.status(dataset)
