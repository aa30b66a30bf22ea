"""A whole run on each engine has the bytes of the in-process one, also when a worker is killed in the middle."""

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import apache_beam as beam
import processes
import pytest
from apache_beam.options.pipeline_options import DebugOptions, GoogleCloudOptions, WorkerOptions
from apache_beam.transforms.environments import DockerEnvironment
from conftest import content, make_photos, vlmdata, write_recipe

from vlmdata.pipelines import engines
from vlmdata.recipe import Runner

# Says where it runs, and takes its time so that a kill comes in the middle.
SLOW = """
import os, pathlib, time
import vlmdata

@vlmdata.signal({"letters": "int32"})
def letters(rows):
    (pathlib.Path(HERE) / str(os.getpid())).touch()
    time.sleep(1)
    return {"letters": [len(caption) for caption in rows["caption"].to_pylist()]}
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("engines")
    make_photos(folder / "photos")
    (folder / "pids").mkdir()
    (folder / "letters.py").write_text(f"HERE = {str(folder / 'pids')!r}\n" + SLOW)
    write_recipe(
        folder,
        signals=["text", "language", "image", {"kind": "python", "path": "letters.py"}],
        select={"rules": {"words": "words >= 3", "long": "letters > 10"}},
        dedup=["exact", "pixels", "url", {"kind": "perceptual", "distance": 4}],
        parts={"rows": 4},
        jobs=[],
    )
    return folder


@pytest.fixture(scope="module")
def direct(folder: Path) -> dict[str, bytes]:
    found = ran(folder, {})
    assert sum(name.endswith((".tar", ".parquet")) for name in found) > 40
    return found


def ran(folder: Path, runner: dict[str, Any], dataset: str = "runs/it") -> dict[str, bytes]:
    done = asked(folder, runner, dataset)
    assert done.returncode == 0, done.stderr[-4000:]
    return content(folder / dataset)


def asked(folder: Path, runner: dict[str, Any], dataset: str) -> subprocess.CompletedProcess[str]:
    settings = ["--set", f"dataset={dataset}", "--set", f"runner={json.dumps(runner)}"]
    return vlmdata(folder, "--debug", "run", "recipe.yaml", *settings)


def different(found: dict[str, bytes], direct: dict[str, bytes]) -> list[str]:
    assert found.keys() == direct.keys()
    return [name for name in direct if found[name] != direct[name]]


@pytest.fixture
def killed(folder: Path) -> Iterator[list[int]]:
    """The pid of the first worker that measures a part, which is killed as it does."""
    for file in (folder / "pids").iterdir():
        file.unlink()
    victims: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.is_set() and not victims:
            for file in (folder / "pids").iterdir():
                os.kill(int(file.name), signal.SIGKILL)
                victims.append(int(file.name))
                return
            time.sleep(0.05)

    thread = threading.Thread(target=watch)
    thread.start()
    yield victims
    ended.set()
    thread.join()


def test_dask_goes_on_without_a_worker_that_is_killed(
    folder: Path, direct: dict[str, bytes], killed: list[int], tmp_path: Path
) -> None:
    with processes.dask(tmp_path, 2) as address:
        found = ran(folder, {"kind": "dask", "address": address}, "runs/dask")
    assert len(killed) == 1
    assert len(list((folder / "pids").iterdir())) > 1, "another worker did the rest"
    assert different(found, direct) == []


def test_prism_gives_the_same_bytes(folder: Path, direct: dict[str, bytes]) -> None:
    runner = {"kind": "prism", "workers": 2, "options": {"prism_location": str(processes.PRISM)}}
    assert different(ran(folder, runner, "runs/prism"), direct) == []


def test_on_prism_a_killed_worker_is_told_and_the_next_run_goes_on(
    folder: Path, direct: dict[str, bytes], killed: list[int], tmp_path: Path
) -> None:
    with processes.worker_pool(tmp_path) as pool:
        options = {
            "prism_location": str(processes.PRISM),
            "environment_type": "EXTERNAL",
            "environment_config": pool,
        }
        runner = {"kind": "prism", "workers": 2, "options": options}
        first = asked(folder, runner, "runs/external")
        assert len(killed) == 1
        found = ran(folder, runner, "runs/external")
    assert different(found, direct) == []


@pytest.mark.parametrize("kind", ["flink", "spark"])
def test_a_job_server_gets_the_options_and_gives_the_same_bytes(
    folder: Path, direct: dict[str, bytes], tmp_path: Path, kind: str
) -> None:
    """Beam's own job server in Python, in the place of Flink's and Spark's."""
    with processes.job_server(tmp_path) as endpoint:
        options = {"job_endpoint": endpoint, "environment_type": "LOOPBACK"}
        runner = {"kind": kind, "workers": 2, "options": options}
        assert different(ran(folder, runner, f"runs/{kind}"), direct) == []


def test_what_dataflow_is_told_stands_in_the_pipelines_proto(tmp_path: Path) -> None:
    """Nothing here can be sent to it: the pipeline is built as it would be, and its options are read as it reads them."""
    told = {"project": "p", "region": "europe-west1", "temp_location": "gs://b/tmp", "experiments": ["use_runner_v2"]}
    runner = Runner(kind="dataflow", workers=7, options={**told, "sdk_container_image": "r/vlmdata:1"})
    pipeline = engines.made(runner, parts=100, at_once=7)
    pipeline | "parts" >> beam.Create([1, 2]) | "work" >> beam.Map(str)  # type: ignore[operator]
    cloud, worker = pipeline.options.view_as(GoogleCloudOptions), pipeline.options.view_as(WorkerOptions)
    assert [cloud.project, cloud.region, cloud.temp_location] == ["p", "europe-west1", "gs://b/tmp"]
    assert [worker.num_workers, worker.max_num_workers, worker.sdk_container_image] == [7, 7, "r/vlmdata:1"]
    assert {"use_runner_v2", "no_use_multiple_sdk_containers"} <= set(
        pipeline.options.view_as(DebugOptions).experiments
    )
    proto = pipeline.to_runner_api(default_environment=DockerEnvironment.from_container_image("r/vlmdata:1"))
    assert {"parts", "work"} <= {one.unique_name for one in proto.components.transforms.values()}
