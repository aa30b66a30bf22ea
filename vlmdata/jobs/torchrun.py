"""Jobs in several processes that train together, on this machine: torchrun starts any program so."""

import sys

from vlmdata.jobs import command
from vlmdata.jobs.attempt import Attempt
from vlmdata.jobs.local import run_process
from vlmdata.recipe import CommandJob


def start(attempt: Attempt) -> int:
    """Run a job to its end; its exit code."""
    attempt.begin()
    timeout = attempt.job.timeout if isinstance(attempt.job, CommandJob) else None
    extra = command.environment(attempt)
    return run_process(spread(command.arguments(attempt), attempt.job.on.processes), extra, attempt.log, timeout)


def spread(arguments: list[str], processes: int, meeting: tuple[str, ...] = ("--standalone",)) -> list[str]:
    """The arguments that start a program `processes` times; `meeting` are torchrun's options by which they meet."""
    torchrun = (sys.executable, "-m", "torch.distributed.run")
    return [*torchrun, *meeting, f"--nproc-per-node={processes}", "--no-python", *arguments]
