"""Half precision, torch.compile, the device's use, and the numbers of fp16's gradient scaler."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from test_train_loop import job, losses, shard, weights

from vlmdata.errors import InputError
from vlmdata.train import checkpoint
from vlmdata.train.loop import build, train
from vlmdata.train.weights import Trained, load_scaler, scaler_state


def run(tmp_path: Path, name: str, **options: Any) -> list[float]:
    """The losses of two steps."""
    out = tmp_path / name
    train(job(steps=2, **options), {"train": [shard(tmp_path / "a.tar")]}, str(out))
    return [loss for _, loss in losses(out)]


def test_bf16_trains_and_stays_close_to_fp32(tmp_path: Path) -> None:
    whole, half = run(tmp_path, "whole"), run(tmp_path, "half", precision="bf16")
    assert np.isfinite(half).all()
    assert half != whole
    np.testing.assert_allclose(half, whole, atol=0.05)
    assert all(value.dtype == np.float32 for value in weights(tmp_path / "half", 2).values())  # the weights stay whole


def test_fp16_without_a_gpu_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(InputError, match="fp16 needs a GPU"):
        run(tmp_path, "half", precision="fp16")


def test_a_compiled_model_trains_to_the_same_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    used = []

    def backend(graph: Any, inputs: Any) -> Any:  # the graphs are run as they are: making C++ of them takes a minute
        used.append(graph)
        return graph.forward

    whole = run(tmp_path, "whole")
    compiled = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: compiled(model, backend=backend))
    assert run(tmp_path, "compiled", compile=True) == pytest.approx(whole, abs=1e-5)
    assert used
    assert weights(tmp_path / "compiled", 2).keys() == weights(tmp_path / "whole", 2).keys()


def test_the_share_of_the_devices_peak_is_logged_where_that_is_known(tmp_path: Path) -> None:
    run(tmp_path, "unknown")
    run(tmp_path, "known", peak_tflops=0.5)
    lines = {name: (tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("unknown", "known")}
    assert not any("mfu" in line for line in lines["unknown"])
    shares = [json.loads(line)["mfu"] for line in lines["known"][:2]]
    assert all(0 < share < 1 for share in shares)


def test_the_scale_of_fp16s_gradients_comes_back_from_a_checkpoint(tmp_path: Path) -> None:
    options = {"init_scale": 1024.0, "growth_interval": 3}
    scaler = torch.amp.GradScaler("cpu", **options)
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.SGD([parameter], lr=0.1)
    for factor in (1.0, 1.0, 1.0, float("inf"), float("inf"), 1.0):  # grows after three steps, shrinks twice
        scaler.scale((parameter * factor).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    made = Trained(job())
    made.accelerator.scaler = scaler
    made.take(build(job()), None)
    checkpoint.save(tmp_path, 5, made.state(), {"frozen": "", "samples": ""}, keep=1, best=0)
    again = Trained(job())
    again.accelerator.scaler = torch.amp.GradScaler("cpu", **options)
    again.take(build(job()), checkpoint.restored(tmp_path, 5))
    assert again.accelerator.scaler.state_dict() == scaler.state_dict()
    assert scaler.state_dict()["scale"] == 512.0
    assert scaler.state_dict()["_growth_tracker"] == 1
    other = torch.amp.GradScaler("cpu", **options)
    other.scale(torch.ones(1))  # one that has begun already
    load_scaler(other, scaler_state(scaler))
    assert other.state_dict() == scaler.state_dict()
    assert isinstance(other.state_dict()["_growth_tracker"], int)


def test_a_checkpoint_of_a_later_version_is_refused(tmp_path: Path) -> None:
    shards = {"train": [shard(tmp_path / "a.tar")]}
    train(job(steps=1), shards, str(tmp_path / "out"))
    path = tmp_path / "out" / "checkpoints" / "1" / "state.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format_version": 2}))
    with pytest.raises(InputError, match="has format_version 2, and this vlmdata reads up to 1"):
        train(job(steps=1), shards, str(tmp_path / "out"), resume=True)
    with pytest.raises(InputError, match=r"state.json: has format_version 2"):
        checkpoint.load(tmp_path / "out")
