"""What a training says: metrics.jsonl, TensorBoard's files, progress lines; how much of the device is used."""

import json
import logging
import math
import re
import time
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from vlmdata.recipe import TrainJob
from vlmdata.train.checkpoint import replace
from vlmdata.train.weights import Trained

if TYPE_CHECKING:
    from torch import Tensor

log = logging.getLogger(__name__)
progress = logging.getLogger("vlmdata.progress")

# Dense peaks in bf16, TFLOP/s, from NVIDIA's data sheets; fp32 runs at a fraction that depends on TF32's setting.
PEAK_BF16 = {
    "A100": 312,
    "A10G": 70,
    "A10": 125,
    "A40": 150,
    "A6000": 155,
    "H100": 989,
    "H200": 989,
    "L4": 121,
    "L40S": 362,
}


class Log:
    """The files of one run; at a resumption what was written after the checkpoint is dropped."""

    def __init__(self, folder: Path, done: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        path = folder / "metrics.jsonl"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        kept = [s for s in lines if done and s.endswith("\n") and json.loads(s)["step"] <= done]
        replace(path, "".join(kept))
        first = json.loads(kept[0]) if kept else {"step": 1}
        before = {} if first.pop("step") else first  # measured before the first step
        self.before: dict[str, float] = {name: math.nan if v is None else v for name, v in before.items()}
        self.ended = any("train/loss" in json.loads(line) for line in kept[-1:])  # the last line of a run is its end's
        self.lines = path.open("a", buffering=1)
        self.board = SummaryWriter(str(folder), purge_step=done + 1)
        self.every = 0.0

    def write(self, step: int, metrics: dict[str, float], steps: int) -> None:
        """Metrics of a step, of an evaluation, or of the end; a line on the terminal every few seconds."""
        if not step:
            self.before = metrics
        known = {name: value if math.isfinite(value) else None for name, value in metrics.items()}  # JSON has no NaN
        self.lines.write(json.dumps({"step": step, **known}) + "\n")
        for name, value in metrics.items():
            self.board.add_scalar(name, value, step)
        progress.info("train %d/%d", step, steps, extra={"stage": "train", "done": step, "total": steps})
        if "loss" not in metrics:
            log.info("step %d of %d: %s", step, steps, ", ".join(f"{k} {v:.3g}" for k, v in metrics.items()))
        elif step == steps or time.monotonic() - self.every > 5:
            self.every = time.monotonic()
            used = f", {100 * metrics['mfu']:.0f} % of the device's peak" if "mfu" in metrics else ""
            log.info(
                "step %d of %d: loss %.3f, rate %.2g, %.0f samples/s, %.0f %% of the time waiting for data%s",
                *(step, steps, metrics["loss"], metrics["lr"]),
                *(metrics["samples_per_second"], 100 * metrics["data_wait"], used),
            )

    def close(self) -> None:
        self.lines.close()
        self.board.close()


class Speed:
    """Model FLOPs utilisation (Chowdhery 2022, arXiv:2204.02311, appendix B), where the device's peak is known."""

    def __init__(self, job: TrainJob, trained: Trained) -> None:
        self.job, self.trained = job, trained
        self.peak = job.peak_tflops or _known_peak(trained.device)
        self.flops = 0.0

    def utilisation(self, samples_per_second: float, batch: "dict[str, Tensor]") -> dict[str, float]:
        """`mfu`, from 0 to 1; nothing where no peak is known. The backward pass counts as two forward ones."""
        if self.peak is None:
            return {}
        if not self.flops:
            self.flops = 3 * self._forward(batch) / self.job.batch
        return {"mfu": samples_per_second * self.flops / (self.peak * 1e12 * self.trained.world)}

    def _forward(self, batch: "dict[str, Tensor]") -> float:
        from torch.utils.flop_counter import FlopCounterMode

        self.trained.model.eval()  # counting changes no running statistics
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            self.trained.forward({name: tensor.to(self.trained.device) for name, tensor in batch.items()})
        return float(counter.get_total_flops())


def _known_peak(device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    words = re.split(r"[ -]", torch.cuda.get_device_name(device))  # such as NVIDIA A100-SXM4-80GB
    return next((peak for name, peak in PEAK_BF16.items() if name in words), None)
