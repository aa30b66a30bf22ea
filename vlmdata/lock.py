"""The lock that lets one run at a time write to a dataset: an owner and a heartbeat in `lock.json`."""

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
        log.info("taking over the lock of a run that is gone (process %s on %s)", left["pid"], left["host"])
        _end_server(left)
    process = psutil.Process()
    content: dict[str, Any] = {
        "owner": new_id(),
        "what": what,
        "pid": process.pid,
        "started": process.create_time(),
        "host": socket.gethostname(),
        "heartbeat": time.time(),
    }
    _claim(dataset, content)
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            content["heartbeat"] = time.time()
            dataset.write_json("lock.json", content)

    thread = threading.Thread(target=beat, name="lock-heartbeat", daemon=True)
    thread.start()
    try:
        dataset.clean_spool()
        yield content
    finally:
        done.set()
        thread.join()
        dataset.remove("lock.json")


def _claim(dataset: Dataset, content: dict[str, Any]) -> None:
    """Write the lock, then look whether it is ours: of two that start at once the later writer wins."""
    dataset.write_json("lock.json", content)
    time.sleep(0.05)
    holder = _read(dataset)
    if holder is None or holder["owner"] != content["owner"]:
        raise RefusedError(f"{dataset.root}: another run took this dataset at the same moment; try again later")


def _read(dataset: Dataset) -> dict[str, Any] | None:
    return dataset.read_json("lock.json") if dataset.exists("lock.json") else None


def _alive(content: dict[str, Any]) -> bool:
    if content["host"] != socket.gethostname():
        return time.time() - content["heartbeat"] < STALE_SECONDS
    try:
        # A process id may have been given away again: the start time tells.
        return abs(psutil.Process(content["pid"]).create_time() - content["started"]) < 1
    except psutil.NoSuchProcess:
        return False


def _end_server(content: dict[str, Any]) -> None:
    """End the Prefect server that a killed run has left behind."""
    server = content.get("server")
    if server is None or content["host"] != socket.gethostname() or server["pid"] == os.getpid():
        return
    try:
        process = psutil.Process(server["pid"])
        if abs(process.create_time() - server["started"]) < 1:
            process.terminate()
            log.info("ended the Prefect server of the run that is gone (process %s)", server["pid"])
    except psutil.NoSuchProcess:
        pass  # it ended with its run


def note_server(dataset: Dataset, content: dict[str, Any], pid: int) -> None:
    """Write the Prefect server's process into the lock, so that a later run can end it after a kill."""
    content["server"] = {"pid": pid, "started": psutil.Process(pid).create_time()}
    dataset.write_json("lock.json", content)
