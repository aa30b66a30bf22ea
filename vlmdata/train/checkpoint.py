"""Checkpoints: safetensors and JSON under `checkpoints/<step>`, written aside and renamed; nothing is unpickled."""

import hashlib
import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlmdata.errors import DataError, InputError
from vlmdata.recipe import AnyTrainJob, TrainJob
from vlmdata.train import places, weights

# Keys that may differ between a run and its resumption: they change no number.
_FREE = {"name", "on", "workers", "save_every", "eval_every", "keep", "best", "peak_tflops"}
_FORMAT = 1


def begin(job: TrainJob, folder: Path, resume: bool, trained: weights.Trained) -> tuple[int, dict[str, Any]]:
    """Write config.json, or compare with the one that is there; the steps already done, and the checkpoint's state.

    Raises InputError for a folder with a run that is not to be, or cannot be, gone on with.
    """
    config = places.absolute(job.model_dump(mode="json")) | {"processes": trained.world}
    steps = _steps(folder)
    if steps and not resume:
        raise InputError(f"{folder}: holds a run already; go on with --resume, or train into another folder")
    if steps:
        before = places.absolute(_read(folder / "config.json"))
        for key in sorted((before.keys() | config.keys()) - _FREE):
            if before.get(key) != config.get(key):
                raise InputError(
                    f"{folder}: its run has {key}: {before.get(key)!r}, this one {config.get(key)!r}; "
                    "train into another folder"
                )
        return steps[-1], _state(folder, steps[-1])
    trained.wait()  # no other process may find what this one writes
    if trained.rank == 0:
        folder.mkdir(parents=True, exist_ok=True)
        replace(folder / "config.json", json.dumps(config, indent=1, sort_keys=True) + "\n")
    trained.wait()
    return 0, {}


def replace(path: Path, text: str) -> None:
    """Write a file under another name, then rename it."""
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def save(
    folder: Path, step: int, content: dict[str, dict[str, Tensor]], about: dict[str, Any], keep: int, best: int
) -> None:
    """Write checkpoints/<step>: a .safetensors for each part of `content`, and `about` in state.json.

    Of older ones the last keep - 1 stay, and the one of step `best`.
    """
    checkpoints = folder / "checkpoints"
    partial = checkpoints / f".{step}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for part, tensors in content.items():
        save_file(tensors, partial / f"{part}.safetensors")
    state = {"format_version": _FORMAT, "step": step, **about}
    (partial / "state.json").write_text(json.dumps(state, sort_keys=True) + "\n")
    shutil.rmtree(checkpoints / str(step), ignore_errors=True)
    os.replace(partial, checkpoints / str(step))
    prune(folder, keep, best)


def prune(folder: Path, keep: int, best: int) -> None:
    """Delete the checkpoints but the last `keep` and the one of step `best`."""
    for old in _steps(folder)[:-keep]:
        if old != best:
            shutil.rmtree(folder / "checkpoints" / str(old))


def restored(folder: Path, step: int) -> dict[str, dict[str, Tensor]]:
    """What `save` wrote of the tensors. Raises DataError, naming the file, for one that is damaged."""
    found = {}
    for path in sorted((folder / "checkpoints" / str(step)).glob("*.safetensors")):
        try:
            found[path.stem] = load_file(path)
        except (SafetensorError, OSError) as error:
            raise DataError(
                f"{path}: damaged ({error}); delete the folder {path.parent} to use an older one"
            ) from error
    return found


def load(path: str | Path) -> Any:
    """The objective (`vlmdata.train.loop.Objective`) that a run trained, ready to be measured or asked.

    path: the `--out` of a training, whose newest checkpoint is taken, or one of its checkpoints/<step>. The averaged
    weights are taken where there are some. Raises InputError for a folder that holds no training of this version.
    """
    from vlmdata.train.loop import build

    folder, step, job = run_of(path)
    state, found = _state(folder, step), restored(folder, step)
    objective = build(job)
    if state["frozen"] != frozen_identity(objective.model):
        raise InputError(f"{path}: the locked part of the model is not the one it was trained with")
    weights.load(objective.model, found["model"] | found.get("average", {}))
    objective.model.eval()
    return objective


def run_of(path: str | Path) -> tuple[Path, int, TrainJob]:
    """The --out of the training that `load` would take, the step, and the job. Raises InputError as `load` does."""
    given = Path(path)
    one = given.parent.name == "checkpoints" and given.name.isdigit() and given.is_dir()
    folder, steps = (given.parent.parent, [int(given.name)]) if one else (given, _steps(given))
    if not steps or not (folder / "config.json").is_file():
        raise InputError(f"{path}: holds no checkpoint; name the --out of a training, or one of its checkpoints/<step>")
    config = _read(folder / "config.json")
    config.pop("processes", None)
    try:
        job: TrainJob = TypeAdapter[TrainJob](AnyTrainJob).validate_python(config)
    except ValidationError as error:
        raise InputError(f"{folder / 'config.json'}: not this version's: {error.errors()[0]['msg']}") from error
    return folder, steps[-1], job


def frozen_identity(model: nn.Module) -> str:
    """Hex sha256 of the parameters that are not trained, which no checkpoint holds."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            digest.update(name.encode())
            digest.update(parameter.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


class Best:
    """The step whose checkpoint was best by a metric, in best.json; 0 for none. `-name`: less is better."""

    def __init__(self, folder: Path, metric: str | None, done: int) -> None:
        self.path, self.metric = folder / "best.json", metric
        known = _read(self.path) if metric and self.path.exists() else {}
        mine = bool(known) and known["metric"] == metric and known["step"] <= done
        self.step: int = known["step"] if mine else 0
        self.value: float | None = known["value"] if mine else None

    def value_of(self, metrics: dict[str, float]) -> float | None:
        """The metric's value; None where there is no metric to go by, or nothing was measured in this process.

        Raises InputError, with the names there are, for a metric that is none of them."""
        if self.metric is None or not metrics:
            return None
        name = self.metric.removeprefix("-")
        if name not in metrics:
            raise InputError(f"best: there is no metric {name!r}; there are {', '.join(sorted(metrics))}")
        return metrics[name]

    def improved(self, step: int, metrics: dict[str, float]) -> bool:
        """Whether these metrics are the best so far, and finite; then they are noted. Raises as `value_of`."""
        value = self.value_of(metrics)
        if self.metric is None or value is None or not math.isfinite(value):
            return False
        if self.value is not None and (value >= self.value if self.metric.startswith("-") else value <= self.value):
            return False
        self.step, self.value = step, value
        replace(self.path, json.dumps({"metric": self.metric, "step": step, "value": value}) + "\n")
        return True


def _steps(folder: Path) -> list[int]:
    return sorted(int(p.name) for p in (folder / "checkpoints").glob("[0-9]*"))


def _state(folder: Path, step: int) -> dict[str, Any]:
    """A checkpoint's state.json. Raises InputError for one that a later version wrote."""
    path = folder / "checkpoints" / str(step) / "state.json"
    state = _read(path)
    if state["format_version"] > _FORMAT:
        raise InputError(
            f"{path}: has format_version {state['format_version']}, and this vlmdata reads up to {_FORMAT}: take a "
            "newer one"
        )
    return state


def _read(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error
