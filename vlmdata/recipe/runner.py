"""Where parts are worked on, and how large they are."""

from typing import Literal

from pydantic import Field

from vlmdata.recipe.options import Options


class Runner(Options):
    """Where parts are worked on."""

    kind: Literal["direct", "dask"] = "direct"
    workers: int | None = Field(
        None, gt=0, description="threads (direct) or processes (dask); default: one a core, or those at the address"
    )
    address: str | None = Field(None, description="of the Dask scheduler; default: a local cluster")


class Parts(Options):
    rows: int = Field(10_000, gt=0)
