"""Commands that look after a dataset and this installation."""

import typer

from vlmdata.cli.application import DatasetUrl, app, say
from vlmdata.errors import InputError, MachineError


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
def doctor() -> None:
    """What is installed, which models and engines are there, and what to do about what is not."""
    from vlmdata.doctor import examine

    lines = examine()
    for state, what, advice in lines:
        print(f"{state:<8}{what}" + (f": {advice}" if advice else ""))
    if any(state == "missing" for state, _, _ in lines):
        raise typer.Exit(MachineError.exit_code)
