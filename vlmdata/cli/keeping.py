"""Commands that look after a dataset and this installation."""

import json
from enum import StrEnum
from pathlib import Path
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
    """Hash every file, look for what was forgotten; a line `path<TAB>expected<TAB>found` for each difference."""
    from vlmdata import snapshot
    from vlmdata.dataset import Dataset
    from vlmdata.download.forgotten import LIST

    opened = Dataset(dataset)
    if not opened.exists("latest.json"):
        raise InputError(f"{dataset}: no snapshot here; make one by `vlmdata run RECIPE`")
    differences = list(snapshot.verify(opened))
    for path, expected, found in differences:
        print(f"{path}\t{expected}\t{found}")
    if differences:
        raise typer.Exit(1)
    say("every file is what its manifest says" + (", and nothing forgotten is left" if opened.exists(LIST) else ""))


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


@app.command()
def forget(
    dataset: DatasetUrl,
    uid: Annotated[list[str] | None, typer.Option(help="a pair's uid; may be repeated, as all of these")] = None,
    url: Annotated[list[str] | None, typer.Option(help="an image's URL")] = None,
    domain: Annotated[list[str] | None, typer.Option(help="a domain, its subdomains too; of images or pages")] = None,
    sha256: Annotated[list[str] | None, typer.Option(help="the SHA-256 of an image's bytes as received")] = None,
    like: Annotated[list[Path] | None, typer.Option(help="an image file: what looks like it")] = None,
    distance: Annotated[int, typer.Option(min=0, max=16, help="of --like: differing bits of 64")] = 4,
    from_: Annotated[list[str] | None, typer.Option("--from", help="a list of uids, URLs, domains, SHA-256s")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="only say what would be forgotten")] = False,
) -> None:
    """Forget samples: out of tables, images, shards and reports of every snapshot, and refused when they come back.

    Prints their uids. Without an option an interrupted forgetting is finished.
    """
    from collections import Counter

    from vlmdata import forget as forgetting
    from vlmdata.dataset import Dataset
    from vlmdata.forget.find import KINDS
    from vlmdata.forget.request import request
    from vlmdata.lock import lock

    opened = Dataset(dataset)
    if not opened.exists("tables"):
        raise InputError(f"{dataset}: no dataset here")
    named = {"uid": uid, "url": url, "domain": domain, "sha256": sha256}
    given = [(kind, value) for kind, values in named.items() for value in values or []]
    asked = request(given, like or [], from_ or [], distance)
    under_way = opened.exists(forgetting.JOURNAL)
    if not asked and not under_way:
        raise InputError("name what is to be forgotten: --uid, --url, --domain, --sha256, --like or --from")
    if dry_run:
        found = forgetting.meant(opened, asked)
    else:
        with lock(opened, "vlmdata forget"):
            if forgetting.finish(opened):
                say("the forgetting that was interrupted is finished")
            found = forgetting.forget(opened, asked) if asked else {}
    for each in sorted(found):
        print(each)
    if asked:
        counts = Counter(found.values())
        said = ", ".join(f"{counts[kind]:,} by {kind}" for kind in KINDS if counts[kind])
        done = "would be forgotten" if dry_run else "forgotten"
        say(f"{len(found):,} pairs {done}: {said}" if found else "no pair matches; it is refused should it come")
