"""The flow `curate`: from a recipe to a snapshot with its shards, jobs and report. Prefect says when."""

import datetime
import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from typing import Any, cast

from prefect import flow, get_run_logger, task
from prefect.cache_policies import NO_CACHE

from vlmdata import card, forget, gates, ingest, layers, snapshot, status
from vlmdata.catalog import GROUPED, append
from vlmdata.dataset import Dataset
from vlmdata.errors import InputError, MachineError, OutageError
from vlmdata.flows import artifacts
from vlmdata.flows.train import deploy
from vlmdata.jobs import missing, run_job
from vlmdata.lock import lock
from vlmdata.parts import Table, snapshot_folder
from vlmdata.pipelines import dedup as dedup_stage
from vlmdata.pipelines import download as download_stage
from vlmdata.pipelines import extract as extract_stage
from vlmdata.pipelines import known as known_stage
from vlmdata.pipelines import select as select_stage
from vlmdata.pipelines import shards as shards_stage
from vlmdata.pipelines import signals as signals_stage
from vlmdata.pipelines.runner import engine
from vlmdata.plan import STAGES, Plan, made_from, make_plan
from vlmdata.recipe import Recipe, Runner
from vlmdata.report import write_report
from vlmdata.sources import by_file

log = logging.getLogger(__name__)
INGESTED = ("pairs", "source_signals")
DOWNLOADED = ("images", "known")
# The recipe of `run_here`: what is a parameter of a flow stands in Prefect's database.
whole: ContextVar[Recipe | None] = ContextVar("whole", default=None)


@dataclass
class Run:
    """One run: the plan, the dataset, and the tables that are ready so far."""

    plan: Plan
    dataset: Dataset
    stages: tuple[str, ...]
    tables: dict[str, Table] = field(default_factory=dict)
    seconds: dict[str, tuple[datetime.datetime, float]] = field(default_factory=dict)
    progress: artifacts.Progress = field(default_factory=artifacts.Progress)

    def ready(self, stage: str, names: list[str]) -> None:
        """Take a stage's tables from an earlier run. Raises InputError where they are not there."""
        for name in names:
            table = self.current(name)
            if table is None:
                raise InputError(f"--stages: {stage} has not been done for this recipe: name it too")
            self.tables[name] = table

    def current(self, name: str) -> Table | None:
        """A table of the plan, if it is whole and made from the tables that are ready."""
        return self.dataset.current_table(name, self.plan.tables[name], self.tables.values())


def run_here(
    recipe: Recipe, limit: int | None = None, stages: list[str] | None = None, retry: list[str] | None = None
) -> str:
    """The flow `curate` in this process; its parameters are without the secrets of the recipe's URLs."""
    token = whole.set(recipe)
    try:
        return curate(snapshot.without_secrets(recipe.model_dump(mode="json")), limit, stages, retry)
    finally:
        whole.reset(token)


@flow(name="curate", validate_parameters=False)
def curate(
    recipe: dict[str, Any], limit: int | None = None, stages: list[str] | None = None, retry: list[str] | None = None
) -> str:
    """Run a recipe (as `Recipe.model_dump()` gives it) and return the published snapshot's folder.

    retry: error classes; pairs whose download ended in one of them are tried again, in a new layer.
    Stages that are done are found done; parts that are done are kept. Raises VlmdataError subclasses.
    """
    parsed = whole.get() or Recipe.model_validate(recipe)
    dataset = Dataset(parsed.dataset)
    plan = make_plan(parsed, limit)
    with at_work(dataset, "vlmdata run", parsed.runner) as runner:
        run = Run(with_runner(plan, runner), dataset, tuple(stages or STAGES))
        _stage(run, "ingest", [name for name in run.plan.tables if name in INGESTED], ingest_pairs)
        if retry:
            _add_layer(run, retry)
        compute(run)
        latest = dataset.latest()
        lost = latest and snapshot.missing_file(dataset, latest)
        if lost:
            log.warning("%s is gone: a new snapshot is published", lost)
        if latest is None or lost or not made_from(latest, run.plan, run.tables.values()):
            wanted = [stage for stage in ("shards", "jobs", "report") if stage in run.stages]
            if wanted and "select" not in run.stages:
                raise InputError(f"--stages: {wanted[0]} needs a snapshot of this recipe: name select and shards too")
            latest = publish(run) if "select" in run.stages else None
        return finish(run, latest) if latest is not None else _unpublished(run)


@contextmanager
def at_work(dataset: Dataset, what: str, runner: Runner) -> Iterator[Runner]:
    """The dataset for one flow alone, with its status told and one engine for all stages, which it gives; what flows
    that were killed have left is finished or removed. Raises RefusedError where another flow has the dataset."""
    with lock(dataset, what) as held, status.recorded(dataset, held), engine(runner) as kept:
        forget.finish(dataset)
        dataset.remove("work")
        yield kept


def compute(run: Run) -> None:
    """The stages from the download to the duplicates: what is missing of them."""
    _stage(run, "download", [name for name in run.plan.tables if name in DOWNLOADED], download_images)
    if run.tables.get("images") and run.tables["images"].about.get("returned"):
        _forget_returned(run)
    _stage(run, "signals", run.plan.signal_tables, measure)
    _stage(run, "dedup", [name for name in run.plan.tables if name in GROUPED], group_duplicates)


def with_runner(plan: Plan, runner: Runner) -> Plan:
    """The plan with the engine that is kept for the whole flow; it changes no value, and no key."""
    return replace(plan, recipe=plan.recipe.model_copy(update={"runner": runner}))


def finish(run: Run, latest: dict[str, Any]) -> str:
    """What comes behind the snapshot in force: its jobs that were not done, and its report. Returns its folder."""
    dataset = run.dataset
    shards_stage.clean(dataset)  # here, since a kill may come between publishing and cleaning
    download_stage.clean(dataset)
    _log_times(run, latest["number"])
    try:
        if "jobs" in run.stages:
            for job in missing(run.plan.recipe, dataset, latest["number"]):
                do_job.with_options(name=f"job {job.name}")(job, dataset, latest)
    finally:  # a snapshot has its report, whatever became of its jobs
        if "report" in run.stages:
            with timed(run, "report"):
                report(dataset, latest)
            _log_times(run, latest["number"])
        artifacts.publish(dataset, latest)
    run.progress.ends()
    return dataset.address(snapshot_folder(latest["number"]))


def _stage(run: Run, name: str, tables: list[str], work: Callable[[Run], dict[str, Table]]) -> None:
    last = max(STAGES.index(stage) for stage in run.stages)
    if not tables or STAGES.index(name) > last:
        return
    if name not in run.stages:
        run.ready(name, tables)
        return
    with timed(run, name):
        run.tables |= work(run)


def _forget_returned(run: Run) -> None:
    """What the download has brought though it is forgotten goes out of the tables that are there."""
    count = forget.forget_returned(run.dataset, run.plan.images)
    log.warning("%d pairs were forgotten again: they had come back under another URL or caption", count)
    for name in list(run.tables):
        table = run.dataset.read_table(name, run.plan.tables[name])
        assert table is not None
        run.tables[name] = table


def _add_layer(run: Run, classes: list[str]) -> None:
    """Put what is to be tried again into a new layer of `pairs`; the stages that follow do the rest.

    Where the run before has not ended it is only continued, so that the same command goes on after a kill.
    """
    images = run.current("images")
    if images is None or not layers.published(run.dataset, [run.tables["pairs"], images]):
        log.info("the run before has not ended: it goes on, and nothing is tried again beyond it")
        return
    ingested = [run.tables[name] for name in INGESTED if name in run.tables]
    grown = layers.retry(run.dataset, ingested, images, classes, run.plan.recipe.parts.rows)
    run.tables |= {table.table: table for table in grown}


def publish(run: Run, parent: dict[str, Any] | None = None) -> dict[str, Any] | None:
    """The manifest of the next snapshot: the full selection, or with a parent what its later layers add to it.

    None where the stages end before the shards. Raises RefusedError where a gate is shut, before a shard is written.
    """
    dataset, plan = run.dataset, run.plan
    number = snapshot.next_number(dataset)
    with timed(run, "select"):
        selection = cast(select_stage.Selection, select(run, number, parent))
    if "shards" not in run.stages:
        return None
    if parent is not None:
        gates.check(dataset, plan.recipe.gates, selection.written, parent)
    with timed(run, "shards"):
        earlier = parent["shards"] if parent else []
        shards = [*earlier, *write_shards(run, selection, number)]
        manifest = snapshot.manifest(plan, number, run.tables, selection.samples, shards, [])
        documents = card.write_documents(dataset, manifest)
        manifest = snapshot.manifest(plan, number, run.tables, selection.samples, shards, documents)
        snapshot.remove_leftovers(dataset, manifest)
        dataset.publish(manifest)
    return manifest


def _unpublished(run: Run) -> str:
    """A run that was asked to stop before the shards publishes nothing."""
    _log_times(run, 0)
    return run.dataset.root


@contextmanager
def timed(run: Run, stage: str) -> Iterator[None]:
    """Log when a stage begins and ends, and keep its time for `jobs`."""
    started, clock = datetime.datetime.now(datetime.UTC), time.monotonic()
    get_run_logger().info("%s: begins", stage)
    run.progress.begins(stage, len(run.stages))
    yield
    seconds = time.monotonic() - clock
    get_run_logger().info("%s: done in %.1f s", stage, seconds)
    run.seconds[stage] = (started, seconds)


def _log_times(run: Run, number: int) -> None:
    """Write how long the stages took into `jobs`. Number 0 stands for no snapshot."""
    rows = [
        {"snapshot": number, "job": stage, "key": None, "kind": "stage", "state": "done", "exit_code": 0,
         "started_at": started, "seconds": seconds, "output": None}
        for stage, (started, seconds) in run.seconds.items()
    ]  # fmt: skip
    if rows:
        append(run.dataset, "jobs", rows)
    run.seconds.clear()


def _worth_a_retry(_task: Any, _run: Any, state: Any) -> bool:
    """Services and machines recover; a wrong recipe or broken data do not."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, MachineError) and not isinstance(error, OutageError)


retried: dict[str, Any] = {
    "retries": 1,
    "retry_delay_seconds": 5,
    "retry_condition_fn": _worth_a_retry,
    "cache_policy": NO_CACHE,
}


@task(name="ingest", **retried)
def ingest_pairs(run: Run) -> dict[str, Table]:
    """Read the sources that were not read yet, and unite their pairs."""
    dataset, plan = run.dataset, run.plan
    ingest.clean(dataset)
    found = []
    for source in plan.recipe.sources:
        key = plan.found[source.name]
        table = dataset.read_table("found", key)
        if table is None and by_file(source):
            table = extract_stage.run(dataset, source, key, plan.recipe.runner)
        found.append(table or ingest.read_source(dataset, source, key))
    pairs = dataset.read_table("pairs", plan.pairs)
    pairs = pairs or ingest.unite(dataset, found, plan.pairs, plan.recipe.parts.rows, plan.limit, plan.brings)
    get_run_logger().info("%d pairs from %d sources", pairs.rows, len(found))
    brought = dataset.read_table("source_signals", plan.pairs) if plan.brings else None
    return {"pairs": pairs, **({"source_signals": layers.cut(dataset, brought, pairs)} if brought else {})}


@task(name="download", **retried)
def download_images(run: Run) -> dict[str, Table]:
    """Download the images of `pairs`, and hold what is stored against the lists of known images."""
    images = run.current("images") or download_stage.run(run.plan, run.dataset, run.tables["pairs"])
    if "known" not in run.plan.tables:
        return {"images": images}
    return {"images": images, "known": known_stage.run(run.plan, run.dataset, images)}


@task(name="signals", **retried)
def measure(run: Run) -> dict[str, Table]:
    """Measure what is missing of the signals."""
    names = run.plan.signal_tables
    there = {name: run.current(name) for name in names}
    if all(there.values()):
        return {name: table for name, table in there.items() if table}
    return signals_stage.run(run.plan, run.dataset, run.tables)


@task(name="dedup", **retried)
def group_duplicates(run: Run) -> dict[str, Table]:
    """Group duplicates by every method of the recipe."""
    names = [name for name in run.plan.tables if name in GROUPED]
    if not all(run.current(name) for name in names):
        dedup_stage.run(run.plan, run.dataset, run.tables)
    return {name: table for name in names if (table := run.current(name))}


@task(name="select", **retried)
def select(run: Run, number: int, parent: dict[str, Any] | None) -> select_stage.Selection:
    """Give every pair its verdict, or those of new layers beside a parent's."""
    return select_stage.run(run.plan, run.dataset, run.tables, number, parent)


@task(name="shards", **retried)
def write_shards(run: Run, selection: select_stage.Selection, number: int) -> list[dict[str, Any]]:
    """Write the kept pairs into shards."""
    return shards_stage.run(run.plan, run.dataset, run.tables, selection, number)


@task(name="job", **retried)
def do_job(job: Any, dataset: Dataset, manifest: dict[str, Any]) -> None:
    """Run one job on the snapshot, wherever it says."""
    metrics = run_job(job, dataset, manifest, deploy)
    get_run_logger().info("job %s: %s", job.name, ", ".join(f"{name} {value:.3f}" for name, value in metrics.items()))


@task(name="report", cache_policy=NO_CACHE)
def report(dataset: Dataset, manifest: dict[str, Any]) -> None:
    """Write the snapshot's HTML report."""
    write_report(dataset, manifest)
