"""Cached features: the gradients of small batches, taken together, are those of the large one."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_train_loop import MODEL, job, shard
from torch import Tensor

from vlmdata.errors import DataError
from vlmdata.train import cached, data
from vlmdata.train.loop import build, train
from vlmdata.train.weights import Trained

WHOLE = MODEL | {"vision_cfg": {**MODEL["vision_cfg"], "patch_dropout": 0.0}}  # type: ignore[dict-item]
CNN = MODEL | {"vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 16}}
SEEDS = [11, 12, 13, 14]


def trained(tmp_path: Path, **options: Any) -> tuple[Trained, list[dict[str, Tensor]]]:
    """A model with four micro-batches of two of the eight pictures."""
    torch.manual_seed(0)
    chosen = job(batch=2, accumulate=4, cached=True, **options)
    made = Trained(chosen)
    made.take(build(chosen), None)
    made.begin(0.1)
    samples = made.objective.samples(data.index([shard(tmp_path / "a.tar")], tmp_path), tmp_path)
    return made, [samples.batch(np.arange(start, start + 2), None) for start in range(0, 8, 2)]


def gradients(made: Trained) -> dict[str, Tensor]:
    found = {name: p.grad.clone() for name, p in made.objective.model.named_parameters() if p.grad is not None}
    made.optimizer.zero_grad()
    return found


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert "clip.logit_scale" in one
    for name, value in one.items():
        assert (value - other[name]).norm() <= 1e-6 * other[name].norm() + 1e-9, name


@pytest.mark.parametrize("loss", ["clip", "siglip"])
def test_gradients_are_those_of_the_large_batch(tmp_path: Path, loss: str) -> None:
    made, batches = trained(tmp_path, model=WHOLE, loss=loss)
    found = cached.gradients(made, batches, SEEDS)
    small = gradients(made)
    assert ("clip.logit_bias" in small) == (loss == "siglip")
    whole = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
    expected = made.forward(whole)["contrastive"]
    expected.backward()
    assert_same(small, gradients(made))
    assert found == pytest.approx(expected.item(), abs=1e-6)
    assert max(value.abs().max() for value in small.values()) > 1e-3


def test_dropped_patches_are_the_same_in_both_passes(tmp_path: Path) -> None:
    made, batches = trained(tmp_path, model=MODEL)
    cached.gradients(made, batches, SEEDS)
    small = gradients(made)
    parts = []
    for batch, seed in zip(batches, SEEDS, strict=True):
        torch.manual_seed(seed)
        parts.append(made.forward(batch, of="features"))
    joined = {name: torch.cat([part[name] for part in parts]) for name in ("image", "text")}
    made.objective.model.loss({**joined, "scale": parts[0]["scale"]}).backward()  # type: ignore[operator]
    assert_same(small, gradients(made))


def test_running_statistics_count_a_batch_once(tmp_path: Path) -> None:
    made, batches = trained(tmp_path, model=CNN)
    before = {name: value.clone() for name, value in made.objective.model.named_buffers()}
    cached.gradients(made, batches, SEEDS)
    found = {name: value.clone() for name, value in made.objective.model.named_buffers()}
    for name, value in made.objective.model.named_buffers():
        value.copy_(before[name])
    for batch in batches:
        made.forward(batch)
    for name, value in made.objective.model.named_buffers():
        torch.testing.assert_close(found[name], value)
    assert not torch.equal(found["clip.visual.bn1.running_mean"], before["clip.visual.bn1.running_mean"])


def test_a_run_with_cached_features_is_that_with_the_large_batch(tmp_path: Path) -> None:
    shards = {"train": [shard(tmp_path / "a.tar")]}
    runs = {"large": {"batch": 8}, "cached": {"batch": 2, "accumulate": 4, "cached": True}}
    finals = [
        train(job(model=WHOLE, steps=4, crop=1.0, **options), shards, str(tmp_path / name))
        for name, options in runs.items()
    ]
    assert finals[0]["train/loss"] == pytest.approx(finals[1]["train/loss"], abs=1e-4)
    apart = train(
        job(model=WHOLE, steps=4, crop=1.0, batch=2, accumulate=4), shards, str(tmp_path / "apart")
    )  # a sample against one other and not seven
    assert apart["train/loss"] < finals[1]["train/loss"] - 0.5


def test_a_loss_that_is_not_finite_names_the_whole_batch(tmp_path: Path) -> None:
    options = {"batch": 4, "accumulate": 2, "cached": True, "lr": 1e30, "clip_norm": 1e30, "warmup": 0}
    with pytest.raises(DataError, match=r"loss of step .* is nan.*ugreen"):
        train(job(**options), {"train": [shard(tmp_path / "a.tar")]}, str(tmp_path / "o"))
