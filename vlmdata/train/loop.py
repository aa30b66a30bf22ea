"""The training loop, the same for every objective: batches by number, steps, checkpoints, exact resume, logs.

Everything random is a function of (seed, step): which samples a batch holds, their augmentation, and dropout, whose
seed is set before each forward pass. A checkpoint therefore holds weights, the optimiser's state and a step, and no
random state. On a CPU with the same number of threads a resumed run ends with the weights of one never stopped, bit
for bit.
"""

import hashlib
import importlib
import json
import logging
import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from vlmdata.errors import DataError, InputError
from vlmdata.recipe import TrainJob
from vlmdata.train import data

log = logging.getLogger(__name__)
progress = logging.getLogger("vlmdata.progress")

# Keys that may differ between a run and its resumption: they change no number.
_FREE = {"name", "workers", "save_every", "eval_every", "keep"}


class Samples(Protocol):
    """What an objective makes of the shards of one split."""

    uids: tuple[str, ...]

    def batch(self, places: np.ndarray, seed: tuple[int, ...] | None) -> dict[str, Tensor]:
        """The samples at `places`; `seed` is that of the augmentation, None for none. Called by several threads."""
        ...


class Objective(Protocol):
    """A model and its loss; `vlmdata/train/<objective>.py` makes one with `build(job)`."""

    model: nn.Module  # forward(batch) gives the loss, a scalar; its state_dict is what a checkpoint holds

    def samples(self, shards: data.Index, out: Path) -> Samples: ...

    def evaluate(self, samples: Samples, batch: int) -> dict[str, float]:
        """Metrics under flat names such as `retrieval/image_to_text/R@10`, each with `<name>/chance` beside it."""
        ...

    def export(self, folder: Path) -> None:
        """Write the trained model into a folder, in the form that its library loads."""
        ...


def learning_rate(job: TrainJob, step: int) -> float:
    """The rate of a step (from 0): a linear warm-up to `lr`, then half a cosine to 0 at `steps`."""
    if step < job.warmup:
        return job.lr * (step + 1) / job.warmup
    return job.lr * 0.5 * (1 + math.cos(math.pi * (step - job.warmup) / max(1, job.steps - job.warmup)))


def train(
    job: TrainJob,
    shards: dict[str, list[str]],
    out: str,
    resume: bool = False,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
) -> dict[str, float]:
    """Train on the tars of `shards[job.train_split]` and measure on those of `shards[job.test_split]`, if there are.

    shards: from the split's name to its WebDataset tars (paths or fsspec URLs), in order.
    out: a local folder for config.json, checkpoints/<step>/, metrics.jsonl, TensorBoard's files and model/.
    resume: go on from the newest checkpoint in `out`; where there is none, begin.
    on_step: called after each step with the number of steps done and the step's metrics.

    Returns the final metrics under flat names. Raises InputError for shards without enough samples, for an `out` that
    holds another run, and for a job or data that differ from the run to be resumed; DataError where the loss is not
    finite, naming the batch's uids.
    """
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    torch.set_num_threads(job.threads)
    AcceleratorState._reset_state()  # it refuses another precision than that of an earlier run in this process
    accelerator = Accelerator(mixed_precision="no" if job.precision == "fp32" else job.precision)
    folder = Path(out)
    done, state = _begin(job, folder, resume)
    if not shards.get(job.train_split):
        raise InputError(f"there are no shards of the split {job.train_split!r}; there are {', '.join(shards)}")

    torch.manual_seed(job.seed)
    objective = importlib.import_module(f"vlmdata.train.{job.objective}").build(job)
    samples = objective.samples(data.index(shards[job.train_split]), folder)
    test = objective.samples(data.index(shards.get(job.test_split, [])), folder)
    identity = hashlib.sha256("\n".join(samples.uids).encode()).hexdigest()
    if done and state["samples"] != identity:
        raise InputError(f"{out}: the run to resume was trained on other samples; train into another folder")
    data.positions(len(samples.uids), job.batch * accelerator.num_processes, job.seed, 0)

    bare = objective.model
    optimizer = _optimizer(bare, job)
    if done:
        _restore(folder / "checkpoints" / str(done), bare, optimizer)
    model, optimizer = accelerator.prepare(bare, optimizer)
    writer = _Writer(folder, done) if accelerator.is_main_process else None

    world, rank = accelerator.num_processes, accelerator.process_index

    def load(number: int) -> tuple[np.ndarray, dict[str, Tensor]]:
        """Micro-batch `number`: all ranks' parts of it are one batch of the epoch's permutation."""
        places = data.positions(len(samples.uids), job.batch * world, job.seed, number)
        places = places[rank * job.batch : (rank + 1) * job.batch]
        return places, samples.batch(places, (job.seed, number, rank))

    batches = data.ahead(load, range(done * job.accumulate, job.steps * job.accumulate), job.workers)
    metrics: dict[str, float] = {}
    for step in range(done, job.steps):
        metrics = _step(job, step, accelerator, model, optimizer, batches, samples)
        if writer:
            writer.write(step + 1, metrics, job.steps)
            if (step + 1) % job.save_every == 0 or step + 1 == job.steps:
                _save(folder, step + 1, bare, optimizer.optimizer, identity, job.keep)
            if test.uids and (step + 1) % job.eval_every == 0 and step + 1 < job.steps:
                writer.write(step + 1, objective.evaluate(test, job.batch), job.steps)
        if on_step:
            on_step(step + 1, metrics)

    final = {"train/loss": metrics["loss"] if metrics else float(state["loss"]), "train/samples": len(samples.uids)}
    if accelerator.is_main_process and writer:
        if test.uids:
            final |= objective.evaluate(test, job.batch)
        writer.write(job.steps, final, job.steps)
        writer.close()
        objective.export(folder / "model")
    accelerator.wait_for_everyone()
    return final


def _step(
    job: TrainJob,
    step: int,
    accelerator: Any,
    model: nn.Module,
    optimizer: Any,
    batches: Iterator[tuple[np.ndarray, dict[str, Tensor]]],
    samples: Samples,
) -> dict[str, float]:
    """One step of the optimiser over `accumulate` micro-batches; the loss is their mean."""
    rate = learning_rate(job, step)
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad()
    model.train()
    started, waited, total = time.perf_counter(), 0.0, 0.0
    for micro in range(job.accumulate):
        asked = time.perf_counter()
        places, batch = next(batches)
        waited += time.perf_counter() - asked
        batch = {name: tensor.to(accelerator.device) for name, tensor in batch.items()}
        torch.manual_seed(_seed(job.seed, step, micro, accelerator.process_index))
        with accelerator.no_sync(model) if micro + 1 < job.accumulate else nullcontext():
            with accelerator.autocast():
                loss = model(batch)
            if not torch.isfinite(loss):
                names = ", ".join(samples.uids[place] for place in places)
                raise DataError(f"the loss of step {step + 1} is {loss.item()}; try a smaller `lr`. The batch: {names}")
            accelerator.backward(loss / job.accumulate)
        total += loss.item() / job.accumulate
    norm = accelerator.clip_grad_norm_(model.parameters(), job.clip_norm)
    optimizer.step()
    seconds = time.perf_counter() - started
    return {
        "loss": total,
        "lr": rate,
        "grad_norm": float(norm),
        "samples_per_second": job.batch * job.accumulate * accelerator.num_processes / seconds,
        "data_wait": waited / seconds,
    }


def _seed(*numbers: int) -> int:
    """A seed of 64 bits from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1


def _optimizer(model: nn.Module, job: TrainJob) -> torch.optim.Optimizer:
    """AdamW with CLIP's betas (Radford 2021, table 18); scales and biases are not decayed."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": job.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=job.lr, betas=(0.9, 0.98), eps=1e-6)


def _begin(job: TrainJob, folder: Path, resume: bool) -> tuple[int, dict[str, Any]]:
    """Write config.json, or compare with the one that is there; the steps already done, and the checkpoint's state."""
    config = job.model_dump(mode="json")
    written = folder / "config.json"
    steps = sorted(int(p.name) for p in (folder / "checkpoints").glob("[0-9]*"))
    if steps and not resume:
        raise InputError(f"{folder}: holds a run already; go on with --resume, or train into another folder")
    if steps:
        before = json.loads(written.read_text())
        for key in sorted((before.keys() | config.keys()) - _FREE):
            if before.get(key) != config.get(key):
                raise InputError(
                    f"{folder}: its run has {key}: {before.get(key)!r}, this one {config.get(key)!r}; "
                    "train into another folder"
                )
        return steps[-1], json.loads((folder / "checkpoints" / str(steps[-1]) / "state.json").read_text())
    folder.mkdir(parents=True, exist_ok=True)
    _replace(written, json.dumps(config, indent=1, sort_keys=True) + "\n")
    return 0, {}


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(path.name + ".partial")
    partial.write_text(text)
    os.replace(partial, path)


def _save(folder: Path, step: int, model: nn.Module, optimizer: Any, identity: str, keep: int) -> None:
    """Write checkpoints/<step> under another name, then rename it; of older ones the last keep - 1 stay."""
    checkpoints = folder / "checkpoints"
    partial = checkpoints / f".{step}.partial"
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({k: v.detach().cpu().contiguous() for k, v in model.state_dict().items()}, partial / "model.safetensors")
    names = {parameter: name for name, parameter in model.named_parameters()}
    moments = {
        f"{names[parameter]}/{key}": value.detach().cpu().contiguous()
        for parameter, values in optimizer.state.items()
        for key, value in values.items()
    }
    save_file(moments, partial / "optimizer.safetensors")
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    losses = [row["loss"] for row in map(json.loads, lines) if row["step"] == step and "loss" in row]
    state = {"format_version": 1, "step": step, "samples": identity, "loss": losses[-1]}
    (partial / "state.json").write_text(json.dumps(state, sort_keys=True) + "\n")
    shutil.rmtree(checkpoints / str(step), ignore_errors=True)
    os.replace(partial, checkpoints / str(step))
    for old in sorted(int(p.name) for p in checkpoints.glob("[0-9]*"))[:-keep]:
        shutil.rmtree(checkpoints / str(old))


def _restore(checkpoint: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    model.load_state_dict(load_file(checkpoint / "model.safetensors"))
    parameters = dict(model.named_parameters())
    for key, value in load_file(checkpoint / "optimizer.safetensors").items():
        name, _, what = key.rpartition("/")
        optimizer.state[parameters[name]][what] = value.to(parameters[name].device if what != "step" else "cpu")


class _Writer:
    """metrics.jsonl, TensorBoard's files and the progress lines; at a resumption later lines are dropped."""

    def __init__(self, folder: Path, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = folder / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        _replace(path, "".join(s for s in lines if s.endswith("\n") and json.loads(s)["step"] <= done))
        self.lines = path.open("a", buffering=1)
        self.board = SummaryWriter(str(folder), purge_step=done + 1)
        self.every = 0.0

    def write(self, step: int, metrics: dict[str, float], steps: int) -> None:
        self.lines.write(json.dumps({"step": step, **metrics}) + "\n")
        for name, value in metrics.items():
            self.board.add_scalar(name, value, step)
        progress.info("train %d/%d", step, steps, extra={"stage": "train", "done": step, "total": steps})
        if "loss" in metrics and (step == steps or time.monotonic() - self.every > 5):
            self.every = time.monotonic()
            log.info(
                "step %d of %d: loss %.3f, rate %.2g, %.0f samples/s, %.0f %% of the time waiting for data",
                *(step, steps, metrics["loss"], metrics["lr"]),
                *(metrics["samples_per_second"], 100 * metrics["data_wait"]),
            )
        elif "loss" not in metrics:
            log.info("step %d of %d: %s", step, steps, ", ".join(f"{k} {v:.3g}" for k, v in metrics.items()))

    def close(self) -> None:
        self.lines.close()
        self.board.close()
