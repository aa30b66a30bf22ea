"""Two processes (gloo) train as one does with the same global batch, by every loss and way of spreading a model, and by
other objectives: all in one launch, since starting the processes takes longest."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import train_twice
from safetensors.numpy import load_file
from test_train_loop import MODEL, job, shard
from test_train_masked import folder as masked_folder  # noqa: F401 - a fixture
from test_train_masked import job as masked_job
from test_train_projector import job as projector_job
from test_train_projector import models  # noqa: F401 - a fixture
from test_train_projector import shard as projector_shard
from test_train_projector import weights as projector_weights

from vlmdata.recipe import MaskedJob, ProjectorJob
from vlmdata.train.loop import train
from vlmdata.train.projector import build

WHOLE = MODEL | {"vision_cfg": {**MODEL["vision_cfg"], "patch_dropout": 0.0}}  # type: ignore[dict-item]
ONE: dict[str, Any] = {"model": WHOLE, "steps": 3, "batch": 8, "crop": 1.0, "save_every": 3}
TWO = ONE | {"batch": 4}
# For each run of two processes: its options, and those of the run of one that it must equal.
RUNS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "clip": (TWO, ONE),
    "siglip": (TWO | {"loss": "siglip"}, ONE | {"loss": "siglip"}),
    "sharded": (TWO | {"parallel": "fsdp"}, ONE),
    "cached": (TWO | {"batch": 2, "accumulate": 2, "cached": True, "loss": "siglip"}, ONE | {"loss": "siglip"}),
    "cached-sharded": (TWO | {"batch": 2, "accumulate": 2, "cached": True, "parallel": "fsdp"}, ONE),
    "locked": (TWO | {"lock": ["image"], "cached": True}, ONE | {"lock": ["image"]}),
}


@pytest.fixture(scope="module")
def masked(masked_folder: Path) -> tuple[MaskedJob, dict[str, list[str]]]:  # noqa: F811
    """Of the run of one process, as below."""
    shards = [str(masked_folder / "some.tar")]
    return masked_job(masked_folder, batch=8), {"train": shards, "test": shards}


@pytest.fixture(scope="module")
def projector(
    models: dict[str, str],  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[ProjectorJob, dict[str, list[str]]]:
    folder = tmp_path_factory.mktemp("projector")
    captions = {number: "a photo " * (number % 5 + 1) for number in range(16)}  # so that the parts' tokens differ
    train = projector_shard(folder / "a.tar", captions=captions)
    return projector_job(models, steps=3), {"train": [train], "test": [projector_shard(folder / "b.tar")]}


@pytest.fixture(scope="module")
def launched(
    tmp_path_factory: pytest.TempPathFactory,
    masked: tuple[MaskedJob, dict[str, list[str]]],
    projector: tuple[ProjectorJob, dict[str, list[str]]],
) -> tuple[Path, dict[str, list[str]]]:
    """A folder with what two processes made of every run, and the shards that those of RUNS trained on."""
    folder = tmp_path_factory.mktemp("ranks")
    shards = {"train": [shard(folder / "a.tar")]}
    jobs = {name: (job(**options), shards) for name, (options, _) in RUNS.items()}
    for name, (one, of_one) in {"masked": masked, "projector": projector}.items():
        jobs[name] = one.model_copy(update={"batch": 4}), of_one
    train_twice(
        folder, [(made.model_dump(mode="json"), of_it, str(folder / name)) for name, (made, of_it) in jobs.items()]
    )
    return folder, shards


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_train_as_one_with_the_same_global_batch(
    launched: tuple[Path, dict[str, list[str]]], name: str, tmp_path: Path
) -> None:
    folder, shards = launched
    train(job(**RUNS[name][1]), shards, str(tmp_path / "one"))
    one, two = (load_file(run / "checkpoints" / "3" / "model.safetensors") for run in (tmp_path / "one", folder / name))
    assert one.keys() == two.keys()
    difference = max(float(np.abs(one[key] - two[key]).max()) for key in one)
    assert difference < 5e-6  # measured: 5e-7 to 2e-6


def test_two_processes_train_the_masked_objective_as_one(
    launched: tuple[Path, dict[str, list[str]]], masked: tuple[MaskedJob, dict[str, list[str]]], tmp_path: Path
) -> None:
    train(masked[0], masked[1], str(tmp_path / "one"))
    runs = (tmp_path / "one", launched[0] / "masked")
    one, both = (load_file(run / "checkpoints" / "2" / "model.safetensors") for run in runs)
    for name, value in one.items():
        np.testing.assert_allclose(both[name], value, atol=1e-5, err_msg=name)
    rows = [json.loads((run / "metrics.jsonl").read_text().splitlines()[0]) for run in runs]
    assert rows[0]["loss/contrastive"] == pytest.approx(rows[1]["loss/contrastive"], rel=1e-5)


def test_two_processes_train_a_projector_as_one(
    launched: tuple[Path, dict[str, list[str]]], projector: tuple[ProjectorJob, dict[str, list[str]]], tmp_path: Path
) -> None:
    final = train(projector[0], projector[1], str(tmp_path / "one"))
    runs = (tmp_path / "one", launched[0] / "projector")
    whole, halves = (projector_weights(run, 3) for run in runs)
    for name, value in whole.items():
        np.testing.assert_allclose(halves[name], value, atol=2e-5, err_msg=name)
    start = build(projector[0]).model.state_dict()
    assert any(np.abs(whole[name] - start[name].numpy()).max() > 1e-3 for name in whole)
    rows = [json.loads((run / "metrics.jsonl").read_text().splitlines()[-1]) for run in runs]
    assert rows[1]["projector/gap"] == pytest.approx(rows[0]["projector/gap"], abs=1e-4)
    assert final["projector/gap"] == rows[0]["projector/gap"]
