"""A run whose recipe has a command: interrupted, then failing, through the command line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from conftest import here, make_photos, prefect_server, write_recipe

from vlmdata import catalog
from vlmdata.dataset import Dataset

CODE = """
import os, sys, time
if os.environ['VLMDATA_RESUME'] == '0':
    open(sys.argv[1] + '/pid', 'w').write(str(os.getpid()))
    time.sleep(300)
print('not enough', 'memory')
sys.exit(5)
"""


def test_an_interrupted_run_ends_its_command_and_a_failing_one_fails_the_run(tmp_path):
    make_photos(tmp_path / "photos")
    job = {"kind": "command", "name": "other", "run": ["{python}", "-c", CODE, "{out}"]}
    shards = {"samples": 8, "splits": {"train": 0.7, "test": 0.3}}
    recipe = write_recipe(tmp_path, signals=["text"], dedup=[], select={}, shards=shards, jobs=[job])
    code = (
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); from vlmdata.cli import main; main()"
    )
    environment = {**os.environ, "PREFECT_API_URL": prefect_server()}
    with (tmp_path / "log").open("wb") as log:
        command = [sys.executable, "-c", code, "run", str(recipe)]
        run = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=log)
    try:
        end = time.monotonic() + 500
        while (
            not (pids := [int(path.read_text() or 0) for path in tmp_path.glob("runs/it/jobs/000001/*/pid")])
            or not pids[0]
        ):
            assert run.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < end
            time.sleep(0.1)
        run.send_signal(signal.SIGINT)
        assert run.wait(120) == 130, (tmp_path / "log").read_text()
    finally:
        run.kill()
    status = Path(f"/proc/{pids[0]}/stat")
    assert not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"

    again = here(tmp_path, "run", str(recipe))
    assert again.returncode == 3, again.stderr
    first, last = again.stderr.strip().splitlines()[-2:]
    assert first.startswith("error: job 'other' failed with exit code 5; its log is ")
    assert last == "  not enough memory"
    found = catalog.connect(Dataset(str(tmp_path / "runs/it")))
    query = "select state, exit_code from jobs where kind = 'command' order by started_at, seconds nulls first"
    states = catalog.query(found, query).fetchall()
    assert states == [("running", None), ("failed", 130), ("running", None), ("failed", 5)]
    assert (tmp_path / "runs/it/snapshots/000001/report.html").exists()
