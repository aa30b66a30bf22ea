"""Commands that make a dataset, or say what would be made."""

from typing import Annotated

import typer

from vlmdata.cli.application import DatasetUrl, Limit, RecipePath, Setting, app, say
from vlmdata.errors import InputError


@app.command()
def run(
    recipe: RecipePath,
    set_: Setting = None,
    limit: Limit = None,
    stages: Annotated[str | None, typer.Option(help="only these, with commas: ingest,download,signals,…")] = None,
    runner: Annotated[str | None, typer.Option(help="direct, dask, flink, …; the recipe's otherwise")] = None,
    retry: Annotated[str | None, typer.Option(help="download again what ended in these: timeout,dns,5xx,…")] = None,
) -> None:
    """Run a recipe: from its sources to a published snapshot with shards, jobs and report."""
    from vlmdata import recipe_file
    from vlmdata.dataset import Dataset
    from vlmdata.forget import JOURNAL
    from vlmdata.jobs import missing
    from vlmdata.layers import nothing_failed
    from vlmdata.plan import STAGES, check_parts, check_writable, done_already, make_plan, tables_there
    from vlmdata.recipe import nearest
    from vlmdata.select import FAILURES
    from vlmdata.snapshot import missing_file

    settings = [*(set_ or []), *([f"runner.kind={runner}"] if runner else [])]
    parsed = recipe_file.load(recipe, settings)
    chosen = [name.strip() for name in stages.split(",")] if stages is not None else list(STAGES)
    for name in chosen:
        if name not in STAGES:
            raise InputError(f"--stages: there is no stage {name!r}{nearest(name, STAGES)}")
    classes = [name.strip() for name in retry.split(",")] if retry else []
    for name in classes:
        if name not in FAILURES:
            raise InputError(f"--retry: there is no error class {name!r}{nearest(name, FAILURES)}")
    if classes and "download" not in chosen:
        raise InputError("--retry: --stages leaves the download out")
    dataset = Dataset(parsed.dataset)
    with recipe_file.located(recipe, settings):
        plan = make_plan(parsed, limit)
        check_parts(plan, dataset)
    check_writable(dataset)
    if classes and (ended := nothing_failed(dataset, tables_there(plan, dataset), classes)):
        say(f"nothing to try again: {ended}")
        classes = []
    latest = done_already(plan, dataset)
    if (
        latest is not None
        and not dataset.exists(JOURNAL)
        and not stages
        and not classes
        and not missing(parsed, dataset, latest["number"])
    ):
        folder = f"snapshots/{latest['number']:06d}"
        if dataset.exists(f"{folder}/report.html") and missing_file(dataset, latest) is None:
            say("nothing to do: the snapshot in force is just what this recipe asks for")
            print(dataset.address(folder))
            return
    from vlmdata import console

    console.prepare_prefect(dataset)
    with console.progress():
        from vlmdata.flows.curate import run_here

        folder = run_here(parsed, limit, chosen, classes)
    if folder != dataset.root:  # else the stages asked for end before a snapshot
        for line in console.summary(dataset, parsed.dataset):
            say(line)
    print(folder)


@app.command()
def refresh(
    recipe: RecipePath,
    set_: Setting = None,
    discard: Annotated[bool, typer.Option("--discard", help="drop a layer that a gate has held back, first")] = False,
) -> None:
    """Publish what is new in the sources as the next snapshot; what is out stays as it is."""
    from vlmdata import console, recipe_file
    from vlmdata.dataset import Dataset
    from vlmdata.plan import make_plan

    parsed = recipe_file.load(recipe, set_)
    dataset = Dataset(parsed.dataset)
    with recipe_file.located(recipe, set_):
        make_plan(parsed)
    before = dataset.latest()
    console.prepare_prefect(dataset)
    with console.progress():
        from vlmdata.flows.refresh import run_here

        folder = run_here(parsed, str(recipe), discard)
    latest = dataset.latest()
    if before is not None and latest is not None and latest["number"] == before["number"]:
        say(f"nothing is new: snapshot {latest['number']} stays in force")
    else:
        for line in console.summary(dataset, parsed.dataset):
            say(line)
    print(folder)


@app.command()
def schedule(
    recipe: RecipePath,
    cron: Annotated[str, typer.Option(help='when, as cron has it: "0 3 * * *" is every night at three')],
    timezone: Annotated[str, typer.Option(help="of --cron")] = "UTC",
    pool: Annotated[str, typer.Option(help="Prefect's work pool, made where there is none")] = "vlmdata",
    name: Annotated[str | None, typer.Option(help="the deployment's name; default: the dataset's")] = None,
) -> None:
    """Have `refresh` run on a schedule: makes or changes a Prefect deployment, and prints its name."""
    import os
    import re

    from vlmdata import recipe_file
    from vlmdata.plan import make_plan

    parsed = recipe_file.load(recipe)
    with recipe_file.located(recipe):
        make_plan(parsed)
    from vlmdata.flows.schedule import deploy

    name = name or re.sub(r"[^A-Za-z0-9_.-]+", "-", parsed.dataset).strip("-")
    made = deploy(recipe, cron, timezone, pool, name)
    say(f"a worker runs it, in {os.getcwd()}; start one with the recipe's environment, and leave it running:")
    say(f"  prefect worker start --type process --pool {pool}")
    print(made)


@app.command()
def adopt(
    folder: Annotated[str, typer.Argument(help="what img2dataset wrote", metavar="IMG2DATASET_FOLDER")],
    dataset: DatasetUrl,
) -> None:
    """Take over a finished img2dataset folder as it is, and write the recipe to go on with; prints its path."""
    from vlmdata import adopt as adopting
    from vlmdata import console
    from vlmdata.dataset import Dataset
    from vlmdata.plan import check_writable, make_plan

    opened = Dataset(dataset)
    check_writable(opened)
    parsed = adopting.write_recipe(folder, opened)
    key = make_plan(parsed).images
    if opened.read_table("images", key) is None:
        console.prepare_prefect(opened)
        with console.progress():
            from vlmdata.flows.curate import run_here

            run_here(parsed, None, ["ingest", "download"])
    for status, count in adopting.statuses(opened, key).items():
        say(f"{status:<14}{count:>12,}")
    print(opened.path(adopting.RECIPE))


@app.command()
def plan(recipe: RecipePath, set_: Setting = None, limit: Limit = None) -> None:
    """What `run` would do: the stages with what is there already, and what is missing."""
    from vlmdata import recipe_file
    from vlmdata.dataset import Dataset
    from vlmdata.plan import describe, make_plan

    parsed = recipe_file.load(recipe, set_)
    with recipe_file.located(recipe, set_):
        planned = make_plan(parsed, limit)
    for line in describe(planned, Dataset(parsed.dataset)):
        print(line)


@app.command()
def funnel(dataset: DatasetUrl, set_: Setting = None) -> None:
    """What the newest snapshot's selection kept, or what a changed one would keep; nothing is written."""
    from vlmdata.dataset import Dataset
    from vlmdata.select.funnel import table
    from vlmdata.select.reconsider import reconsider

    published, steps, left_out = reconsider(Dataset(dataset), set_ or [])
    for line in table(published, steps):
        print(line)
    for step in left_out:
        say(f"{step} is not counted: `vlmdata run` does that")
