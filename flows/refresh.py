"""The flow `refresh`: what is new in the sources, as the next snapshot. Prefect says when."""

from typing import Any

from prefect import flow, get_run_logger, task

from vlmdata import layers, recipe_file, snapshot
from vlmdata import refresh as renewal
from vlmdata.dataset import Dataset
from vlmdata.errors import DataError
from vlmdata.flows import curate
from vlmdata.jobs import missing
from vlmdata.parts import Table, snapshot_folder, table_folder
from vlmdata.pipelines import extract as extract_stage
from vlmdata.plan import STAGES, check_parts, check_writable, make_plan
from vlmdata.recipe import Recipe
from vlmdata.sources import by_file


def run_here(recipe: Recipe, path: str, discard: bool = False) -> str:
    """The flow `refresh` in this process. path: where the recipe stands, for Prefect's pages."""
    token = curate.whole.set(recipe)
    try:
        return refresh(path, discard)
    finally:
        curate.whole.reset(token)


@flow(name="refresh", validate_parameters=False)
def refresh(recipe: str, discard: bool = False) -> str:
    """Publish what is new in a recipe's sources as the next snapshot, and return its folder, or that of the snapshot in
    force where nothing is new.

    recipe: the path of its file, which is read now; nothing of what it says becomes a parameter. discard: drop a layer
    that a gate has held back, first.
    Raises VlmdataError subclasses; the snapshot in force then stays in force.
    """
    parsed = curate.whole.get() or recipe_file.load(recipe)
    dataset = Dataset(parsed.dataset)
    plan = make_plan(parsed)
    check_parts(plan, dataset)
    check_writable(dataset)
    if dataset.latest() is None:
        token = curate.whole.set(parsed)
        try:
            return curate.curate({})  # nothing of the recipe becomes a parameter here either
        finally:
            curate.whole.reset(token)
    with curate.at_work(dataset, "vlmdata refresh", parsed.runner) as runner:
        run = curate.Run(curate.with_runner(plan, runner), dataset, STAGES)
        latest = dataset.latest()
        assert latest is not None, "only the lock's holder publishes"
        renewal.check(plan, latest)
        if lost := snapshot.missing_file(dataset, latest):
            raise DataError(f"{dataset.path(lost)} is gone: `vlmdata run` publishes a snapshot that has it again")
        with curate.timed(run, "ingest"):
            run.tables |= look(run, latest, discard)
        if not layers.same_parts(latest, run.tables["pairs"]):
            curate.compute(run)
            latest = dataset.latest() or latest  # a download that brings what is forgotten changes its files
            published = curate.publish(run, latest)
            assert published is not None, "shards are among the stages"
            return curate.finish(run, published)
        folder = snapshot_folder(latest["number"])
        get_run_logger().info("nothing is new: snapshot %d stays in force", latest["number"])
        if missing(parsed, dataset, latest["number"]) or not dataset.exists(f"{folder}/report.html"):
            return curate.finish(run, latest)
        return dataset.address(folder)


@task(name="ingest", **curate.retried)
def look(run: curate.Run, latest: dict[str, Any], discard: bool) -> dict[str, Table]:
    """Read the sources again, and make a layer of the pairs that are new; a layer that waits comes first."""
    dataset, plan = run.dataset, run.plan
    pairs = dataset.read_table("pairs", plan.pairs)
    if pairs is None:
        raise _missing(dataset, "pairs", plan.pairs)
    brought = dataset.read_table("source_signals", plan.pairs) if plan.brings else None
    brought = layers.cut(dataset, brought, pairs) if brought else None
    tables = {"pairs": pairs} | ({"source_signals": brought} if brought else {})
    if renewal.waiting(dataset, pairs, latest):
        if not discard:
            get_run_logger().info("a layer that is not published yet goes on; the sources are not read")
            return tables
        tables |= {table.table: table for table in renewal.discard(dataset, pairs, brought, latest)}
        pairs, brought = tables["pairs"], tables.get("source_signals")
    found = []
    for source in plan.recipe.sources:
        key = plan.found[source.name]
        table = dataset.read_table("found", key)
        if table is None:
            raise _missing(dataset, "found", key)
        if not renewal.pending(pairs, table):
            read = extract_stage.run if by_file(source) else None
            table = (
                read(dataset, source, key, plan.recipe.runner, table)
                if read
                else renewal.read_again(dataset, source, key, table)
            )
        found.append(table)
    grown = renewal.add_layer(dataset, plan, pairs, brought, found)
    return tables | {table.table: table for table in grown}


def _missing(dataset: Dataset, table: str, key: str) -> DataError:
    path = dataset.address(f"{table_folder(table, key)}/manifest.json")
    return DataError(f"{path} is gone, and the snapshot in force was made of it: put it back, or `vlmdata run` again")
