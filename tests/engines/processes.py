"""Engines as processes of their own on this machine: a Dask scheduler and workers, Beam's pool of workers, Prism."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from dask.distributed import Client

CACHE = Path(__file__).parents[2] / ".cache/engines"
PRISM = CACHE / "bin/prism"
TESTS = {**os.environ, "OMP_NUM_THREADS": "1", "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def started(command: list[str], folder: Path, name: str, port: int | None = None) -> Iterator[subprocess.Popen[bytes]]:
    """A process that listens at `port` when the block begins, and has ended with it; its log is `<name>.log`."""
    with (folder / f"{name}.log").open("wb") as log:
        process = subprocess.Popen(command, cwd=folder, env=TESTS, stdout=log, stderr=log)
    try:
        end = time.monotonic() + 120
        while port is not None and not _listens(port):
            assert process.poll() is None, (folder / f"{name}.log").read_text()
            assert time.monotonic() < end, f"{name} does not answer"
            time.sleep(0.2)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


@contextmanager
def dask(folder: Path, workers: int) -> Iterator[str]:
    """The address of a scheduler with so many workers, each a process that nobody starts again."""
    port = free_port()
    address = f"tcp://127.0.0.1:{port}"
    scheduler = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", str(port)]
    worker = [sys.executable, "-m", "distributed.cli.dask_worker", address, "--nthreads", "1", "--no-nanny"]
    with ExitStack() as stack:
        stack.enter_context(started([*scheduler, "--no-dashboard"], folder, "scheduler", port))
        for number in range(workers):
            stack.enter_context(started([*worker, "--no-dashboard"], folder, f"worker-{number}"))
        with Client(address) as client:
            client.wait_for_workers(workers, timeout=120)
        yield address


@contextmanager
def worker_pool(folder: Path) -> Iterator[str]:
    """host:port of Beam's pool, which starts a process for each worker that an engine asks for."""
    port = free_port()
    pool = "from apache_beam.runners.worker.worker_pool_main import main; main()"
    with started([sys.executable, "-c", pool, f"--service_port={port}"], folder, "pool", port):
        yield f"localhost:{port}"


@contextmanager
def job_server(folder: Path) -> Iterator[str]:
    """host:port of the job server that Beam brings in Python: it takes jobs as Flink's and Spark's do."""
    port = free_port()
    server = [sys.executable, "-m", "apache_beam.runners.portability.local_job_service_main", "--port", str(port)]
    with started(server, folder, "job-server", port):
        yield f"localhost:{port}"
