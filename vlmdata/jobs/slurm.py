"""Jobs on Slurm: submitit writes and submits the batch script; the node writes the exit code beside the log.

Their end is read from squeue and that file, so that no accounting is needed and no result is unpickled here.
"""

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
    """Submit a job and wait for its end; its exit code. One that an earlier run has left in the queue is waited for.

    Raises MachineError where Slurm does not answer or a node failed, InputError where it refuses the job.
    """
    folder = attempt.folder
    note = folder / "slurm.json"
    job_id = json.loads(note.read_text())["job_id"] if note.exists() else None
    if job_id is None or _state(job_id) not in _WAITING:
        for left in folder.glob("exit.*.json"):
            left.unlink()
        job_id = _submit(attempt)
        note.write_text(json.dumps({"job_id": job_id}) + "\n")
    log.info("job %s: Slurm's job %s; its log: %s", attempt.job.name, job_id, attempt.log)
    try:
        state = _wait(job_id)
    except BaseException:
        subprocess.run(["scancel", job_id], check=False, capture_output=True)  # noqa: S603, S607 - Slurm's, by its number
        raise
    code = _exit_code(folder, job_id, state)
    if code:
        with attempt.log.open("a", encoding="utf-8") as handle:
            handle.write(f"Slurm's job {job_id} ended as {state or 'unknown'}\n")
    if state in _MACHINES_FAULT:
        raise MachineError(f"job {attempt.job.name!r}: Slurm's job {job_id} ended as {state}; run it again to go on")
    return code


def _submit(attempt: Attempt) -> str:
    try:
        import submitit
    except ImportError as error:
        raise InputError("on: slurm needs submitit: pip install 'vlmdata[slurm]'") from error
    job, place = attempt.job, attempt.job.on
    assert isinstance(place, SlurmPlace)
    for program in ("sbatch", "srun", "squeue", "scancel"):
        if shutil.which(program) is None:
            raise InputError(f"job {job.name!r}: on: slurm: there is no {program} on this machine")
    if not attempt.dataset.local:
        raise InputError(f"job {job.name!r}: on: slurm: the dataset must lie on a disk that the nodes share")
    if not str(attempt.folder).isprintable() or any(sign in str(attempt.folder) for sign in "%\"'\\"):
        raise InputError(
            f"{attempt.folder}: Slurm cannot write into a folder with %, quotes or backslashes in its name"
        )
    executor = submitit.SlurmExecutor(folder=attempt.folder / "slurm", max_num_timeout=0)
    parameters: dict[str, Any] = {
        "job_name": f"vlmdata-{job.name}",
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
            place.processes,
            timeout,
        )
    except (submitit.core.utils.FailedJobError, submitit.core.utils.FailedSubmissionError, OSError) as error:
        told = " ".join(str(error).split())
        raise InputError(f"job {job.name!r}: sbatch refused it: {told[-500:]}") from error
    return str(submitted.job_id)


def work(arguments: list[str], environment: dict[str, str], folder: str, processes: int, timeout: float | None) -> None:
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
    aside.write_text(json.dumps({"exit_code": code}) + "\n")
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
    asked = ["squeue", "--noheader", "--states=all", f"--jobs={job_id}", "--format=%T"]
    answer = subprocess.run(asked, capture_output=True, text=True, check=False)  # noqa: S603 - Slurm's, by its number
    if answer.returncode:
        if "Invalid job id" in answer.stderr:
            return None
        raise MachineError(f"squeue: {' '.join(answer.stderr.split()) or 'no word'}")
    return next(iter(answer.stdout.split()), None)


def _exit_code(folder: Path, job_id: str, state: str | None) -> int:
    """The first exit code that is not 0 of the nodes; where none was written, 1 and the script's own log."""
    waited = time.monotonic()
    while not (found := sorted(folder.glob("exit.*.json"))) and time.monotonic() - waited < LATE_SECONDS:
        if state not in ("COMPLETED", None):
            break
        time.sleep(0.5)
    codes = [json.loads(path.read_text())["exit_code"] for path in found]
    if not codes or (state not in ("COMPLETED", None) and not any(codes)):
        with (folder / "log.txt").open("a", encoding="utf-8") as handle:
            for path in sorted((folder / "slurm").glob(f"{job_id}_*_log.out")):
                handle.write(path.read_text("utf-8", "replace"))
        return 1
    return next((code for code in codes if code), 0)
