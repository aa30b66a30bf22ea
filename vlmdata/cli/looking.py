"""Commands that show a dataset, or write it in another form."""

from enum import StrEnum
from typing import Annotated

import typer

from vlmdata.cli.application import DatasetUrl, app
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
    from vlmdata.dataset import Dataset
    from vlmdata.export import export as write

    opened = Dataset(dataset)
    latest = opened.latest()
    if latest is None:
        raise InputError(f"{dataset}: no snapshot here; make one by `vlmdata run RECIPE`")
    print(write(opened, latest, to.value, out))
