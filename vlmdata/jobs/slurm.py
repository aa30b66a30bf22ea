"""Jobs on Slurm: submitit writes and submits the batch script; the node writes the exit code beside the log.

Their end is read from squeue and that file, so that no accounting is needed and no result is unpickled here. The
attempt's token stands in the batch script's comment and in that file: by it a run finds what a killed one submitted.
"""

import hashlib
import json
import logging
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

from vlmdata.errors import InputError, MachineError
from vlmdata.jobs import command, torchrun
from vlmdata.jobs.attempt import Attempt
from vlmdata.jobs.local import run_process
from vlmdata.recipe import CommandJob, SlurmPlace

log = logging.getLogger(__name__)

POLL_SECONDS = (1.0, 15.0)  # the first wait between two questions, and the longest
PATIENCE_SECONDS = 600.0  # for a controller that does not answer
LATE_SECONDS = 20.0  # for a file that another machine has written
_WAITING = {"PENDING", "CONFIGURING", "RUNNING", "COMPLETING", "SUSPENDED", "RESIZING", "REQUEUED", "SIGNALING",
            "STAGE_OUT", "STOPPED"}  # fmt: skip
_MACHINES_FAULT = {"NODE_FAIL", "BOOT_FAIL", "PREEMPTED"}


def start(attempt: Attempt) -> int:
    """Submit a job and wait for its end; its exit code. One that an earlier run submitted, and whose end is not
    recorded, is waited for, or found ended.

    Raises MachineError where Slurm does not answer or a node failed, InputError where it refuses the job.
    """
    _check(attempt)
    token = attempt.token()
    job_id = _submitted(attempt, token) or _submit(attempt, token)
    log.info("job %s: Slurm's job %s; its log: %s", attempt.job.name, job_id, attempt.log)
    try:
        state = _wait(job_id)
    except MachineError:  # it may run on: the next run finds it
        raise
    except BaseException:
        subprocess.run(["scancel", job_id], check=False, capture_output=True)  # noqa: S603, S607 - Slurm's, by its number
        attempt.over()
        raise
    code = _exit_code(attempt, token, job_id, state)
    if code:
        with attempt.log.open("a", encoding="utf-8") as handle:
            handle.write(f"Slurm's job {job_id} ended as {state or 'unknown'}\n")
    if state in _MACHINES_FAULT:
        attempt.over()
        raise MachineError(f"job {attempt.job.name!r}: Slurm's job {job_id} ended as {state}; run it again to go on")
    return code


def _check(attempt: Attempt) -> None:
    """Raise InputError where Slurm cannot do the job."""
    name = attempt.job.name
    for program in ("sbatch", "srun", "squeue", "scancel"):
        if shutil.which(program) is None:
            raise InputError(f"job {name!r}: on: slurm: there is no {program} on this machine")
    if not attempt.dataset.local:
        raise InputError(f"job {name!r}: on: slurm: the dataset must lie on a disk that the nodes share")
    if not str(attempt.folder).isprintable() or any(sign in str(attempt.folder) for sign in "%\"'\\"):
        raise InputError(
            f"{attempt.folder}: Slurm cannot write into a folder with %, quotes or backslashes in its name"
        )


def _name(attempt: Attempt) -> str:
    """The same for all attempts of a job on a snapshot, and no other's: Slurm runs one of that name at a time."""
    return f"vlmdata-{attempt.job.name}-{hashlib.sha256(str(attempt.folder).encode()).hexdigest()[:16]}"


def _submitted(attempt: Attempt, token: str) -> str | None:
    """Slurm's number of the attempt's job, where it has been submitted."""
    listed = _squeue(f"--name={_name(attempt)}", "--format=%i %k")
    for job_id, comment in (line.split(maxsplit=1) for line in listed if " " in line):
        if comment.strip() == token:
            _hand_over(attempt.folder / "slurm", job_id)
            return job_id
    ended = _ends(attempt.folder, token)
    return str(ended[0]["job_id"]) if ended else None


def _hand_over(folder: Path, job_id: str) -> None:
    """Give a job what it waits for, where the run was killed before submitit had renamed it."""
    waited_for = folder / f"{job_id}_submitted.pkl"
    left = [path for path in folder.glob("*.pkl") if "_" not in path.name]
    if left and not waited_for.exists():
        max(left, key=lambda path: path.stat().st_mtime).rename(waited_for)


def _submit(attempt: Attempt, token: str) -> str:
    try:
        import submitit
    except ImportError as error:
        raise InputError("on: slurm needs submitit: pip install 'vlmdata[slurm]'") from error
    job, place = attempt.job, attempt.job.on
    assert isinstance(place, SlurmPlace)
    executor = submitit.SlurmExecutor(folder=attempt.folder / "slurm", max_num_timeout=0)
    parameters: dict[str, Any] = {
        "job_name": _name(attempt),
        "comment": token,
        "dependency": "singleton",  # one that was cancelled may still be ending in the same folder
        "time": place.time,
        "nodes": place.nodes,
        "ntasks_per_node": 1,
        "cpus_per_task": place.cpus,
        "gpus_per_node": place.gpus or None,
        "mem": f"{round(place.memory * 1024)}M" if place.memory else None,
        **{name: getattr(place, name) for name in ("partition", "account", "qos", "constraint")},
        "stderr_to_stdout": True,
        "srun_args": ["--kill-on-bad-exit=1"],
    }
    executor.update_parameters(**{name: value for name, value in parameters.items() if value is not None})
    timeout = job.timeout if isinstance(job, CommandJob) else None
    try:
        submitted = executor.submit(
            work,
            command.arguments(attempt),
            command.environment(attempt),
            str(attempt.folder),
            token,
            place.processes,
            timeout,
        )
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError, OSError) as error:
        told = " ".join(str(error).split())
        raise InputError(f"job {job.name!r}: sbatch refused it: {told[-500:]}") from error
    return str(submitted.job_id)


def work(
    arguments: list[str], environment: dict[str, str], folder: str, token: str, processes: int, timeout: float | None
) -> None:
    """On a node: run the program, write its exit code as exit.<node>.json, and end with it."""
    from submitit import JobEnvironment

    here = JobEnvironment()
    if here.num_nodes * processes > 1:
        port = 20_000 + int(here.job_id) % 20_000
        meeting = (
            f"--nnodes={here.num_nodes}",
            f"--node-rank={here.node}",
            f"--master-addr={here.hostnames[0]}",
            f"--master-port={port}",
        )
        arguments = torchrun.spread(arguments, processes, meeting)
    name = "log.txt" if here.node == 0 else f"log.{here.node}.txt"
    code = run_process(arguments, environment, Path(folder, name), timeout)
    aside = Path(folder, f".exit.{here.node}")
    aside.write_text(json.dumps({"exit_code": code, "job_id": here.job_id, "token": token}) + "\n")
    os.replace(aside, Path(folder, f"exit.{here.node}.json"))
    if code:
        raise SystemExit(code)


def _wait(job_id: str) -> str | None:
    """Slurm's word for how a job ended; None where it has forgotten it."""
    pause, known = POLL_SECONDS[0], time.monotonic()
    while True:
        try:
            state = _state(job_id)
        except MachineError:
            if time.monotonic() - known > PATIENCE_SECONDS:
                raise
        else:
            known = time.monotonic()
            if state not in _WAITING:
                return state
        time.sleep(pause)
        pause = min(pause * 1.3, POLL_SECONDS[1])


def _state(job_id: str) -> str | None:
    """What squeue calls a job's state, None for one that it does not know. Raises MachineError where it fails."""
    return next(iter(_squeue(f"--jobs={job_id}", "--format=%T")), None)


def _squeue(*options: str) -> list[str]:
    """Its lines, also about jobs that have just ended. Raises MachineError where it fails."""
    asked = ["squeue", "--noheader", "--states=all", *options]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False)  # noqa: S603 - names and numbers of ours
    if answer.returncode:
        if "Invalid job id" in answer.stderr:
            return []
        raise MachineError(f"squeue: {' '.join(answer.stderr.split()) or 'no word'}")
    return [line.strip() for line in answer.stdout.splitlines()]


def _ends(folder: Path, token: str) -> list[dict[str, Any]]:
    """What the nodes have written at the end of this very attempt."""
    found = [json.loads(path.read_text()) for path in sorted(folder.glob("exit.*.json"))]
    return [end for end in found if end.get("token") == token]


def _exit_code(attempt: Attempt, token: str, job_id: str, state: str | None) -> int:
    """The first exit code that is not 0 of the nodes; where one did not write any, 1 and the script's own log."""
    folder, waited = attempt.folder, time.monotonic()
    assert isinstance(attempt.job.on, SlurmPlace)
    whole, well = attempt.job.on.nodes, state in ("COMPLETED", None)
    while len(ends := _ends(folder, token)) < whole and well and time.monotonic() - waited < LATE_SECONDS:
        time.sleep(0.5)
    codes = [int(end["exit_code"]) for end in ends]
    if not any(codes) and (len(codes) < whole or not well):
        with attempt.log.open("a", encoding="utf-8") as handle:
            for path in sorted((folder / "slurm").glob(f"{job_id}_*_log.out")):
                handle.write(path.read_text("utf-8", "replace"))
        return 1
    return next((code for code in codes if code), 0)
