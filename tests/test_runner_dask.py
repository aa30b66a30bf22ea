"""Parts on a Dask cluster, whose workers have another working folder than the run. A whole run is in tests/engines."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import dask
import pytest
from hostile import Counting
from test_download_buckets import AT_ONCE, answer, downloaded, fastest, ingested, several_sites

from vlmdata.dataset import Dataset
from vlmdata.errors import DataError, MachineError
from vlmdata.pipelines import download, fetch
from vlmdata.pipelines.runner import engine, processes, run_parts
from vlmdata.recipe import Runner

CLUSTER = """
import sys
from dask.distributed import LocalCluster
with LocalCluster(n_workers=int(sys.argv[1]), threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
    print(cluster.scheduler_address, flush=True)
    sys.stdin.read()
"""


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Of a cluster of two workers, in a folder of its own."""
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    command = [sys.executable, "-c", CLUSTER, "2"]
    tests = {**os.environ, "PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen(
        command,
        cwd=elsewhere,
        env=tests,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as cluster:
        assert cluster.stdout is not None
        yield cluster.stdout.readline().strip()
        cluster.communicate(timeout=20)  # the end of its input ends it
    assert not list(elsewhere.glob("*/*.parquet"))


def test_two_workers_ask_no_host_faster_than_one_may_and_give_its_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, address: str
) -> None:
    monkeypatch.chdir(tmp_path)
    rate, each = 10, 6
    with several_sites(3) as sites:
        for site in sites:
            site.routes["*"] = Counting(answer, 0.2)
        plan, dataset, pairs = ingested(tmp_path / "dask", sites, 5, {"kind": "dask", "address": address}, rate, each)
        assert len(pairs.parts) >= 4
        download.run(plan, dataset, pairs)
        for site in sites:
            counts = site.routes["*"]
            assert isinstance(counts, Counting)
            assert 1 <= counts.most <= AT_ONCE
            assert fastest(counts, 5) > 0.7 * 5 / rate  # twice the rate would be half of it
            assert site.paths().count("/robots.txt") == 1
            assert len(set(site.paths())) == len(site.paths()), "one process, and once"
            site.routes["*"] = Counting(answer)
        assert not dataset.exists(fetch.WORK)
        assert not list((tmp_path / "dask/data/.spool").iterdir())
        one = ingested(tmp_path / "direct", sites, 5, {"workers": 1}, each=each)
        download.run(*one)
    assert downloaded(one[1]) == downloaded(dataset)


def where(number: int) -> list[Any]:
    if number == 2:
        raise DataError("the third is bad")
    return [number, os.getpid()]


def test_without_an_address_a_cluster_is_started_and_ended_with_the_block(tmp_path: Path) -> None:
    dataset = Dataset(str(tmp_path / "d"))
    with engine(Runner(kind="dask", workers=1)) as runner:
        found = [run_parts(dataset, "stage", where, places, runner) for places in ([0, 1, 3, 4], [5])]
        assert processes(runner) == 1
    assert [number for number, _ in found[0]] == [0, 1, 3, 4]
    ((pid,),) = {tuple({pid for _, pid in results}) for results in found}  # one process for both
    assert pid != os.getpid()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_an_error_in_a_part_is_told_as_what_it_is(tmp_path: Path, address: str) -> None:
    with pytest.raises(DataError, match="the third is bad"):
        run_parts(
            Dataset(str(tmp_path / "d")), "stage", where, [0, 1, 2, 3], Runner(kind="dask", address=address, workers=2)
        )


def test_a_hosts_rate_is_shared_by_the_processes_that_a_cluster_has(address: str) -> None:
    assert processes(Runner(kind="dask", address=address)) == 2
    assert processes(Runner(kind="dask", address=address, workers=1)) == 2
    assert processes(Runner(kind="dask", address=address, workers=50)) == 50
    soon = dask.config.set({"distributed.comm.timeouts.connect": "1s"})
    with soon, pytest.raises(MachineError, match="no Dask scheduler answers"):
        processes(Runner(kind="dask", address="127.0.0.1:1"))
