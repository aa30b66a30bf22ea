"""Where parts are worked on, and how large they are."""

from typing import Literal

from pydantic import Field

from vlmdata.recipe.options import Name, Options

RunnerKind = Literal["direct", "dask", "flink", "spark", "prism", "dataflow"]
OptionValue = bool | int | float | str | list[str]


class Runner(Options):
    """Where parts are worked on: a runner of Beam, and its options by Beam's names (docs/engines.md)."""

    kind: RunnerKind = "direct"
    workers: int | None = Field(
        None, gt=0, description="threads (direct) or processes; default: one a core, or those at the address"
    )
    address: str | None = Field(None, description="of the Dask scheduler; default: a local cluster")
    options: dict[Name, OptionValue] = Field(
        {}, description="handed to Beam: {flink_master: 'host:8081'} is --flink_master=host:8081, true a bare flag"
    )


class Parts(Options):
    rows: int = Field(10_000, gt=0)
