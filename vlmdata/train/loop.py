"""The training loop, the same for every objective: batches by number, steps, checkpoints, exact resume, logs.

Everything random is a function of (seed, number of the batch, place in it): which samples a batch holds, their
augmentation and masks; dropout's seed is set before each forward pass. A checkpoint therefore holds weights, the
optimiser's state and a step, and no random state. On a CPU with the same number of threads and processes a resumed run
ends with the weights of one never stopped, bit for bit.
"""

import hashlib
import importlib
import logging
import math
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from vlmdata.errors import DataError, InputError, VlmdataError
from vlmdata.recipe import ContrastiveJob, TrainJob
from vlmdata.train import cached, checkpoint, data, order, source
from vlmdata.train.log import Log, Speed
from vlmdata.train.weights import Trained
from vlmdata.train.weights import load as load_weights

log = logging.getLogger(__name__)

SKIPPED_IN_A_ROW = 10  # steps without a finite loss after which even `not_finite: skip` gives up


class Samples(Protocol):
    """What an objective makes of the shards of one split."""

    uids: tuple[str, ...]
    first: np.ndarray  # int64 [n]: of each sample the place in the index, of the first one where it holds several
    broken: set[str]  # the uids that could not be decoded so far; another sample stood in for each

    def batch(self, places: np.ndarray, seeds: np.ndarray | None) -> dict[str, Tensor]:
        """The samples at `places`, as many as asked for; called by several threads.

        seeds: uint64 [b], for each sample that of its augmentation and masks (`order.uniform`); None for evaluation.
        """
        ...


class Objective(Protocol):
    """A model and its losses; `vlmdata/train/<objective>.py` makes one with `build(job)`."""

    model: nn.Module  # forward(batch) gives the losses by name: scalars, each the mean of its terms
    weights: dict[str, float]  # of every loss in the total

    def terms(self, batch: dict[str, Tensor]) -> dict[str, float]:
        """How many terms each loss of a batch is the mean of: the losses of the batches of a step, and of the ranks,
        count by these, so that many small batches give the loss of a large one. 1 for a loss that is no such mean."""
        ...

    def samples(self, shards: data.Index, out: Path) -> Samples: ...

    def evaluate(self, samples: Samples, batch: int) -> dict[str, float]:
        """Metrics under flat names such as `retrieval/image_to_text/R@10`, each with `<name>/chance` beside it."""
        ...

    def export(self, folder: Path) -> None:
        """Write the trained model into a folder, in the form that its library loads."""
        ...


def build(job: TrainJob) -> Objective:
    """The objective that a job names. Raises InputError for a model that cannot be made."""
    return importlib.import_module(f"vlmdata.train.{job.objective}").build(job)  # type: ignore[attr-defined]


def learning_rate(job: TrainJob, step: int) -> float:
    """The rate of a step (from 0): a linear warm-up to `lr`; then it stays, or falls by half a cosine to 0."""
    if step < job.warmup:
        return job.lr * (step + 1) / job.warmup
    if job.schedule == "constant":
        return job.lr
    return job.lr * 0.5 * (1 + math.cos(math.pi * (step - job.warmup) / max(1, job.steps - job.warmup)))


def train(
    job: TrainJob,
    shards: dict[str, list[str]],
    out: str,
    resume: bool = False,
    on_step: Callable[[int, dict[str, float]], None] | None = None,
    only: Mapping[str, int] | None = None,
    cache: str | None = None,
    finished: Callable[[Objective, Samples], None] | None = None,
) -> dict[str, float]:
    """Train on the shards of `shards[job.train_split]` and measure on those of `shards[job.test_split]`, if there are.

    shards: from the split's name to its WebDataset tars or Parquet shards (paths or fsspec URLs), in order.
    out: a local folder for config.json, checkpoints/<step>/, metrics.jsonl, TensorBoard's files and model/; where
    several processes train together, one that all of them see.
    resume: go on from the newest checkpoint in `out`; where there is none, begin.
    on_step: called after each step with the number of steps done and the step's metrics.
    only: uid -> copies: of the job's own shards only these samples are trained on, each so many times an epoch.
    cache: a local folder for what an objective computes once of all samples, such as a frozen tower's features; `out`
    otherwise. Runs on other selections of the same shards share it.
    finished: called at the end with the trained objective and the samples of the test split.

    Returns the final metrics under flat names. Raises InputError for shards without enough samples, for an `out` that
    holds another run, and for a job or data that differ from the run to be resumed; DataError where the loss is not
    finite, naming the batch's uids.
    """
    torch.set_num_threads(job.threads)
    trained = Trained(job)
    folder, main = Path(out), trained.rank == 0
    done, state = checkpoint.begin(job, folder, resume, trained)
    if not shards.get(job.train_split):
        raise InputError(f"there are no shards of the split {job.train_split!r}; there are {', '.join(shards)}")

    torch.manual_seed(job.seed)
    objective = build(job)
    objective.model.to(trained.device)  # what is computed once of locked towers is computed there too
    restored = checkpoint.restored(folder, done) if done else None
    if restored:  # before the samples: what an objective learns from these, such as codes, is not learnt again
        load_weights(objective.model, restored["model"])
    with trained.main_first():  # what an objective caches in `out` is made once
        kept = Path(cache) if cache else folder
        own = source.of_job(job, shards[job.train_split], kept)
        samples, places = _mixed(job, objective, own, kept, only)
        test = objective.samples(data.index(shards.get(job.test_split, []), kept), kept)
    if test.broken and not test.uids:
        raise DataError(
            f"none of the {len(test.broken)} samples of the split {job.test_split!r} can be decoded and read"
        )
    weights = [1.0, *(other.weight for other in job.mix)]
    order.mixed_positions(places, weights, job.batch * trained.world, job.seed, 0)  # raises for too few samples
    about = {"samples": _sha256(samples.uids), "frozen": checkpoint.frozen_identity(objective.model)}
    if done and state["samples"] != about["samples"]:
        raise InputError(f"{out}: the run to resume was trained on other samples; train into another folder")
    if done and state["frozen"] != about["frozen"]:
        raise InputError(f"{out}: the locked part of the model is not that of the run to resume")
    trained.take(objective, restored)

    def load(number: int) -> tuple[np.ndarray, dict[str, Tensor]]:
        """Micro-batch `number`: all ranks' parts of it are one batch of the epoch's permutation."""
        slots = range(trained.rank * job.batch, (trained.rank + 1) * job.batch)
        every = order.mixed_positions(places, weights, job.batch * trained.world, job.seed, number)
        chosen = every[slots.start : slots.stop]
        return chosen, samples.batch(chosen, order.seeds(job.seed, number, slots))

    batches = data.ahead(load, range(done * job.accumulate, job.steps * job.accumulate), job.workers)
    journal = Log(folder, done) if main else None
    best = checkpoint.Best(folder, job.best, done)
    speed = Speed(job, trained)
    metrics: dict[str, float] = {}

    def measure() -> dict[str, float]:
        """Where the first process cannot measure, all end: the others would wait for it."""
        failed: VlmdataError | None = None
        found: dict[str, float] = {}
        with trained.measured() as measured:
            try:
                found = measured.evaluate(test, job.batch) if measured and test.uids else {}
                best.value_of(found)  # raises for a metric that does not exist
            except VlmdataError as error:
                failed = error
        if trained.agreed(failed is not None):
            raise failed or DataError("the first process could not measure; its own error says why")
        return found

    def save(step: int) -> None:
        content = trained.state()  # of all ranks together, where each has a part
        if main:
            checkpoint.save(folder, step, content, about | {"loss": metrics["loss"]}, job.keep, best.step)

    if job.best and not test.uids:
        raise InputError(f"best: there are no samples of the split {job.test_split!r} to measure on")
    # Where the first measure would be the last one, a metric that does not exist would be found out at the end.
    unchecked = job.best and done < job.steps <= (done // job.eval_every + 1) * job.eval_every
    before = measure() if unchecked or (job.measure_before and not done) else {}
    if journal and before and job.measure_before and not done:
        journal.write(0, before, job.steps)
    skipped = 0
    for step in range(done, job.steps):
        metrics = _step(job, step, trained, batches, samples, speed)
        skipped = 0 if "grad_norm" in metrics else skipped + 1
        if skipped == SKIPPED_IN_A_ROW:
            raise DataError(
                f"the losses of {skipped} steps in a row, up to {step + 1}, are not finite: make `lr` smaller"
            )
        if journal:
            journal.write(step + 1, metrics, job.steps)
        last = step + 1 == job.steps
        if (step + 1) % job.eval_every == 0 and not last:
            found = measure()
            if journal and found:
                journal.write(step + 1, found, job.steps)
            if trained.agreed(best.improved(step + 1, found)):
                save(step + 1)
        if (step + 1) % job.save_every == 0 or last:
            save(step + 1)
        if on_step:
            on_step(step + 1, metrics)

    found = measure()
    best.improved(job.steps, found)
    if main:
        checkpoint.prune(folder, job.keep, best.step)
    final = {
        "train/loss": metrics["loss"] if metrics else float(state["loss"]),
        "train/samples": len(samples.uids),
        "train/broken": len(samples.broken),
        **({"test/broken": len(test.broken)} if found else {}),
        **found,
    }
    if journal:
        final |= {f"{name}/before": value for name, value in journal.before.items()}
    with trained.measured() as measured:
        if journal and measured:
            if not journal.ended:
                journal.write(job.steps, final, job.steps)
            journal.close()
            measured.export(folder / "model")
            if finished and test.uids:
                finished(measured, test)
    trained.wait()
    return final


def _mixed(
    job: TrainJob, objective: Objective, own: list[str], out: Path, only: Mapping[str, int] | None
) -> tuple[Samples, list[np.ndarray]]:
    """The samples of a job's own shards and of those mixed in, and the places of each of these."""
    groups = [own, *(_of_split(other.data, job) for other in job.mix)]
    indexes = [data.index(group, out) for group in groups]
    if only is not None:
        indexes[0] = data.chosen(indexes[0], only)
    samples = objective.samples(data.joined(indexes), out)
    ends = np.cumsum([len(index) for index in indexes])
    within = [
        (samples.first >= end - len(index)) & (samples.first < end) for end, index in zip(ends, indexes, strict=True)
    ]
    return samples, [np.flatnonzero(chosen) for chosen in within]


def _of_split(url: str, job: TrainJob) -> list[str]:
    found = source.shards(url, job.train_split, job.test_split)
    if job.train_split not in found:
        raise InputError(f"mix: {url} has no shards of the split {job.train_split!r}; it has {', '.join(found)}")
    return found[job.train_split]


def _step(
    job: TrainJob,
    step: int,
    trained: Trained,
    batches: Iterator[tuple[np.ndarray, dict[str, Tensor]]],
    samples: Samples,
    speed: Speed,
) -> dict[str, float]:
    """One step of the optimiser over `accumulate` micro-batches of every process; each loss is the mean of all terms.

    Raises DataError, naming the samples, for a loss that is not finite, unless such steps are to be skipped.
    """
    objective, rate = trained.objective, learning_rate(job, step)
    started = time.perf_counter()
    taken = [next(batches) for _ in range(job.accumulate)]
    waited = time.perf_counter() - started
    terms = [objective.terms(batch) for _, batch in taken]
    total = trained.summed({name: sum(each.get(name, 0.0) for each in terms) for name in sorted(objective.weights)})
    trained.begin(rate)
    seeds = [_seed(job.seed, step, micro, trained.rank) for micro in range(job.accumulate)]
    if isinstance(job, ContrastiveJob) and job.cached:
        own = {"contrastive": cached.gradients(trained, [batch for _, batch in taken], seeds)}
        bad = [] if math.isfinite(own["contrastive"]) else [place for places, _ in taken for place in places]
    else:
        own, bad = _gradients(trained, taken, terms, total, seeds)
    found = trained.summed(own)
    metrics = {"loss": sum(objective.weights[name] * value for name, value in found.items())}
    norm = trained.update() if math.isfinite(metrics["loss"]) else math.nan
    if math.isfinite(norm) or (job.precision == "fp16" and math.isfinite(metrics["loss"])):
        metrics["grad_norm"] = norm
    else:
        of = "loss" if not math.isfinite(metrics["loss"]) else "gradient's norm"
        bad = bad or ([place for places, _ in taken for place in places] if of != "loss" else [])
        batch_of = ", ".join(samples.uids[place] for place in bad) or "of another process"
        value = metrics["loss"] if of == "loss" else norm
        what = f"the {of} of step {step + 1} is {value}. The batch: {batch_of}"
        if job.not_finite == "stop":
            raise DataError(f"{what}. Try a smaller `lr`, or `not_finite: skip`")
        log.warning("%s. The step is skipped", what)
    seconds = time.perf_counter() - started
    if len(found) > 1:
        metrics |= {f"loss/{name}": value for name, value in found.items()}
    rate_of_samples = job.batch * job.accumulate * trained.world / seconds
    metrics |= {"lr": rate, "samples_per_second": rate_of_samples, "data_wait": waited / seconds}
    return metrics | speed.utilisation(rate_of_samples, taken[0][1])


def _gradients(
    trained: Trained,
    taken: list[tuple[np.ndarray, dict[str, Tensor]]],
    terms: list[dict[str, float]],
    total: dict[str, float],
    seeds: list[int],
) -> tuple[dict[str, float], list[int]]:
    """Add the gradients of each micro-batch's losses; this process's part of each loss, and where one is not finite."""
    weights, own, bad = trained.objective.weights, dict.fromkeys(total, 0.0), list[int]()
    for micro, ((places, batch), of) in enumerate(zip(taken, terms, strict=True)):
        torch.manual_seed(seeds[micro])
        with trained.pass_of(last=micro + 1 == len(taken)):
            losses = trained.forward({name: tensor.to(trained.device) for name, tensor in batch.items()})
            share = {name: of[name] / total[name] for name in losses if of[name]}
            loss = torch.stack([weights[name] * part * losses[name] for name, part in share.items()]).sum()
            trained.backward(loss)
        if not torch.isfinite(loss):
            bad += list(places)
        for name, part in share.items():
            own[name] += part * losses[name].item()
    return own, bad


def _seed(*numbers: int) -> int:
    """A seed of 64 bits from several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0]) >> 1


def _sha256(uids: tuple[str, ...]) -> str:
    return hashlib.sha256("\n".join(uids).encode()).hexdigest()
