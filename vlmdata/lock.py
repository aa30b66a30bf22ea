"""The lock that lets one run at a time write to a dataset: an owner and a heartbeat in `lock.json`."""

import json
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from vlmdata.dataset import Dataset, unguarded
from vlmdata.errors import DataError, MachineError, RefusedError
from vlmdata.parts import new_id
from vlmdata.storage import is_s3, upload

log = logging.getLogger(__name__)

HEARTBEAT_SECONDS = 10.0
STALE_SECONDS = 120.0
_SETTLED_SECONDS = 1.0
RUN_VARIABLE = "VLMDATA_RUN"


@contextmanager
def lock(dataset: Dataset, what: str) -> Iterator[dict[str, Any]]:
    """Hold the dataset while the block runs; yields the lock's content, to which the holder may add.

    A lock whose process is gone (same machine) or whose heartbeat is older than two minutes (another machine: it was
    suspended, or its disk hung) is taken over. Whoever has lost it so is told by the dataset's `guard`.
    Raises RefusedError when another run holds it.
    """
    process = psutil.Process()
    content: dict[str, Any] = {
        "owner": new_id(),
        "what": what,
        "pid": process.pid,
        "started": _started(process),
        "host": socket.gethostname(),
        "heartbeat": time.time(),
    }
    _claim(dataset, content)
    dataset.clean_spool()
    dataset.guard = _Guard(dataset.absolute, content["owner"])
    done = threading.Event()

    def beat() -> None:
        while not done.wait(HEARTBEAT_SECONDS):
            content["heartbeat"] = time.time()
            try:
                dataset.guard()
                dataset.write_json("lock.json", content)
            except RefusedError as error:
                log.error("%s", error)
                return
            except (OSError, MachineError) as error:  # the run itself will say what is wrong with the disk
                log.warning("the lock's heartbeat could not be written: %s", error)

    thread = threading.Thread(target=beat, name="lock-heartbeat", daemon=True)
    thread.start()
    try:
        yield content
    finally:
        done.set()
        thread.join()
        dataset.guard = unguarded
        if _ours(dataset, content):
            dataset.remove("lock.json")


def holder(dataset: Dataset, alive: bool = False) -> dict[str, Any] | None:
    """What the lock says, or None where nobody holds it. alive: None, too, where its holder is gone."""
    content = _read(dataset)
    return None if content is None or (alive and not _alive(content)) else content


@dataclass(frozen=True)
class _Guard:
    """Raises RefusedError when the lock is no longer the owner's; workers in other processes ask it too."""

    dataset: str
    owner: str

    def __call__(self) -> None:
        dataset = Dataset(self.dataset)
        holder = _read(dataset)
        if holder is None:
            raise RefusedError(f"{dataset.address('')}: this run's lock is gone, so it stops; start it again to go on")
        if holder["owner"] != self.owner:
            raise RefusedError(
                f"{dataset.address('')}: {holder['what']} (process {holder['pid']} on {holder['host']}) has taken over "
                f"this run's lock, since its heartbeat had stopped for {STALE_SECONDS:.0f} s; this run stops"
            )


def _claim(dataset: Dataset, content: dict[str, Any]) -> None:
    """Write the lock so that of several runs that start at once only one gets it."""
    left = _read(dataset)
    if left is not None:
        if _alive(left):
            raise _refused(dataset, left)
        end_orphans(dataset)
        log.info("taking over the lock of a run that is gone (process %s on %s)", left["pid"], left["host"])
    if not dataset.local:
        _claim_remote(dataset, content, left)
        return
    path = dataset.path("lock.json")
    try:
        with dataset.spool() as folder:
            mine, theirs = folder / "lock.json", folder / "old.json"
            mine.write_text(json.dumps(content), "utf-8")
            if left is not None:
                os.rename(path, theirs)
                moved = json.loads(theirs.read_text("utf-8"))
                if moved["owner"] != left["owner"]:  # another run was faster: give its lock back
                    os.link(theirs, path)
                    raise _refused(dataset, moved)
            # A hard link fails where the name exists: the one atomic "create, with this content" of a file system.
            os.link(mine, path)
    except (FileExistsError, FileNotFoundError) as error:  # another run was faster, and may have cleaned the spool
        raise _refused(dataset, _read(dataset) or content) from error


def _claim_remote(dataset: Dataset, content: dict[str, Any], left: dict[str, Any] | None) -> None:
    """An object store makes an object only where there is none, and S3 replaces only the one that was seen: of several
    runs one gets the lock. Where a store heeds no such condition, the later writer wins and the earlier one sees it.
    """
    path = dataset.path("lock.json")
    condition: dict[str, str] = {} if left else {"mode": "create"}
    try:
        if left and is_s3(dataset.fs):
            with dataset.reaching("lock.json"):
                condition["IfMatch"] = dataset.fs.info(path)["ETag"]
            if _read(dataset) != left:
                raise FileExistsError(path)
        with dataset.spool() as folder, dataset.reaching("lock.json"):
            (folder / "lock.json").write_text(json.dumps(content), "utf-8")
            upload(dataset.fs, str(folder / "lock.json"), path, **condition)
        time.sleep(_SETTLED_SECONDS)
    except (FileExistsError, FileNotFoundError, MachineError) as error:
        # A condition that does not hold comes as one of these, and for our own lock too, if the answer was lost.
        holder = _read(dataset)
        if isinstance(error, MachineError) and holder in (None, left):
            raise
        if holder is None or holder["owner"] != content["owner"]:
            raise _refused(dataset, holder or content) from error
    if not _ours(dataset, content):
        raise _refused(dataset, _read(dataset) or content)


def _refused(dataset: Dataset, holder: dict[str, Any]) -> RefusedError:
    return RefusedError(
        f"{dataset.address('')}: {holder['what']} (process {holder['pid']} on {holder['host']}) is working on this "
        "dataset; wait for it, or end it"
    )


def _ours(dataset: Dataset, content: dict[str, Any]) -> bool:
    holder = _read(dataset)
    return holder is not None and holder["owner"] == content["owner"]


def _read(dataset: Dataset) -> dict[str, Any] | None:
    try:
        return dataset.read_json("lock.json")
    except FileNotFoundError:
        return None
    except DataError as error:
        where = dataset.address("lock.json")
        raise RefusedError(f"{where} is damaged: remove it when no run is at work here") from error


def _alive(content: dict[str, Any]) -> bool:
    if content["host"] != socket.gethostname():
        return abs(time.time() - content["heartbeat"]) < STALE_SECONDS  # a clock ahead must not hold it for ever
    return _runs(content["pid"], content["started"])


def end_orphans(dataset: Dataset) -> None:
    """End the Prefect server that a killed run of this dataset has left behind: it knows its run by `RUN_VARIABLE`."""
    for process in psutil.process_iter():
        try:
            mark = process.environ().get(RUN_VARIABLE, "")
            pid, _, rest = mark.partition(" ")
            started, _, root = rest.partition(" ")
            if root == dataset.root and not _runs(int(pid), started) and "uvicorn" in process.cmdline():
                process.terminate()
                log.info("ended the Prefect server of a run that is gone (process %d)", process.pid)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue  # it ended meanwhile, or is somebody else's


def run_mark(dataset: Dataset) -> str:
    """What a run puts into RUN_VARIABLE, so that its children can be told from others after it is gone."""
    process = psutil.Process()
    return f"{process.pid} {_started(process)} {dataset.root}"


def _started(process: psutil.Process) -> str:
    """What no other process of the same id has: on Linux the boot and the ticks since, which do not move when the clock
    is set; elsewhere the time of its start."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text("ascii").strip()
        fields = Path(f"/proc/{process.pid}/stat").read_text("utf-8", "replace").rpartition(")")[2].split()
        return f"{boot}/{fields[19]}"
    except (OSError, IndexError):
        return str(process.create_time())


def _runs(pid: int, started: str | float) -> bool:
    try:
        # A process id may have been given away again: its start tells.
        process = psutil.Process(pid)
        by_ticks = "/" in str(started)  # otherwise of another system, or of an older version
        same = _started(process) == started if by_ticks else abs(process.create_time() - float(started)) < 1
        return same and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
