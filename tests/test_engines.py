"""What a recipe says of its engine becomes Beam's options, and what is missing is told before anything runs."""

import time
from pathlib import Path

import numpy as np
import pytest
from apache_beam.runners.worker.data_plane import SizeBasedBufferingClosableOutputStream
from pydantic import ValidationError

from vlmdata.dataset import Dataset
from vlmdata.errors import DataError, InputError, MachineError, VlmdataError
from vlmdata.pipelines import engines
from vlmdata.pipelines.runner import combine, processes, run_parts, shuffle
from vlmdata.recipe import Runner

FLINK = {"job_endpoint": "localhost:8099"}
DATAFLOW = {"project": "p", "region": "r", "temp_location": "gs://b/tmp"}


def test_options_become_one_argument_each_whatever_is_in_them() -> None:
    options = {"flink_master": "host:8081 --runner=x", "streaming": True, "hdfs_full_urls": False, "parallelism": 3}
    runner = Runner(kind="flink", options={**options, "experiments": ["a", "b"]})
    assert engines.flags(runner) == [
        "--flink_master=host:8081 --runner=x", "--streaming", "--parallelism=3", "--experiments=a", "--experiments=b",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["--master", "a b", "Master", ""])
def test_an_option_that_is_no_name_is_refused_by_the_recipe(name: str) -> None:
    with pytest.raises(ValidationError):
        Runner(options={name: "x"})


@pytest.mark.parametrize(
    ("runner", "error", "says"),
    [
        (Runner(kind="prism", options={"prism_lokation": "x"}), InputError, "did you mean 'prism_location'"),
        (Runner(options={"runner": "x"}), InputError, "say runner.kind instead"),
        (Runner(kind="dask", options={"dask_client_address": "x"}), InputError, "say runner.address instead"),
        (Runner(kind="flink", address="host:1"), InputError, "flink has none"),
        (Runner(kind="flink", options=FLINK), InputError, "runner.workers"),
        (Runner(kind="flink", workers=2), InputError, "options.flink_job_server_jar"),
        (Runner(kind="spark", workers=2), InputError, "options.spark_job_server_jar"),
        (Runner(kind="flink", workers=2, options={"flink_job_server_jar": "/x.jar"}), MachineError, "no java"),
        (Runner(kind="prism"), MachineError, "go install"),
        (Runner(kind="dataflow", workers=2, options=DATAFLOW | {"regoin": "r"}), InputError, "did you mean 'region'"),
        (Runner(kind="dataflow", workers=2, options={"project": "p"}), InputError, "options.region"),
    ],
)
def test_what_an_engine_lacks_is_told(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, runner: Runner, error: type[VlmdataError], says: str
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(error, match=says):
        engines.check(runner)


def test_an_option_of_a_job_server_that_beam_does_not_know_is_left_to_it() -> None:
    engines.check(Runner(kind="flink", workers=2, options={**FLINK, "object_reuse": True}))


def test_the_processes_that_share_a_hosts_rate_are_the_workers_unless_there_is_one() -> None:
    assert processes(Runner(kind="flink", workers=7, options=FLINK)) == 7
    assert processes(Runner(kind="flink", workers=7, options={**FLINK, "environment_type": "LOOPBACK"})) == 1
    assert processes(Runner(kind="prism", workers=7)) == 1
    assert processes(Runner(kind="prism", workers=7, options={"environment_type": "EXTERNAL"})) == 7


def test_nothing_is_lost_of_work_that_takes_longer_than_a_second(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beam sent a worker's outcomes on once a second, and forgot what came while it did."""
    sent = SizeBasedBufferingClosableOutputStream.flush

    def slowly(self: SizeBasedBufferingClosableOutputStream) -> None:
        told = self._flush_callback
        self._flush_callback = lambda data: (told(data), time.sleep(0.6))
        sent(self)
        self._flush_callback = told

    monkeypatch.setattr(SizeBasedBufferingClosableOutputStream, "flush", slowly)
    dataset, runner = Dataset(str(tmp_path)), Runner(workers=2)
    assert run_parts(dataset, "stage", _waits, list(range(16)), runner) == list(range(16))
    assert shuffle(dataset, "stage", _scattered, _together, list(range(1, 13)), runner) == [list(range(1, 13))]


def test_a_sum_is_that_of_all_parts_and_the_first_error_is_raised(tmp_path: Path) -> None:
    dataset, runner = Dataset(str(tmp_path)), Runner(workers=2)
    assert combine(dataset, "sum", _counted, [1, 2, 3, 3], runner).tolist() == [0, 1, 1, 2]
    with pytest.raises(DataError, match="part 4"):
        combine(dataset, "sum", _counted, [1, 4, 5, 2], runner)


def _counted(number: int) -> np.ndarray:
    if number > 3:
        raise DataError(f"part {number}")
    return np.bincount([number], minlength=4)


def _waits(number: int) -> int:
    time.sleep(0.2)
    return number


def _scattered(number: int) -> list[tuple[int, bytes]]:
    time.sleep(0.2)
    return [(0, bytes([number]))]


def _together(group: tuple[int, list[bytes]]) -> list[int]:
    return list(b"".join(group[1]))
