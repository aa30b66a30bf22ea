"""Slurm on this machine: slurm.conf in a folder of its own, slurmctld and slurmd without systemd and munge."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CONF = """\
ClusterName=vlmdata
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={daemon}
AuthType=auth/none
CryptoType=crypto/none
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
ReturnToService=2
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} State=UNKNOWN
PartitionName=all Nodes=ALL Default=YES MaxTime=INFINITE State=UP OverSubscribe=FORCE:4
"""


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Yields what Slurm's programs need in their environment; afterwards these two daemons alone are ended."""
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    conf = folder / "slurm.conf"
    host = socket.gethostname().partition(".")[0]
    ports = {"controller": free_port(), "daemon": free_port()}
    conf.write_text(CONF.format(host=host, folder=folder, cpus=os.cpu_count(), **ports))
    environment = {"SLURM_CONF": str(conf)}
    daemons = []
    try:
        for name in ("slurmctld", "slurmd"):
            program = shutil.which(name) or f"/usr/sbin/{name}"
            with (folder / f"{name}.log").open("wb") as log:
                daemons.append(
                    subprocess.Popen(
                        [program, "-D", "-f", str(conf)], env=os.environ | environment, stdout=log, stderr=log
                    )
                )
        _until_idle(environment, folder)
        yield environment
    finally:
        for daemon in reversed(daemons):
            daemon.terminate()
        for daemon in daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()


def _until_idle(environment: dict[str, str], folder: Path) -> None:
    for _ in range(120):
        found = subprocess.run(
            ["sinfo", "-h", "-o", "%t"], env=os.environ | environment, capture_output=True, text=True
        )
        if found.stdout.strip() == "idle":
            return
        time.sleep(0.5)
    logs = "\n".join(path.read_text()[-3000:] for path in sorted(folder.glob("*.log")))
    raise AssertionError(f"Slurm did not start: {found.stdout} {found.stderr}\n{logs}")
