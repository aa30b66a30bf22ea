"""The command line. stdout carries the answer alone, everything else goes to stderr."""

import atexit
import json
import os
import sys
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.exceptions import TyperException

from vlmdata.errors import InputError, MachineError, VlmdataError

app = typer.Typer(
    help="Crawl, measure, deduplicate and select image-text pairs, and train vision-language models on them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipePath = Annotated[Path, typer.Argument(help="the recipe, a YAML file", metavar="RECIPE")]
DatasetUrl = Annotated[str, typer.Argument(help="the dataset's folder or URL", metavar="DATASET")]
Setting = Annotated[list[str] | None, typer.Option("--set", help="change the recipe: key.path=YAML (may be repeated)")]
Limit = Annotated[int | None, typer.Option(min=1, help="only the first N pairs")]

CheckpointPath = Annotated[
    Path, typer.Argument(help="the --out of a training, or one of its checkpoints/<step>", metavar="CHECKPOINT")
]

INTERRUPTED = 130
_state = {"debug": False}


class Format(StrEnum):
    """How `sql` writes its answer."""

    table = "table"
    csv = "csv"
    json = "json"


class ExportFormat(StrEnum):
    """What `export` writes."""

    datacomp = "datacomp"
    hf = "hf"
    mds = "mds"
    csv = "csv"


@app.callback()
def options(debug: Annotated[bool, typer.Option("--debug", help="show tracebacks and every log line")] = False) -> None:
    from vlmdata.console import configure_logging

    _state["debug"] = debug
    configure_logging(debug)


@app.command()
def run(
    recipe: RecipePath,
    set_: Setting = None,
    limit: Limit = None,
    stages: Annotated[str | None, typer.Option(help="only these, with commas: ingest,download,signals,…")] = None,
    runner: Annotated[str | None, typer.Option(help="direct or dask; the recipe's otherwise")] = None,
    retry: Annotated[str | None, typer.Option(help="download again what ended in these: timeout,dns,5xx,…")] = None,
) -> None:
    """Run a recipe: from its sources to a published snapshot with shards, jobs and report."""
    from vlmdata import recipe_file
    from vlmdata.dataset import Dataset
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
        _say(f"nothing to try again: {ended}")
        classes = []
    latest = done_already(plan, dataset)
    if latest is not None and not stages and not classes and not missing(parsed, dataset, latest["number"]):
        folder = f"snapshots/{latest['number']:06d}"
        if dataset.exists(f"{folder}/report.html") and missing_file(dataset, latest) is None:
            _say("nothing to do: the snapshot in force is just what this recipe asks for")
            print(dataset.path(folder))
            return
    from vlmdata import console

    console.prepare_prefect(dataset)
    with console.progress():
        from vlmdata.flows.curate import run_here

        folder = run_here(parsed, limit, chosen, classes)
    if folder != dataset.root:  # else the stages asked for end before a snapshot
        for line in console.summary(dataset, parsed.dataset):
            _say(line)
    print(folder)


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
        _say(f"{status:<14}{count:>12,}")
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
def sql(
    dataset: DatasetUrl,
    query: Annotated[str | None, typer.Argument(help="one SELECT; without it a prompt opens")] = None,
    format_: Annotated[Format, typer.Option("--format", help="of the answer")] = Format.table,
) -> None:
    """Ask the dataset in SQL: the view `samples` and a view for every table."""
    from vlmdata import catalog, console
    from vlmdata.dataset import Dataset

    connection = catalog.connect(Dataset(dataset))
    if query is not None:
        console.write_answer(catalog.query(connection, query), format_)
        return
    console.prompt(connection, format_)


@app.command()
def show(dataset: DatasetUrl, uid: Annotated[str, typer.Argument(metavar="UID")]) -> None:
    """One pair's whole story: where it came from, every measure, its duplicates, its verdict."""
    from vlmdata import console
    from vlmdata.dataset import Dataset

    console.show_pair(Dataset(dataset), uid)


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
        _say(f"{step} is not counted: `vlmdata run` does that")


@app.command()
def report(dataset: DatasetUrl) -> None:
    """Write the newest snapshot's HTML report again and print its path."""
    from vlmdata.dataset import Dataset
    from vlmdata.report import write_report

    opened = Dataset(dataset)
    latest = opened.latest()
    if latest is None:
        raise InputError(f"{dataset}: no snapshot here; make one by `vlmdata run RECIPE`")
    print(write_report(opened, latest))


@app.command()
def export(
    dataset: DatasetUrl,
    to: Annotated[ExportFormat, typer.Option("--to", help="the format")],
    out: Annotated[str, typer.Argument(help="a file (datacomp, csv) or folder (hf, mds) to make", metavar="OUT")],
) -> None:
    """Write the newest snapshot's kept pairs in another format, and print where."""
    from vlmdata.dataset import Dataset
    from vlmdata.export import export as write

    opened = Dataset(dataset)
    latest = opened.latest()
    if latest is None:
        raise InputError(f"{dataset}: no snapshot here; make one by `vlmdata run RECIPE`")
    print(write(opened, latest, to.value, out))


@app.command()
def train(
    objective: Annotated[str, typer.Argument(help="contrastive, masked, projector, captioning or drawing")],
    data: Annotated[str, typer.Option(help="a dataset (or DATASET@000002), or shards (a path or a glob)")],
    out: Annotated[Path, typer.Option(help="the folder for checkpoints and logs")],
    config: Annotated[Path | None, typer.Option(help="a YAML file with the trainer's options")] = None,
    set_: Annotated[list[str] | None, typer.Option("--set", help="an option of the trainer: key=YAML")] = None,
    resume: Annotated[bool, typer.Option("--resume", help="go on from the newest checkpoint in OUT")] = False,
) -> None:
    """Train a model on a snapshot's shards; under torchrun in all of its processes, of which the first one speaks."""
    import logging

    from vlmdata import console
    from vlmdata.jobs import by_hand

    job = by_hand.from_options(objective, config, set_ or [])
    if not by_hand.first_process():
        logging.getLogger("vlmdata").setLevel(logging.ERROR)
        by_hand.train(job, data, out, resume)
        return
    with console.progress():
        metrics = by_hand.train(job, data, out, resume)
    print(json.dumps(metrics, indent=1))


@app.command()
def caption(
    checkpoint: CheckpointPath,
    images: Annotated[list[Path], typer.Argument(help="pictures: jpg, png, webp", metavar="IMAGE…")],
) -> None:
    """Describe pictures by a trained model, one line for each."""
    from vlmdata import ask as asking
    from vlmdata.console import clean

    for line in asking.captions(checkpoint, images):
        print(clean(" ".join(line.split())))


@app.command()
def ask(
    checkpoint: CheckpointPath,
    image: Annotated[Path, typer.Argument(help="a picture: jpg, png, webp", metavar="IMAGE")],
    question: Annotated[str, typer.Argument(metavar="QUESTION")],
) -> None:
    """Ask a trained model about a picture."""
    from vlmdata import ask as asking
    from vlmdata.console import clean

    for line in asking.answer(checkpoint, image, question).splitlines():
        print(clean(line))


@app.command()
def draw(
    checkpoint: CheckpointPath,
    prompt: Annotated[str, typer.Argument(metavar="PROMPT")],
    out: Annotated[Path, typer.Argument(help="the picture to write, a .png", metavar="OUT.png")],
    seed: Annotated[int, typer.Option(min=0, help="another one gives another picture")] = 0,
    steps: Annotated[int, typer.Option(min=1, help="evaluations of the model")] = 30,
    guidance: Annotated[float, typer.Option(min=0, help="how far the text leads; 1: as trained")] = 3.0,
) -> None:
    """Draw a picture from a text."""
    from vlmdata import ask as asking

    asking.draw(checkpoint, prompt, out, seed, steps, guidance)
    print(out)


@app.command()
def locate(
    checkpoint: Annotated[Path, typer.Argument(help="the folder of a contrastive training", metavar="CHECKPOINT")],
    image: Annotated[Path, typer.Argument(help="a picture or a video", metavar="IMAGE")],
    phrase: Annotated[str, typer.Argument(help="what to look for", metavar="PHRASE")],
    out: Annotated[Path | None, typer.Option(help="the heat map, a PNG; <IMAGE's name>.heat.png otherwise")] = None,
) -> None:
    """Where in a picture, or when in a video, a trained model sees a phrase."""
    from vlmdata import locate as locating

    found = locating.locate(checkpoint, image, phrase, out or Path(f"{image.stem}.heat.png"))
    print(json.dumps(found, indent=1))


@app.command()
def evaluate(
    checkpoint: Annotated[
        str,
        typer.Argument(
            help="a training's --out or one of its checkpoints/<step>; lite, a folder of open_clip's, or MODEL/TAG",
            metavar="CHECKPOINT",
        ),
    ],
    data: Annotated[str, typer.Option(help="a dataset, shards, a folder for each class, or hf:NAME")],
    task: Annotated[
        list[str] | None,
        typer.Option(help="retrieval, zeroshot, masked, captions, answers (may be repeated); all that is possible"),
    ] = None,
    split: Annotated[str | None, typer.Option(help="of the data; test where there is one")] = None,
    captions: Annotated[str, typer.Option(help="retrieval: first, or all of an image's captions")] = "first",
    classes: Annotated[str | None, typer.Option(help="zeroshot: a file with a class's name a line")] = None,
    label: Annotated[str | None, typer.Option(help="zeroshot: the JSON's key, or the column, with the class")] = None,
    templates: Annotated[str | None, typer.Option(help="zeroshot: imagenet, simple, or a file with {c}")] = None,
    batch: Annotated[int, typer.Option(help="pictures in one batch of the model")] = 32,
    workers: Annotated[int, typer.Option(help="threads that decode ahead")] = 1,
    threads: Annotated[int, typer.Option(help="threads of the model's arithmetic")] = 1,
    limit: Annotated[int | None, typer.Option(help="only so many samples, drawn with the seed")] = None,
    resamples: Annotated[int, typer.Option(help="of the bootstrap; 0: no intervals")] = 1000,
    seed: int = 0,
) -> None:
    """Measure a checkpoint on data, with 95 % intervals: JSON on stdout, a table on stderr."""
    from vlmdata import console
    from vlmdata.evaluate import run as evaluation

    options = evaluation.options(
        tasks=tuple(task or ()), split=split, captions=captions, classes=classes, label=label, templates=templates,
        batch=batch, workers=workers, threads=threads, limit=limit, resamples=resamples, seed=seed,
    )  # fmt: skip
    with console.progress():
        result = evaluation.evaluate(checkpoint, data, options)
    for line in evaluation.table(result):
        _say(line)
    print(json.dumps(result, indent=1))


@app.command()
def compare(
    recipe: RecipePath,
    more: Annotated[list[str] | None, typer.Argument(help="further selections", metavar="[SELECTION]...")] = None,
    select: Annotated[
        list[str] | None,
        typer.Option(help="a file with a `select:`, or the word raw; the last one is compared with each other"),
    ] = None,
    seeds: Annotated[int, typer.Option(min=1, help="trainings on each selection")] = 3,
    set_: Setting = None,
) -> None:
    """Train the recipe's first job on several selections of its pool, and tell which makes the better model."""
    from vlmdata import console, recipe_file
    from vlmdata.compare import measures, selections
    from vlmdata.dataset import Dataset
    from vlmdata.plan import check_parts, check_writable, make_plan

    parsed = recipe_file.load(recipe, set_)
    chosen = selections.read(parsed, [*(select or []), *(more or [])])
    if not chosen:
        raise InputError("--select: name the selections to compare: files, or the word raw")
    dataset = Dataset(parsed.dataset)
    with recipe_file.located(recipe, set_):
        planned = make_plan(parsed)
        check_parts(planned, dataset)
        selections.plans(planned, chosen)
    check_writable(dataset)
    console.prepare_prefect(dataset)
    with console.progress():
        from vlmdata.flows.compare import run_here

        result = run_here(parsed, chosen, seeds)
    for line in measures.table(result):
        _say(line)
    _say(f"page:  {dataset.path('compare/compare.html')}")
    print(json.dumps(result, indent=1))


@app.command()
def verify(dataset: DatasetUrl) -> None:
    """Hash every file that a snapshot names; a line `path<TAB>expected<TAB>found` for each difference."""
    from vlmdata import snapshot
    from vlmdata.dataset import Dataset

    opened = Dataset(dataset)
    if not opened.exists("latest.json"):
        raise InputError(f"{dataset}: no snapshot here; make one by `vlmdata run RECIPE`")
    differences = list(snapshot.verify(opened))
    for path, expected, found in differences:
        print(f"{path}\t{expected}\t{found}")
    if differences:
        raise typer.Exit(1)
    _say("every file is what its manifest says")


@app.command()
def doctor() -> None:
    """What is installed, which models and engines are there, and what to do about what is not."""
    from vlmdata.doctor import examine

    lines = examine()
    for state, what, advice in lines:
        print(f"{state:<8}{what}" + (f": {advice}" if advice else ""))
    if any(state == "missing" for state, _, _ in lines):
        raise typer.Exit(MachineError.exit_code)


def _say(line: str) -> None:
    from vlmdata.console import clean

    print("\n".join(clean(part) for part in line.splitlines()), file=sys.stderr)


def _interrupted() -> int:
    _say("interrupted; the same command goes on where it stopped")
    return INTERRUPTED


def main() -> None:
    """Run the command line; errors become one readable line and an exit code."""
    for name, value in {
        "NO_ALBUMENTATIONS_UPDATE": "1",  # these packages call home otherwise
        "DO_NOT_TRACK": "1",
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    }.items():
        os.environ.setdefault(name, value)
    atexit.register(_silence)
    raise SystemExit(guarded(lambda: app(standalone_mode=False)))


def _silence() -> None:
    """The last thing before the interpreter ends: DuckDB's bindings would print which of their objects still live."""
    if not _state["debug"]:
        sys.stderr.flush()
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)


def guarded(command: Callable[[], Any]) -> int:
    try:
        result = command()
        code = result if isinstance(result, int) else 0
        return _interrupted() if code == INTERRUPTED else code  # Typer makes this number of Ctrl-C
    except (KeyboardInterrupt, typer.Abort):
        return _interrupted()
    except typer.Exit as stop:
        return stop.exit_code
    except TyperException as error:  # of its usage errors
        message = getattr(error, "format_message", error.__str__)()
        if message:  # none where the bare command has shown its help
            _say(f"error: {message} (--help lists what there is)")
        return InputError.exit_code
    except VlmdataError as error:
        if _state["debug"]:
            raise
        _say(f"error: {error}")
        return error.exit_code
    except OSError as error:
        if _state["debug"]:
            raise
        where = f": {error.filename}" if error.filename else ""
        _say(f"error: {error.strerror or error}{where}")
        return MachineError.exit_code
    except Exception as error:
        if _state["debug"]:
            raise
        _say(f"error: {type(error).__name__}: {error} (a bug: `vlmdata --debug …` shows where)")
        return MachineError.exit_code


if __name__ == "__main__":
    main()
