"""Commands that look after a dataset and this installation."""

import json
from enum import StrEnum
from typing import Annotated

import typer

from vlmdata.cli.application import DatasetUrl, app, say
from vlmdata.errors import InputError, MachineError


class Answer(StrEnum):
    """How an answer is written."""

    text = "text"
    json = "json"


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
    say("every file is what its manifest says")


@app.command()
def status(
    dataset: DatasetUrl, format_: Annotated[Answer, typer.Option("--format", help="of the answer")] = Answer.text
) -> None:
    """What is running on a dataset and when it will be done; otherwise how the last run ended."""
    from vlmdata import status as states
    from vlmdata.dataset import Dataset

    found = states.status(Dataset(dataset))
    if format_ is Answer.json:
        print(json.dumps(found, indent=1))
        return
    for line in states.lines(found):
        print(line)


@app.command()
def tag(
    dataset: DatasetUrl,
    name: Annotated[str | None, typer.Argument(help="without it the names that there are", metavar="NAME")] = None,
    snapshot: Annotated[str | None, typer.Argument(help="its number or another name; default: in force")] = None,
    remove: Annotated[bool, typer.Option("--remove", help="take the name away")] = False,
) -> None:
    """Name a snapshot: `DATASET@NAME` then means it."""
    from vlmdata import tags
    from vlmdata.dataset import Dataset

    opened = Dataset(dataset)
    if name is None:
        for known, number in tags.tags(opened).items():
            print(f"{known}\t{number}")
    elif remove:
        tags.remove(opened, name)
    else:
        print(f"{name}\t{tags.tag(opened, name, snapshot)}")


@app.command()
def gc(
    dataset: DatasetUrl,
    keep: Annotated[int, typer.Option(min=1, help="so many of the newest snapshots stay")] = 2,
    yes: Annotated[bool, typer.Option("--yes", help="remove it; otherwise it is only listed")] = False,
) -> None:
    """Remove older snapshots without a name, and all that no remaining one refers to."""
    from vlmdata import gc as collector
    from vlmdata.dataset import Dataset
    from vlmdata.lock import lock

    opened = Dataset(dataset)
    if not yes:
        for line in collector.lines(collector.garbage(opened, keep)):
            print(line)
        say("nothing was removed; --yes removes it")
        return
    with lock(opened, "vlmdata gc"):
        found = collector.garbage(opened, keep)
        collector.collect(opened, found)
    for line in collector.lines(found):
        print(line)


@app.command()
def doctor() -> None:
    """What is installed, which models and engines are there, and what to do about what is not."""
    from vlmdata.doctor import examine

    lines = examine()
    for state, what, advice in lines:
        print(f"{state:<8}{what}" + (f": {advice}" if advice else ""))
    if any(state == "missing" for state, _, _ in lines):
        raise typer.Exit(MachineError.exit_code)
