"""What is running on a dataset: the run writes `status.json`, and any other process reads it."""

import datetime
import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from vlmdata.dataset import Dataset
from vlmdata.errors import DataError, MachineError, RefusedError, VlmdataError
from vlmdata.lock import holder

STATUS = "status.json"
_SECONDS, _SECONDS_AWAY = 1.0, 10.0  # between two writings, on a local disk and elsewhere


class _Recorder(logging.Handler):
    """Takes the records of `vlmdata.progress` into the file, now and then and at each stage's begin."""

    def __init__(self, dataset: Dataset, content: dict[str, Any]) -> None:
        super().__init__()
        self.dataset, self.content = dataset, content
        self.written = 0.0
        self.turn = threading.Lock()

    def emit(self, record: logging.LogRecord) -> None:
        stage, done, total = (getattr(record, name, None) for name in ("stage", "done", "total"))
        if stage is None:
            return
        with self.turn:
            now, stages = time.time(), self.content["stages"]
            # one of the same name may follow, as of another group of parts
            begins = stage != self.content.get("stage") or (done or 0) < (self.content.get("done") or 0)
            if begins:
                self.content |= {"stage": stage, "stage_started": now}
                stages.append([stage, 0.0])
            self.content |= {"done": done, "total": total, "told": now}
            stages[-1][1] = now - self.content["begun"]
            pause = _SECONDS if self.dataset.local else _SECONDS_AWAY
            if begins or time.monotonic() - self.written >= pause:
                self.written = time.monotonic()
                self.write()

    def write(self) -> None:
        try:
            self.dataset.write_json(STATUS, self.content)
        except (OSError, MachineError) as error:  # the run itself will say what is wrong with the disk
            logging.getLogger(__name__).debug("%s could not be written: %s", STATUS, error)


@contextmanager
def recorded(dataset: Dataset, held: dict[str, Any]) -> Iterator[None]:
    """Record how the block goes on and how it ends. held: the content of the lock that it holds."""
    content = {name: held[name] for name in ("owner", "what", "pid", "host")} | {
        "begun": time.time(),
        "state": "running",
        "stage": None,
        "stages": [],
        "before": _before(dataset, held["what"]),
    }
    recorder = _Recorder(dataset, content)
    logger = logging.getLogger("vlmdata.progress")
    level = logger.level
    logger.addHandler(recorder)
    logger.setLevel(logging.INFO)
    recorder.write()
    try:
        yield
        content["state"] = "done"
    except RefusedError as error:
        content |= {"state": "refused", "error": str(error)}
        raise
    except (Exception, KeyboardInterrupt) as error:
        said = str(error) if isinstance(error, VlmdataError) else f"{type(error).__name__}: {error}"
        content |= {"state": "failed", "error": said}
        raise
    finally:
        logger.removeHandler(recorder)
        logger.setLevel(level)
        content["ended"] = time.time()
        now = holder(dataset)
        if now is not None and now["owner"] == content["owner"]:  # else another run's state stands there
            recorder.write()


def _before(dataset: Dataset, what: str) -> dict[str, Any] | None:
    """Of the last such run that came to its end how long it took, and its stages in order, each with when it was done;
    in seconds from the begin."""
    try:
        last = _read(dataset)
    except DataError:  # which this run overwrites
        return None
    if last is None or last["what"] != what:
        return None
    if last["state"] != "done" or not last.get("stages") or last.get("ended") is None:
        return last.get("before")
    return {"seconds": last["ended"] - last["begun"], "stages": last["stages"]}


def status(dataset: Dataset) -> dict[str, Any]:
    """As JSON has it; times in ISO 8601, UTC.

    `running`: null, or of the run that holds the lock what, pid, host, begun, stage, done, total (parts, pages or
    null), stage_begun, stage_ends, when the stage is done at its pace so far, and ends, when the run is, if what comes
    after the stage takes as long as in the last such run that came to its end (null where it cannot be told).
    `last`: null, or of the last run what, state (done, failed, refused; killed where it has not come to say), error,
    begun and ended. `snapshot`: null, or of the one in force number, pairs, kept, created and tags.
    """
    from vlmdata.tags import tags

    content = _read(dataset)
    held = holder(dataset, alive=True)
    running = None
    if held is not None:
        own = content if content and content["owner"] == held["owner"] else {}
        running = {name: held[name] for name in ("what", "pid", "host")} | {
            "begun": _iso(own.get("begun")),
            "stage": own.get("stage"),
            "done": own.get("done"),
            "total": own.get("total"),
            "stage_begun": _iso(own.get("stage_started")),
            "stage_ends": _iso(_stage_ends(own)),
            "ends": _iso(_ends(own)),
        }
    last = None
    if content and (held is None or content["owner"] != held["owner"]):
        state = "killed" if content["state"] == "running" else content["state"]
        last = {"what": content["what"], "state": state, "error": content.get("error")}
        last |= {"begun": _iso(content["begun"]), "ended": _iso(content.get("ended"))}
    latest = dataset.latest()
    found: dict[str, Any] = {"running": running, "last": last, "snapshot": None}
    if latest is not None:
        names = [name for name, number in tags(dataset).items() if number == latest["number"]]
        funnel = latest["funnel"]
        found["snapshot"] = {"number": latest["number"], "pairs": funnel[0]["left"], "kept": funnel[-1]["left"]}
        found["snapshot"] |= {"created": latest["created"], "tags": names}
    return found


def _read(dataset: Dataset) -> dict[str, Any] | None:
    """Raises DataError for what no run has written."""
    if not dataset.exists(STATUS):
        return None
    content = dataset.read_json(STATUS)
    kinds: dict[str, Any] = {
        "owner": str,
        "what": str,
        "state": str,
        "begun": float,
        "ended": float | None,
        "stage": str | None,
    }
    kinds |= {"stage_started": float | None, "told": float | None, "done": int | None, "total": int | None}
    right = _has(content, kinds) and _are_stages(content.get("stages", []))
    before = content.get("before") if right else None
    if not right or (
        before is not None and not (_has(before, {"seconds": float}) and _are_stages(before.get("stages")))
    ):
        raise DataError(f"{dataset.address(STATUS)}: not a run's status; remove it, the next run writes it anew")
    return content


def _has(found: Any, kinds: dict[str, Any]) -> bool:
    """Whether it is an object with values of these kinds."""
    return isinstance(found, dict) and all(isinstance(found.get(name), kind) for name, kind in kinds.items())


def _are_stages(found: Any) -> bool:
    """Whether it is a list of [name, seconds]."""
    return isinstance(found, list) and all(
        isinstance(each, list) and len(each) == 2 and isinstance(each[0], str) and isinstance(each[1], float)
        for each in found
    )


def lines(found: dict[str, Any]) -> list[str]:
    """The status for people."""
    told = []
    if running := found["running"]:
        told.append(f"{running['what']} is running: process {running['pid']} on {running['host']}")
        if running["begun"]:
            told[-1] += f", since {running['begun']}"
        if running["stage"]:
            share = f", {running['done']:,}" if running["done"] is not None else ""
            share += f" of {running['total']:,}" if running["total"] else ""
            told.append(f"stage {running['stage']}{share}, since {running['stage_begun']}")
            told.append(f"this stage will be done about {running['stage_ends'] or 'a time that cannot be told yet'}")
        if running["ends"]:
            told.append(f"all will be done about {running['ends']}, if the rest takes as long as the last time")
    else:
        told.append("nothing is running")
    if last := found["last"]:
        ended = f" at {last['ended']}" if last["ended"] else ""
        told.append(f"the last run, {last['what']}: {last['state']}{ended}")
        told += [f"  {last['error']}"] if last["error"] else []
    if snapshot := found["snapshot"]:
        names = f" ({', '.join(snapshot['tags'])})" if snapshot["tags"] else ""
        told.append(
            f"in force: snapshot {snapshot['number']}{names}, {snapshot['kept']:,} kept of {snapshot['pairs']:,} "
            f"pairs, of {snapshot['created']}"
        )
    else:
        told.append("no snapshot yet")
    return told


def _stage_ends(content: dict[str, Any]) -> float | None:
    """When the stage will be done, if what remains takes as long as what is done."""
    done, total = content.get("done"), content.get("total")
    if not done or not total:
        return None
    spent = content["told"] - content["stage_started"]
    return content["told"] + spent / done * (total - done)


def _ends(content: dict[str, Any]) -> float | None:
    """When the run will be done, if what comes after this stage takes as long as it did in the run before; all of the
    run, where the stage's end is not known."""
    before, ends = content.get("before"), _stage_ends(content)
    if not before or not content.get("stages"):
        return None
    stage, turn = content["stage"], [name for name, _ in content["stages"]].count(content["stage"])
    done = [seconds for name, seconds in before["stages"] if name == stage]
    if ends is None or turn > len(done):
        whole = float(content["begun"] + before["seconds"])
        return whole if whole > time.time() else None
    return float(ends + before["seconds"] - done[turn - 1])


def _iso(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
