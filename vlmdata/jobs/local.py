"""Jobs on this machine: a program as a process of its own, a training in this very process."""

import logging
import os
import shlex
import shutil
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vlmdata.errors import InputError
from vlmdata.jobs import command
from vlmdata.jobs.attempt import Attempt, logged, write_metrics
from vlmdata.jobs.chain import started
from vlmdata.recipe import CommandJob

GRACE_SECONDS = 10.0
TIMED_OUT = 124  # as coreutils' timeout says it


def start(attempt: Attempt) -> int:
    """Run a job to its end; its exit code. A training raises its errors."""
    if isinstance(attempt.job, CommandJob):
        extra = command.environment(attempt)
        return run_process(command.arguments(attempt), extra, attempt.log, attempt.job.timeout)
    from vlmdata.train import source
    from vlmdata.train.loop import train

    with _our_lines(attempt.log, attempt.job.name):
        shards = source.of_snapshot(attempt.dataset, attempt.manifest)
        job = started(attempt.job, attempt.dataset, attempt.number)
        metrics = train(job, shards, str(attempt.folder), resume=True)
    write_metrics(attempt.folder, metrics)
    return 0


def run_process(arguments: list[str], environment: dict[str, str], log: Path, timeout: float | None = None) -> int:
    """Run a program with its output in `log`; its exit code, 128 + n where signal n ended it, 124 after `timeout`.

    Whatever ends the wait, Ctrl-C too, ends the program and what it has started. Raises InputError where there is no
    such program.
    """
    whole = os.environ | environment
    if shutil.which(arguments[0], path=whole.get("PATH")) is None:
        raise InputError(f"{arguments[0]!r} cannot be started: there is no such program")
    with logged(log, shlex.join(arguments)) as output:
        child = subprocess.Popen(  # noqa: S603 - a list of arguments, which no shell sees
            [*_ended_with_us(), *arguments],
            env=whole,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            code = child.wait(timeout)
        except subprocess.TimeoutExpired:
            end_group(child)
            output.write(f"\nended after its timeout of {timeout:g} s\n".encode())
            return TIMED_OUT
        except BaseException:
            end_group(child)
            raise
    return 128 - code if code < 0 else code


def end_group(child: "subprocess.Popen[bytes]") -> None:
    """End a process and all of its group; what does not end in ten seconds is killed."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGTERM)
    with suppress(subprocess.TimeoutExpired):
        child.wait(GRACE_SECONDS)
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _ended_with_us() -> tuple[str, ...]:
    """What starts a program so that it ends with the run even where that is killed, and the next attempt finds nobody
    in its folder. A `preexec_fn` would do, but forks: with torch's and Beam's threads loaded, that crashed."""
    setpriv = shutil.which("setpriv")  # of util-linux
    return (setpriv, "--pdeathsig", "TERM", "--") if setpriv else ()


@contextmanager
def _our_lines(log: Path, name: str) -> Iterator[None]:
    """Write what this package logs into a job's log as well."""
    with logged(log, f"training {name}"):
        pass
    handler = logging.FileHandler(log, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("vlmdata")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        handler.close()
