"""Two processes (gloo) train as one does with the same global batch, by every loss and way of spreading a model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import train_twice
from safetensors.numpy import load_file
from test_train_loop import MODEL, job, shard

from vlmdata.train.loop import train

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
def launched(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, list[str]]]:
    """A folder with what two processes made of every run, and the shards that they trained on."""
    folder = tmp_path_factory.mktemp("ranks")
    shards = {"train": [shard(folder / "a.tar")]}
    train_twice(
        folder,
        [(job(**options).model_dump(mode="json"), shards, str(folder / name)) for name, (options, _) in RUNS.items()],
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
