"""The Typer application, and the arguments that several commands share."""

import sys
from pathlib import Path
from typing import Annotated

import typer

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

state = {"debug": False}


@app.callback()
def options(debug: Annotated[bool, typer.Option("--debug", help="show tracebacks and every log line")] = False) -> None:
    from vlmdata.console import configure_logging

    state["debug"] = debug
    configure_logging(debug)


def say(line: str) -> None:
    from vlmdata.console import clean

    print("\n".join(clean(part) for part in line.splitlines()), file=sys.stderr)
