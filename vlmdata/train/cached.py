"""Large contrastive batches by cached features (GradCache, Gao 2021, arXiv:2101.06983).

A contrastive loss compares every sample of a batch with every other one, so the losses of small batches do not add up
to that of a large one. Here the features of all micro-batches are computed first, without what a gradient needs; the
loss over all of them gives the features' gradients; then each micro-batch is computed again and these are carried on
into the towers. Memory is that of one micro-batch, and a step costs a third more.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vlmdata.train.weights import Trained


def gradients(trained: Trained, batches: Sequence[dict[str, Tensor]], seeds: Sequence[int]) -> float:
    """Add the gradients of one loss over the micro-batches of all processes; this process's part of that loss.

    The model's forward(batch, of="features") gives `image` and `text`, [b, d], and scalars; its `loss` takes all of
    that. seeds: of each micro-batch's random numbers, the same in both passes.
    """
    found = []
    with torch.no_grad(), _statistics_kept(trained.objective.model):
        for batch, seed in zip(batches, seeds, strict=True):
            found.append(_features(trained, batch, seed))
    leaves = {
        name: (torch.cat([each[name] for each in found]) if last.ndim else last).float().requires_grad_()
        for name, last in found[-1].items()
    }
    loss: Tensor = trained.objective.model.loss(leaves) / trained.world  # type: ignore[operator]
    wanted = dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))
    start = 0
    for micro, (batch, seed) in enumerate(zip(batches, seeds, strict=True)):
        last = micro + 1 == len(batches)
        with trained.pass_of(last):
            features = _features(trained, batch, seed)
            stop = start + len(features["image"])
            # The scalars' gradients are of the whole step, and the processes add theirs up in its last pass.
            parts = [
                (value * (wanted[name][start:stop] if value.ndim else wanted[name])).sum()
                for name, value in features.items()
                if value.ndim or last
            ]
            trained.backward(torch.stack(parts).sum())
        start = stop
    return loss.item()


def _features(trained: Trained, batch: dict[str, Tensor], seed: int) -> dict[str, Tensor]:
    torch.manual_seed(seed)
    return trained.forward({name: tensor.to(trained.device) for name, tensor in batch.items()}, of="features")


@contextmanager
def _statistics_kept(model: nn.Module) -> Iterator[None]:
    """The first pass does not count for the running statistics of batch norms; the second one does."""
    kept = {name: value.clone() for name, value in model.named_buffers()}
    yield
    for name, value in model.named_buffers():
        value.copy_(kept[name])
