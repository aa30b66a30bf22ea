"""What is started on a snapshot."""

import re
from typing import Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field

from vlmdata.recipe.options import Name, Options, nearest
from vlmdata.recipe.place import LOCAL, Place
from vlmdata.recipe.train import AnyTrainJob

OF_A_SPLIT = ("webdataset", "parquet", "samples")
PLACEHOLDERS = (*OF_A_SPLIT, "snapshot", "dataset", "out", "python")
# `{{word}}` stands for `{word}` itself; braces around anything else, such as JSON, are left alone.
PLACEHOLDER = re.compile(
    r"\{\{(?P<kept>[A-Za-z][\w:-]*)\}\}|\{(?P<name>[A-Za-z][\w-]*)(?::(?P<split>[a-z][a-z0-9_]*))?\}"
)


def _placeholders(argument: str) -> str:
    """Raise ValueError for a placeholder that does not exist."""
    for found in PLACEHOLDER.finditer(argument):
        name = found["name"]
        if name and name not in PLACEHOLDERS:
            raise ValueError(
                f"there is no placeholder {{{name}}}{nearest(name, PLACEHOLDERS)}; "
                f"write {{{{{name}}}}} for the word in braces itself"
            )
        if found["split"] and name not in OF_A_SPLIT:
            raise ValueError(f"{found[0]}: only {', '.join(OF_A_SPLIT)} are of a split")
    if "\0" in argument:
        raise ValueError("an argument holds no NUL character")
    return argument


Argument = Annotated[str, AfterValidator(_placeholders)]
Variable = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]*$")]


class CommandJob(Options):
    """Any program on a snapshot's shards. No shell sees the arguments."""

    kind: Literal["command"]
    name: Name = "command"
    run: list[Argument] = Field(
        min_length=1,
        description="the program and its arguments; {webdataset}, {parquet}, {samples} (of the split train, or "
        "{samples:test}), {snapshot}, {dataset}, {out} and {python} are filled in",
    )
    env: dict[Variable, Argument] = Field({}, description="environment variables beside those of vlmdata itself")
    on: Place = LOCAL
    timeout: float | None = Field(None, gt=0, description="seconds after which it is ended, and counts as failed")
    unkeyed: ClassVar[frozenset[str]] = frozenset({"on", "timeout"})

    def used(self) -> list[tuple[str, str]]:
        """The placeholders that are of a split, with it."""
        found = [match for text in (*self.run, *self.env.values()) for match in PLACEHOLDER.finditer(text)]
        return [(match["name"], match["split"] or "train") for match in found if match["name"] in OF_A_SPLIT]


Job = Annotated[AnyTrainJob | CommandJob, Field(discriminator="kind")]
