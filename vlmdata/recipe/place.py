"""Where a job runs."""

from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field

from vlmdata.recipe.options import Options, kind_alone

Word = Annotated[str, Field(pattern=r"^[\w.,:=@%+/-]+$")]  # it stands in a line of a batch script


class LocalPlace(Options):
    """This machine, one process."""

    kind: Literal["local"]
    processes: ClassVar[int] = 1
    nodes: ClassVar[int] = 1


class TorchrunPlace(Options):
    """This machine, several processes that train together."""

    kind: Literal["torchrun"]
    processes: int = Field(1, gt=0, description="one a GPU")
    nodes: ClassVar[int] = 1


class SlurmPlace(Options):
    """Slurm, through submitit. Its nodes see the dataset's folder and this Python under the same paths."""

    kind: Literal["slurm"]
    partition: Word | None = None
    account: Word | None = None
    qos: Word | None = None
    constraint: Word | None = None
    nodes: int = Field(1, gt=0)
    processes: int = Field(1, gt=0, description="on each node, one a GPU; torchrun starts them where there are several")
    gpus: int = Field(0, ge=0, description="of each node")
    cpus: int = Field(1, gt=0, description="of each node")
    memory: float | None = Field(None, gt=0, description="GB of each node")
    time: int = Field(24 * 60, gt=0, description="minutes after which Slurm ends it")


class DeploymentPlace(Options):
    """A Prefect deployment of the flow `train`, on any work pool. Its workers see the dataset under the same path."""

    kind: Literal["deployment"]
    name: str = Field(pattern=r"^[^/]+/[^/]+$", description="flow/deployment")
    processes: int = Field(1, gt=0, description="on the worker's machine, one a GPU")
    nodes: ClassVar[int] = 1


Place = Annotated[
    Annotated[LocalPlace | TorchrunPlace | SlurmPlace | DeploymentPlace, Field(discriminator="kind")],
    BeforeValidator(kind_alone),
]
LOCAL = LocalPlace(kind="local")
