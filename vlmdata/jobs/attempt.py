"""One start of a job on a snapshot: its folder, its log, what it measured."""

import datetime
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from vlmdata.dataset import Dataset
from vlmdata.errors import JobError
from vlmdata.parts import make_key, new_id
from vlmdata.recipe import Job
from vlmdata.sources.urls import strip_urls

VERSION = 2
LOG, METRICS, NOTE = "log.txt", "metrics.json", "attempt.json"
LAST_LINES = 20
_HEADER = "=== vlmdata "
_TAIL_BYTES = 200_000
_LINE = 1000
_SMALL = (LOG, METRICS, "metrics.jsonl", "config.json", "job.json")


class Ended(JobError):
    """A job whose process failed; `code` is its exit code, 128 + n where signal n ended it."""

    def __init__(self, message: str, code: int) -> None:
        super().__init__(message)
        self.code = code


def job_key(job: Job) -> str:
    """16 hex digits: which job it is, whatever its name and that of the one that it goes on from. Of where it runs only
    the number of processes counts."""
    options = job.keyed("name")
    start = options.get("start")
    if isinstance(start, dict) and "key" in start:
        options["start"] = {"key": start["key"]}
    processes = job.on.processes * job.on.nodes
    return make_key("job", VERSION, options | ({"processes": processes} if processes > 1 else {}), [])


@dataclass(frozen=True)
class Attempt:
    """A job that is started, or goes on, on a snapshot."""

    job: Job
    dataset: Dataset
    manifest: dict[str, Any]
    key: str | None = None  # where it is known already: that of the job as the recipe has it

    @property
    def number(self) -> int:
        """The snapshot's."""
        return self.manifest["number"]

    @property
    def output(self) -> str:
        """The job's folder, from the dataset."""
        return f"jobs/{self.number:06d}/{self.job.name}-{self.key or job_key(self.job)}"

    @property
    def folder(self) -> Path:
        """That folder on a local disk; of a remote dataset one in the user's cache, whose small files are copied."""
        return self.dataset.kept_folder(self.output)

    @property
    def log(self) -> Path:
        return self.folder / LOG

    @property
    def goes_on(self) -> bool:
        """Whether an earlier attempt has been made."""
        return self.log.exists()

    def begin(self) -> None:
        """Make the folder, without what an earlier attempt measured."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for name in (METRICS, "exit.json"):
            self.dataset.remove(f"{self.output}/{name}")
            (self.folder / name).unlink(missing_ok=True)

    def token(self) -> str:
        """What this attempt is called where others run it. Until its end is recorded it stays the same, so that a run
        finds what a killed one has started; after that another attempt begins."""
        note = f"{self.output}/{NOTE}"
        if not self.dataset.exists(note):
            self.begin()
            self.dataset.write_json(note, {"token": new_id()})
        return str(self.dataset.read_json(note)["token"])

    def over(self) -> None:
        """Forget the attempt, whose end is recorded: the next one is another."""
        self.dataset.remove(f"{self.output}/{NOTE}")

    def copy_small(self) -> None:
        """Put the small files of a remote dataset's job where everybody finds them."""
        for name in () if self.dataset.local else _SMALL:
            if (self.folder / name).exists():
                self.dataset.write_bytes(f"{self.output}/{name}", (self.folder / name).read_bytes())

    def metrics(self) -> dict[str, float]:
        """What the job wrote into metrics.json; nothing where it wrote none. Raises JobError for anything but flat
        names with numbers."""
        path = f"{self.output}/{METRICS}"
        if not self.dataset.exists(path):
            return {}
        try:
            found = json.loads(self.dataset.read_bytes(path))
        except (ValueError, RecursionError) as error:
            raise JobError(f"job {self.job.name!r}: {self.dataset.address(path)}: not JSON ({error})") from error
        numbers = isinstance(found, dict) and all(
            isinstance(value, int | float) and not isinstance(value, bool) for value in found.values()
        )
        if not numbers:
            raise JobError(f"job {self.job.name!r}: {self.dataset.address(path)}: names with numbers are expected")
        return {name: float(value) for name, value in found.items()}

    def last_lines(self) -> list[str]:
        """The last lines that this attempt wrote, at most 20."""
        path = f"{self.output}/{LOG}"
        if not self.dataset.exists(path):
            return []
        with self.dataset.open(path) as handle:
            handle.seek(max(0, handle.seek(0, os.SEEK_END) - _TAIL_BYTES))
            text = handle.read().decode("utf-8", "replace")
        lines = text.splitlines()
        begins = max((place for place, line in enumerate(lines) if line.startswith(_HEADER)), default=-1)
        told = [line for line in lines[begins + 1 :] if line.strip()][-LAST_LINES:]
        return [strip_urls(line[:_LINE]) for line in told]  # what URLs sign stays in the log


@contextmanager
def logged(path: Path, what: str) -> Iterator[IO[bytes]]:
    """The log, opened for one more attempt."""
    with path.open("ab") as log:
        now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
        log.write(f"{_HEADER}{now} {' '.join(what.split())}\n".encode())
        log.flush()
        yield log


def write_metrics(folder: Path, metrics: dict[str, float]) -> None:
    """Write what a training measured into its folder's metrics.json."""
    aside = folder / f"{METRICS}.partial"
    aside.write_text(json.dumps(metrics, indent=1) + "\n", "utf-8")
    os.replace(aside, folder / METRICS)
