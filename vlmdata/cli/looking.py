"""Commands that show a dataset, or write it in another form."""

import json
from enum import StrEnum
from typing import Annotated

import typer

from vlmdata.cli.application import DatasetUrl, app
from vlmdata.cli.keeping import Answer
from vlmdata.errors import InputError


class Format(StrEnum):
    """How `sql` writes its answer."""

    table = "table"
    csv = "csv"
    json = "json"


@app.command()
def sql(
    dataset: DatasetUrl,
    query: Annotated[str | None, typer.Argument(help="one SELECT; without it a prompt opens")] = None,
    format_: Annotated[Format, typer.Option("--format", help="of the answer")] = Format.table,
) -> None:
    """Ask the dataset in SQL: the view `samples` and a view for every table."""
    from vlmdata import catalog, console
    from vlmdata.tags import opened

    connection = catalog.connect(*opened(dataset))
    if query is not None:
        console.write_answer(catalog.query(connection, query), format_)
        return
    console.prompt(connection, format_)


@app.command()
def diff(
    dataset: DatasetUrl,
    before: Annotated[str, typer.Argument(help="a snapshot's number or name", metavar="A")],
    after: Annotated[str, typer.Argument(help="another one's", metavar="B")],
    format_: Annotated[Answer, typer.Option("--format", help="of the answer")] = Answer.text,
) -> None:
    """What came, went and changed between two snapshots: counts by verdict, and examples."""
    from vlmdata import diff as difference
    from vlmdata.console import clean
    from vlmdata.dataset import Dataset
    from vlmdata.tags import number_of

    opened = Dataset(dataset)
    found = difference.diff(opened, *(opened.snapshot(number_of(opened, word)) for word in (before, after)))
    if format_ is Answer.json:
        print(json.dumps(found, indent=1, ensure_ascii=False))
        return
    for line in difference.lines(found):
        print(clean(line))


@app.command()
def show(dataset: DatasetUrl, uid: Annotated[str, typer.Argument(metavar="UID")]) -> None:
    """One pair's whole story: where it came from, every measure, its duplicates, its verdict."""
    from vlmdata import console
    from vlmdata.dataset import Dataset

    console.show_pair(Dataset(dataset), uid)


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


class ExportFormat(StrEnum):
    """What `export` writes."""

    datacomp = "datacomp"
    hf = "hf"
    mds = "mds"
    csv = "csv"


@app.command()
def export(
    dataset: DatasetUrl,
    to: Annotated[ExportFormat, typer.Option("--to", help="the format")],
    out: Annotated[str, typer.Argument(help="a file (datacomp, csv) or folder (hf, mds) to make", metavar="OUT")],
) -> None:
    """Write the newest snapshot's kept pairs in another format, and print where."""
    from vlmdata.export import export as write
    from vlmdata.tags import opened

    print(write(*opened(dataset), to.value, out))
