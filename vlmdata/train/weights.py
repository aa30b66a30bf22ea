"""The model that is trained, spread over the processes that train it: gradients, updates, averages, whole states."""

import datetime
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from vlmdata.errors import InputError
from vlmdata.recipe import TrainJob

if TYPE_CHECKING:
    from vlmdata.train.loop import Objective

PATIENCE = datetime.timedelta(hours=6)  # other processes wait while the first one measures or fills a cache


class Trained:
    """An objective's model with its optimiser, in one process or in each of several (torchrun, accelerate launch).

    world, rank: how many processes train, and which one this is. `ddp` copies the model into each; `fsdp` shards it by
    PyTorch's fully_shard (Zhao 2023, arXiv:2304.11277), layer by layer.
    """

    def __init__(self, job: TrainJob) -> None:
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState
        from accelerate.utils import InitProcessGroupKwargs

        if job.precision == "fp16" and not torch.cuda.is_available():
            raise InputError("precision: fp16 needs a GPU, and there is none here: take bf16 or fp32")
        AcceleratorState._reset_state()  # it refuses another precision than that of an earlier run in this process
        self.job = job
        self.accelerator = Accelerator(
            mixed_precision="no" if job.precision == "fp32" else job.precision,
            cpu=not torch.cuda.is_available(),
            kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)],
        )
        self.world, self.rank = self.accelerator.num_processes, self.accelerator.process_index
        self.device = self.accelerator.device
        self.sharded = self.world > 1 and job.parallel == "fsdp"
        self.objective: Objective
        self.optimizer: Any
        self.average: dict[str, Tensor] = {}

    def take(self, objective: "Objective", restored: dict[str, dict[str, Tensor]] | None) -> None:
        """Spread the objective's model and make its optimiser; `restored` is what `state` gave of an earlier run, whose
        `model` the objective has already (see `load`)."""
        self.objective = objective
        bare = objective.model.to(self.device)
        if self.sharded:
            _shard(bare)
            self.model: nn.Module = bare
        else:
            self.model = self.accelerator.prepare(bare)
        self.optimizer = self.accelerator.prepare(_optimizer(bare, self.job))
        self.compiled = torch.compile(self.model) if self.job.compile else self.model
        if self.job.ema:
            self.average = {name: p.detach().clone() for name, p in self._trainable()}
        if restored:
            parameters = dict(bare.named_parameters())
            for key, value in restored["optimizer"].items():
                name, _, what = key.rpartition("/")
                like = parameters[name]
                self.optimizer.state[like][what] = value if what == "step" else _as(value, like)
            for name, value in restored.get("average", {}).items():
                self.average[name] = _as(value, parameters[name])
            if self.accelerator.scaler is not None and "scaler" in restored:
                load_scaler(self.accelerator.scaler, restored["scaler"])

    def _trainable(self) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, p) for name, p in self.objective.model.named_parameters() if p.requires_grad)

    def begin(self, rate: float) -> None:
        """Begin a step at a learning rate."""
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad()
        self.model.train()

    @contextmanager
    def pass_of(self, last: bool) -> Iterator[None]:
        """Around a forward and backward pass: gradients are exchanged in the last one of a step."""
        with ExitStack() as stack:
            if not last and not self.sharded:
                stack.enter_context(self.accelerator.no_sync(self.model))
            yield

    def forward(self, *given: Any, **named: Any) -> dict[str, Tensor]:
        """The model's output, in the precision asked for."""
        with self.accelerator.autocast():
            return self.compiled(*given, **named)

    def backward(self, loss: Tensor) -> None:
        """Add this loss's gradients. The processes' losses count as their sum, where torch would take their mean."""
        self.accelerator.backward(loss * self.world)

    def update(self) -> float:
        """Clip the gradients and take the step; the gradients' norm before clipping. No step where it is not finite."""
        if self.sharded:
            norm = self._clip_sharded()
        else:
            norm = self.accelerator.clip_grad_norm_(self.model.parameters(), self.job.clip_norm)
        if not torch.isfinite(norm) and self.accelerator.scaler is None:  # fp16's scaler deals with its own overflows
            return float(norm)
        self.optimizer.step()  # which fp16's scaler makes a step of nothing where the norm is not finite
        for name, parameter in self._trainable() if self.average and torch.isfinite(norm) else ():
            self.average[name].lerp_(parameter.detach(), 1 - self.job.ema)
        return float(norm)

    def _clip_sharded(self) -> Tensor:
        """As torch's clip_grad_norm_, which takes no mixture of sharded and whole gradients."""
        gradients = [p.grad for _, p in self._trainable() if p.grad is not None]
        for gradient in gradients:
            if gradient.ndim == 0:  # a scalar is whole in every process, so torch leaves its mean to us
                torch.distributed.all_reduce(gradient)
                gradient /= self.world
        norm = torch.stack([_whole(torch.linalg.vector_norm(gradient)) for gradient in gradients]).norm()
        for gradient in gradients:
            gradient *= (self.job.clip_norm / (norm + 1e-6)).clamp(max=1.0)
        return norm

    def summed(self, values: dict[str, float]) -> dict[str, float]:
        """Each value's sum over the processes."""
        if self.world == 1:
            return values
        sums = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        torch.distributed.all_reduce(sums)
        return dict(zip(values, sums.tolist(), strict=True))

    def agreed(self, value: bool) -> bool:
        """What the first process says."""
        if self.world == 1:
            return value
        said = torch.tensor([value], dtype=torch.int32, device=self.device)
        torch.distributed.broadcast(said, 0)
        return bool(said.item())

    def main_first(self) -> AbstractContextManager[None]:
        """The first process goes through the block before the others do."""
        return self.accelerator.main_process_first()

    def wait(self) -> None:
        """Until all processes are here."""
        self.accelerator.wait_for_everyone()

    def state(self) -> dict[str, dict[str, Tensor]]:
        """What exact resume needs, whole and on the CPU: `model` (what is trained, and buffers), `optimizer`'s moments,
        the `average` where there is one, with fp16 the `scaler`'s numbers. To be called by all processes."""
        bare = self.objective.model
        locked = {name for name, p in bare.named_parameters() if not p.requires_grad}
        names = {parameter: name for name, parameter in bare.named_parameters()}
        moments = {
            f"{names[parameter]}/{key}": _cpu(value)
            for parameter, values in self.optimizer.optimizer.state.items()
            for key, value in values.items()
        }
        kept = {
            "model": {name: _cpu(value) for name, value in bare.state_dict().items() if name not in locked},
            "optimizer": moments,
        }
        if self.average:
            kept["average"] = {name: _cpu(value) for name, value in self.average.items()}
        if self.accelerator.scaler is not None:
            kept["scaler"] = scaler_state(self.accelerator.scaler)
        return kept

    @contextmanager
    def measured(self) -> Iterator["Objective | None"]:
        """The objective with the weights that are measured and exported, the averaged ones if there are: in the first
        process; None in the others. To be entered by all."""
        from vlmdata.train.loop import build

        if self.sharded:
            state = self.state()
            whole = build(self.job) if self.rank == 0 else None
            if whole:
                load(whole.model, state["model"] | state.get("average", {}))
                whole.model.to(self.device).eval()
            yield whole
            return
        own = {name: p.detach().clone() for name, p in self._trainable()} if self.average else {}
        _replace(self._trainable(), self.average)
        try:
            self.objective.model.eval()
            yield self.objective if self.rank == 0 else None
        finally:
            _replace(self._trainable(), own)


def _optimizer(model: nn.Module, job: TrainJob) -> torch.optim.Optimizer:
    """AdamW with CLIP's betas (Radford 2021, table 18); scales and biases are not decayed."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": job.weight_decay},
        {"params": [p for p in parameters if p.ndim == 1], "weight_decay": 0.0},
        {"params": [p for p in parameters if p.ndim == 0], "weight_decay": 0.0},  # apart: these are never sharded
    ]
    # fused: each weight is read and written once a step, where the plain one goes over all of them for every operation
    return torch.optim.AdamW([g for g in groups if g["params"]], lr=job.lr, betas=(0.9, 0.98), eps=1e-6, fused=True)


def _shard(model: nn.Module) -> None:
    """Every layer of the model's stacks on its own, then the rest."""
    from torch.distributed.fsdp import fully_shard

    scalars = {p for p in model.parameters() if p.ndim == 0}  # which fully_shard refuses
    for module in list(model.modules()):
        for layer in module if isinstance(module, nn.ModuleList) else ():
            fully_shard(layer, ignored_params=scalars)
    fully_shard(model, ignored_params=scalars)


def load(model: nn.Module, state: dict[str, Tensor]) -> None:
    """Load what `Trained.state` holds: all but the locked parameters, which the objective made already."""
    missing, unknown = model.load_state_dict(state, strict=False)
    locked = {name for name, p in model.named_parameters() if not p.requires_grad}
    strange = {*unknown, *set(missing) - locked}
    assert not strange, f"these weights are not of one model and checkpoint: {sorted(strange)}"


def scaler_state(scaler: Any) -> dict[str, Tensor]:
    """The numbers of fp16's gradient scaler (torch.amp.GradScaler), float64: its scale, and steps since it changed."""
    return {name: torch.tensor(value, dtype=torch.float64) for name, value in scaler.state_dict().items()}


def load_scaler(scaler: Any, state: dict[str, Tensor]) -> None:
    """Give a scaler what `scaler_state` read, each number of the kind that the scaler has."""
    kinds = {name: type(value) for name, value in scaler.state_dict().items()}
    scaler.load_state_dict({name: kind(state[name].item()) for name, kind in kinds.items()})


def _whole(value: Any) -> Any:
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def _cpu(value: Tensor) -> Tensor:
    return _whole(value.detach()).cpu().contiguous()


def _as(value: Tensor, like: Any) -> Tensor:
    """A whole tensor where and as a parameter is: on its device, sharded if that is."""
    if hasattr(like, "full_tensor"):
        from torch.distributed.tensor import distribute_tensor

        return distribute_tensor(value.to(like.device), like.device_mesh, like.placements)
    return value.to(like.device)


def _replace(parameters: Iterator[tuple[str, nn.Parameter]], values: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in parameters:
            if name in values:
                parameter.copy_(values[name])
