"""Runs one function over the parts of a stage on a Beam runner. Elements are parts, never rows."""

import contextlib
import functools
import json
import logging
import math
import os
import threading
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import apache_beam as beam
import numpy as np

from vlmdata import errors
from vlmdata.dataset import Dataset
from vlmdata.errors import MachineError
from vlmdata.pipelines import engines
from vlmdata.recipe import Runner

log = logging.getLogger(__name__)
progress = logging.getLogger("vlmdata.progress")


def run_parts(
    dataset: Dataset, stage: str, work: Callable[[Any], Any], elements: list[Any], runner: Runner
) -> list[Any]:
    """`work(element)` for each element, wherever the runner puts it; the results in the order of the elements.

    work: picklable; its result must be what JSON can write. It commits its part itself, so a retry is harmless.
    An error in one part does not stop the others; the first one, in the order of elements, is raised afterwards.
    """
    if not elements:
        return []
    total = len(elements)
    attempt = functools.partial(_attempt, work=work, guard=dataset.guard, stage=stage)

    def build(parts: Any) -> Any:
        return parts | stage >> beam.Map(attempt)

    outcomes = _outcomes(dataset, stage, elements, runner, build)
    assert [place for place, _ in outcomes] == list(range(total)), f"{stage}: {len(outcomes)} results for {total} parts"
    return [outcome["result"] for _, outcome in outcomes]


def shuffle(
    dataset: Dataset,
    stage: str,
    scatter: Callable[[Any], list[tuple[int, Any]]],
    gather: Callable[[tuple[int, list[Any]]], Any],
    elements: list[Any],
    runner: Runner,
) -> list[Any]:
    """`gather((bucket, what was sent))` for every bucket, by Beam's GroupByKey; results in the order of the buckets.

    scatter: gives of an element (bucket, what is sent to it): a record batch, or the path of a file that holds it. A
    bucket gets it in the order of the elements. Where a part fails, nothing is gathered any more; what a `gather` wrote
    then, which may have been asked without that part, does not count. Raises MachineError where the engine loses some.
    """
    if not elements:
        return []
    failed = f"work/{stage}-{uuid.uuid4().hex}-failed.json"
    told = {"dataset": dataset.absolute, "failed": failed}
    send = functools.partial(_attempt, work=scatter, guard=dataset.guard, stage=stage)
    collect = functools.partial(_attempt, work=gather, guard=dataset.guard, stage=_buckets(stage))

    def build(parts: Any) -> Any:
        scattered = parts | stage >> beam.FlatMap(_send, attempt=send, **told)
        return scattered | "by bucket" >> beam.GroupByKey() | "buckets" >> beam.Map(_collect, attempt=collect, **told)

    (_, came), *buckets = _outcomes(dataset, stage, elements, runner, build)
    sent, received = came["result"], [len(elements), sum(outcome["came"] for _, outcome in buckets)]
    if sent != received:
        raise MachineError(
            f"{stage}: the engine lost or doubled some of the work: of {received[0]:,} parts {sent[0]:,} came through, "
            f"of the {sent[1]:,} batches that they sent {received[1]:,}; run it again"
        )
    return [outcome["result"] for _, outcome in buckets]


def combine(
    dataset: Dataset, stage: str, work: Callable[[Any], np.ndarray], elements: list[Any], runner: Runner
) -> np.ndarray:
    """The sum of `work(element)` over the elements, one at least, by Beam's Combine; arrays int64 [n], all of one n.

    Raises MachineError where the engine loses some.
    """
    attempt = functools.partial(_attempt, work=work, guard=dataset.guard, stage=stage)
    groups = math.isqrt(len(elements))

    def build(parts: Any) -> Any:
        # In two steps: Dask's workers would otherwise send every array to one of them.
        return (
            parts
            | stage >> beam.Map(attempt)
            | f"{stage}, in groups" >> beam.Map(_grouped, groups=groups)
            | f"{stage}, summed" >> beam.CombinePerKey(_Sum())
            | f"{stage}, sums" >> beam.Values()
            | f"{stage}, all" >> beam.CombineGlobally(_Sum())
            | f"{stage}, told" >> beam.Map(_told)
        )

    ((_, outcome),) = _outcomes(dataset, stage, elements, runner, build)
    if outcome["of"] != len(elements):
        raise MachineError(f"{stage}: {outcome['of']:,} of {len(elements):,} parts came through; run it again")
    return np.array(outcome["sum"], np.int64)


# How many parts were summed, the first error (place, outcome) among them or None, and the sum or None.
_Summed = tuple[int, Any, Any]


class _Sum(beam.CombineFn):
    """Adds up `_Summed`."""

    def create_accumulator(self) -> _Summed:
        return 0, None, None

    def add_input(self, accumulator: _Summed, element: _Summed) -> _Summed:
        return self.merge_accumulators([accumulator, element])

    def merge_accumulators(self, accumulators: Iterable[_Summed]) -> _Summed:
        counts, failures, sums = zip(*accumulators, strict=True)
        arrays = [array for array in sums if array is not None]
        first = min((failure for failure in failures if failure), key=lambda failure: failure[0], default=None)
        return sum(counts), first, sum(arrays) if arrays else None

    def extract_output(self, accumulator: _Summed) -> _Summed:
        return accumulator


def _grouped(element: tuple[int, Any], groups: int) -> tuple[int, _Summed]:
    place, outcome = element
    return place % groups, (1, element, None) if "error" in outcome else (1, None, outcome["result"])


def _told(summed: _Summed) -> tuple[int, Any]:
    count, failure, total = summed
    return failure or (0, {"of": count, "sum": total.tolist()})


def _outcomes(
    dataset: Dataset, stage: str, elements: list[Any], runner: Runner, build: Callable[[Any], Any]
) -> list[tuple[int, Any]]:
    """(place, outcome) in order of what `build` makes of the spread elements. Raises the first error among them."""
    dataset.guard()
    results = f"work/{stage}-{uuid.uuid4().hex}.json"
    total = len(elements)
    with (
        engine(runner) as on,
        _progress(stage, total),
        engines.pipeline(on, total, at_once(on)) as pipeline,
    ):
        parts = (
            pipeline
            | "parts" >> beam.Create(list(enumerate(elements)), reshuffle=False)
            # Not Reshuffle: its random keys leave the in-process runner's workers with unequal loads.
            | "key" >> beam.Map(lambda element: (element[0], element[1]))
            | "spread" >> beam.GroupByKey()
            | "single" >> beam.FlatMap(lambda group: [(group[0], value) for value in group[1]])
        )
        (
            build(parts)
            | "all" >> beam.Map(lambda outcome: (None, outcome))
            | "gather" >> beam.GroupByKey()
            | "record" >> beam.Map(_record, dataset=dataset.absolute, path=results)
        )
    dataset.guard()
    outcomes = sorted(json.loads(dataset.read_bytes(results)), key=lambda found: found[0])
    dataset.remove("work")
    for place, outcome in outcomes:
        if "error" in outcome:
            kind = getattr(errors, outcome["error"], errors.MachineError)
            log.debug("part %s: %s", place, outcome["traceback"])
            raise kind(outcome["message"])
    return outcomes


def _attempt(
    element: tuple[int, Any], work: Callable[[Any], Any], guard: Callable[[], None], stage: str
) -> tuple[int, Any]:
    """An error is a value here: engines differ in what they make of an exception, and other parts should go on."""
    place, argument = element
    try:
        guard()
        outcome = {"result": work(argument)}
    except errors.VlmdataError as error:
        outcome = {"error": type(error).__name__, "message": str(error), "traceback": traceback.format_exc()}
    except OSError as error:
        message = f"{stage}: {error.strerror or error}" + (f": {error.filename}" if error.filename else "")
        outcome = {"error": "MachineError", "message": message, "traceback": traceback.format_exc()}
    except Exception as error:  # noqa: BLE001 - a bug in one part: told by the driver, with its traceback in the log
        message = f"{stage}, part {place}: {type(error).__name__}: {error} (a bug: --debug shows where)"
        outcome = {"error": "MachineError", "message": message, "traceback": traceback.format_exc()}
    _done(stage)
    return place, outcome


_FAILED, _SENT = -2, -1  # the buckets of errors, and of how much each part has sent


def _send(
    element: tuple[int, Any], attempt: Callable[[Any], tuple[int, Any]], dataset: str, failed: str
) -> list[tuple[int, tuple[int, Any]]]:
    place, outcome = attempt(element)
    if "error" in outcome:
        with contextlib.suppress(OSError, errors.MachineError):  # of a full disk; it only saves work
            Dataset(dataset).write_json(failed, place)
        return [(_FAILED, (place, outcome))]
    return [(_SENT, (place, len(outcome["result"]))), *((bucket, (place, sent)) for bucket, sent in outcome["result"])]


def _collect(
    group: tuple[int, Iterable[tuple[int, Any]]], attempt: Callable[[Any], tuple[int, Any]], dataset: str, failed: str
) -> tuple[int, Any]:
    bucket, came = group
    values = [value for _, value in sorted(came, key=lambda found: found[0])]
    if bucket == _FAILED:
        return bucket, values[0]
    if bucket == _SENT:
        return bucket, {"result": [len(values), sum(values)]}
    if Dataset(dataset).exists(failed):
        return bucket, {"result": None, "came": len(values)}  # which nobody reads: the error comes first
    place, outcome = attempt((bucket, (bucket, values)))
    return place, outcome | {"came": len(values)}


def _record(gathered: tuple[None, Iterable[Any]], dataset: str, path: str) -> None:
    Dataset(dataset).write_json(path, list(gathered[1]))


# Parts done in this process, by stage: the in-process runner's threads count here. Other engines' workers count in
# processes of their own, where nobody looks; there the engine's own pages show progress.
_counts: dict[str, int] = {}
_counts_lock = threading.Lock()


def _buckets(stage: str) -> str:
    """The name of a shuffle's second half."""
    return f"{stage}, buckets"


def _done(stage: str) -> None:
    with _counts_lock:
        _counts[stage] = _counts.get(stage, 0) + 1


@contextmanager
def _progress(stage: str, total: int) -> Iterator[None]:
    """Tell twice a second how many parts are done; behind them buckets, of which nobody has counted how many come."""
    with _counts_lock:
        _counts[stage] = _counts[_buckets(stage)] = 0
    ended = threading.Event()

    def say(name: str, done: int, of: int | None) -> None:
        counted = f"{done} of {of} parts" if of is not None else f"{done}"
        progress.info("%s: %s", name, counted, extra={"stage": name, "done": done, "total": of})

    def tell() -> None:
        told, buckets = -1, 0
        while not ended.wait(0.5):
            if _counts[stage] != told:
                told = _counts[stage]
                say(stage, told, total)
            if _counts[_buckets(stage)] != buckets:
                buckets = _counts[_buckets(stage)]
                say(_buckets(stage), buckets, None)

    thread = threading.Thread(target=tell, name="progress", daemon=True)
    thread.start()
    try:
        yield
        if buckets := _counts[_buckets(stage)]:
            say(_buckets(stage), buckets, buckets)
        else:
            say(stage, total, total)
    finally:
        ended.set()
        thread.join()


@contextmanager
def engine(runner: Runner) -> Iterator[Runner]:
    """The runner to use in the block, checked. A Dask cluster of this machine's own is started now, and ended with the
    block: one for all that is done in it, whose workers keep their models."""
    engines.check(runner)
    if runner.kind != "dask":
        yield runner
        return
    import dask

    # Scheduler and workers tell of every connection; what goes wrong reaches us as an exception.
    environment = "distributed.nanny.pre-spawn-environ.DASK_LOGGING__DISTRIBUTED"
    dask.config.set({"logging.distributed": "critical", environment: "critical"})
    if runner.address is not None:
        yield runner
        return
    from dask.distributed import LocalCluster

    with LocalCluster(n_workers=_cores(runner), threads_per_worker=1, dashboard_address="127.0.0.1:0") as cluster:
        yield runner.model_copy(update={"address": cluster.scheduler_address})


def at_once(runner: Runner) -> int:
    """How many parts are worked on at once, by all processes together."""
    if runner.kind != "dask" or runner.address is None:
        return _cores(runner)
    return max(sum(_threads(runner.address)), runner.workers or 1)


def here_at_once(runner: Runner) -> int:
    """How many parts lie on this machine's disk at once, at the least: other engines' workers may be elsewhere."""
    return at_once(runner) if runner.kind == "direct" else 1


def processes(runner: Runner) -> int:
    """How many processes work on parts at once, at most; the in-process runner's threads are one.

    Of a Dask cluster at an address those that are there now count, or `workers` of the recipe if more may come. Raises
    MachineError where it has none, and does not say. Of the other engines' workers nobody here knows more than
    `workers`.
    """
    if runner.kind == "direct" or engines.in_this_process(runner):
        return 1
    if runner.kind != "dask" or runner.address is None:
        return _cores(runner)
    there = len(_threads(runner.address))
    if not there and runner.workers is None:
        raise MachineError(
            f"runner.address: the Dask cluster at {runner.address} has no workers now: start them, or set "
            "runner.workers to how many will come, since they share what a host may be asked"
        )
    return max(there, runner.workers or 1)


def _threads(address: str) -> list[int]:
    """Of each worker of a Dask cluster. Raises MachineError where its scheduler does not answer."""
    from dask.distributed import Client

    try:
        with Client(address) as client:
            return list(client.nthreads().values())
    except (OSError, ValueError) as error:
        raise MachineError(f"runner.address: no Dask scheduler answers at {address}: {error}") from error


def _cores(runner: Runner) -> int:
    return runner.workers or os.cpu_count() or 1
