"""Commands that train, measure and use models."""

import json
from pathlib import Path
from typing import Annotated

import typer

from vlmdata.cli.application import CheckpointPath, RecipePath, Setting, app, say
from vlmdata.errors import InputError


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
    images: Annotated[
        list[Path], typer.Argument(help="pictures, or videos for a model of several frames", metavar="IMAGE…")
    ],
) -> None:
    """Describe pictures by a trained model, one line for each."""
    from vlmdata import ask as asking
    from vlmdata.console import clean

    for line in asking.captions(checkpoint, images):
        print(clean(" ".join(line.split())))


@app.command()
def ask(
    checkpoint: CheckpointPath,
    image: Annotated[Path, typer.Argument(help="a picture, or a video for a model of several frames", metavar="IMAGE")],
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
        say(line)
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
        say(line)
    say(f"page:  {dataset.path('compare/compare.html')}")
    print(json.dumps(result, indent=1))
