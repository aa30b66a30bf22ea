"""The lock that lets one run at a time write to a dataset: an owner and a heartbeat in `lock.json`."""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psutil

from vlmdata.dataset import Dataset, new_id
from vlmdata.errors import RefusedError

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 120.0
RUN_VARIABLE = "VLMDATA_RUN"


@contextmanager
def lock(dataset: Dataset, what: str) -> Iterator[dict[str, Any]]:
    """Hold the dataset while the block runs; yields the lock's content, to which the holder may add.

    A lock whose process is gone (same machine) or whose heartbeat is older than two minutes (another machine) is
    taken over. Raises RefusedError when another run holds it.
    """
    left = _read(dataset)
    if left is not None and _alive(left):
        raise RefusedError(
            f"{dataset.root}: {left['what']} (process {left['pid']} on {left['host']}) is working on this dataset; "
            "wait for it, or end it"
        )
    if left is not None:
        end_orphans(dataset)
        log.info("taking over the lock of a run that is gone (process %s on %s)", left["pid"], left["host"])
    process = psutil.Process()
    content: dict[str, Any] = {
        "owner": new_id(),
        "what": what,
        "pid": process.pid,
        "started": process.create_time(),
        "host": socket.gethostname(),
        "heartbeat": time.time(),
    }
    if left is not None or not dataset.exists("lock.json"):
        dataset.clean_spool()
    _claim(dataset, content)
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            content["heartbeat"] = time.time()
            try:
                dataset.write_json("lock.json", content)
            except OSError as error:  # the run itself will say what is wrong with the disk
                log.warning("the lock's heartbeat could not be written: %s", error)

    thread = threading.Thread(target=beat, name="lock-heartbeat", daemon=True)
    thread.start()
    try:
        yield content
    finally:
        done.set()
        thread.join()
        dataset.remove("lock.json")


def _claim(dataset: Dataset, content: dict[str, Any]) -> None:
    """Write the lock so that of two runs that start at once only one gets it."""
    taken = RefusedError(f"{dataset.root}: another run took this dataset at the same moment; try again later")
    if dataset.local:
        # A hard link fails where the name exists: the one atomic "create, with this content" of a file system.
        dataset.remove("lock.json")
        with dataset.spool() as folder:
            aside = folder / "lock.json"
            aside.write_text(json.dumps(content), "utf-8")
            try:
                os.link(aside, dataset.path("lock.json"))
            except FileExistsError as error:
                raise taken from error
        return
    dataset.write_json("lock.json", content)
    time.sleep(1.0)  # the later writer wins; the earlier one sees it here
    holder = _read(dataset)
    if holder is None or holder["owner"] != content["owner"]:
        raise taken


def _read(dataset: Dataset) -> dict[str, Any] | None:
    return dataset.read_json("lock.json") if dataset.exists("lock.json") else None


def _alive(content: dict[str, Any]) -> bool:
    if content["host"] != socket.gethostname():
        return time.time() - content["heartbeat"] < STALE_SECONDS
    return _runs(content["pid"], content["started"])


def end_orphans(dataset: Dataset) -> None:
    """End the Prefect server that a killed run of this dataset has left behind: it knows its run by `RUN_VARIABLE`."""
    for process in psutil.process_iter():
        try:
            mark = process.environ().get(RUN_VARIABLE, "")
            pid, _, rest = mark.partition(" ")
            started, _, root = rest.partition(" ")
            if root == dataset.root and not _runs(int(pid), float(started)) and "uvicorn" in process.cmdline():
                process.terminate()
                log.info("ended the Prefect server of a run that is gone (process %d)", process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it ended meanwhile, or is somebody else's


def run_mark(dataset: Dataset) -> str:
    """What a run puts into RUN_VARIABLE, so that its children can be told from others after it is gone."""
    process = psutil.Process()
    return f"{process.pid} {process.create_time()} {dataset.root}"


def _runs(pid: int, started: float) -> bool:
    try:
        # A process id may have been given away again: the start time tells.
        return abs(psutil.Process(pid).create_time() - started) < 1
    except psutil.NoSuchProcess:
        return False
