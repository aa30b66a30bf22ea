"""A whole run on each engine has the bytes of the in-process one, also when a worker is killed in the middle."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import apache_beam as beam
import processes
import pytest
from apache_beam.options.pipeline_options import DebugOptions, GoogleCloudOptions, WorkerOptions
from apache_beam.transforms.environments import DockerEnvironment
from conftest import content, make_photos
from test_consent_run import run
from test_dedup_stage import rows, written

from vlmdata import dedup as grouping
from vlmdata.errors import MachineError
from vlmdata.pipelines import dedup, engines, hamming, vectors
from vlmdata.pipelines.runner import engine
from vlmdata.recipe import PerceptualDedup, Recipe, Runner, SemanticDedup

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
    return folder


@pytest.fixture(scope="module")
def direct(folder: Path) -> dict[str, bytes]:
    found = ran(folder, {}, "direct")
    assert sum(name.endswith((".tar", ".parquet")) for name in found) > 30
    return found


def ran(folder: Path, runner: dict[str, Any], name: str) -> dict[str, bytes]:
    """Every stage, in a dataset of that name; the driver is this process, without Prefect's server."""
    (folder / name).mkdir(exist_ok=True)
    recipe = Recipe.model_validate(
        {
            "dataset": str(folder / name / "it"),
            "sources": [{"kind": "folder", "name": "photos", "path": str(folder / "photos")}],
            "download": {"size": 96},
            "signals": ["text", "image", {"kind": "python", "path": str(folder / "letters.py")}],
            "dedup": ["exact", {"kind": "perceptual", "distance": 4}],
            "select": {"rules": {"words": "words >= 3", "long": "letters > 10"}},
            "shards": {"samples": 8, "splits": {"train": 0.7, "test": 0.3}},
            "parts": {"rows": 6},
            "runner": runner,
        }
    )
    with engine(recipe.runner):
        run(recipe)
    return content(folder / name / "it")


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
        found = ran(folder, {"kind": "dask", "address": address}, "dask")
    assert len(killed) == 1
    assert len(list((folder / "pids").iterdir())) > 1, "another worker did the rest"
    assert different(found, direct) == []


def test_prism_gives_the_same_bytes(folder: Path, direct: dict[str, bytes]) -> None:
    runner = {"kind": "prism", "workers": 2, "options": {"prism_location": str(processes.PRISM)}}
    assert different(ran(folder, runner, "prism"), direct) == []


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
        with pytest.raises(MachineError, match="prism ended the work"):
            ran(folder, runner, "external")
        assert len(killed) == 1
        found = ran(folder, runner, "external")
    assert different(found, direct) == []


@pytest.mark.parametrize("kind", ["flink", "spark"])
def test_a_job_server_gets_the_options_and_gives_the_same_bytes(
    folder: Path, direct: dict[str, bytes], tmp_path: Path, kind: str
) -> None:
    """Beam's own job server in Python, in the place of Flink's and Spark's."""
    with processes.job_server(tmp_path) as endpoint:
        options = {"job_endpoint": endpoint, "environment_type": "LOOPBACK"}
        runner = {"kind": kind, "workers": 2, "options": options}
        assert different(ran(folder, runner, f"{kind}"), direct) == []


def test_near_hashes_and_vectors_are_grouped_by_an_engines_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More rows than one process would compare; buckets so small that there are several of each."""
    monkeypatch.setattr(vectors, "KEYS", 8_000)  # by the driver, who tells the workers
    monkeypatch.setattr(vectors, "PIECE", 8_000)
    monkeypatch.setattr(hamming, "BUCKET", 8_000)
    methods = [
        PerceptualDedup(kind="perceptual", distance=4, groups="semdedup"),
        SemanticDedup(kind="semantic", similarity=0.85, groups="semdedup"),
    ]
    dataset, tables = written(tmp_path, [rows(6_000, seed) for seed in range(7)])

    def grouped(runner: Runner) -> list[bytes]:
        told = SimpleNamespace(recipe=SimpleNamespace(dedup=methods, runner=runner), tables={"duplicates": "d"})
        found = dedup.run(told, dataset, tables)  # type: ignore[arg-type]
        paths = [path for part in found.parts for path in (part.path, *(file.path for file in part.also))]
        assert len(paths) == 5
        return [dataset.read_bytes(path) for path in paths]

    direct = grouped(Runner())
    monkeypatch.setattr(grouping, "grouped", None)  # no longer by the driver
    with processes.dask(tmp_path, 2) as address:
        assert grouped(Runner(kind="dask", address=address)) == direct
    assert grouped(Runner(kind="prism", workers=2, options={"prism_location": str(processes.PRISM)})) == direct


def test_what_dataflow_is_told_stands_in_the_pipelines_proto(tmp_path: Path) -> None:
    """Nothing can be sent to it from here: the pipeline is built, and its options are read as it reads them."""
    told = {"project": "project-1", "region": "europe-west1", "temp_location": "gs://bucket/tmp"}
    told |= {"staging_location": "gs://bucket/staging", "experiments": ["use_runner_v2"]}
    runner = Runner(kind="dataflow", workers=7, options={**told, "sdk_container_image": "r/vlmdata:1"})
    pipeline = engines.made(runner, parts=100, at_once=7)
    pipeline | "parts" >> beam.Create([1, 2]) | "work" >> beam.Map(str)  # type: ignore[operator]
    cloud, worker = pipeline.options.view_as(GoogleCloudOptions), pipeline.options.view_as(WorkerOptions)
    assert [cloud.project, cloud.region, cloud.temp_location] == ["project-1", "europe-west1", "gs://bucket/tmp"]
    assert [worker.num_workers, worker.max_num_workers, worker.sdk_container_image] == [7, 7, "r/vlmdata:1"]
    assert {"use_runner_v2", "no_use_multiple_sdk_containers"} <= set(
        pipeline.options.view_as(DebugOptions).experiments
    )
    proto = pipeline.to_runner_api(default_environment=DockerEnvironment.from_container_image("r/vlmdata:1"))
    assert {"parts", "work"} <= {one.unique_name for one in proto.components.transforms.values()}
