"""How selections of one pool are compared."""

from pydantic import Field

from vlmdata.recipe.options import Options


class Compare(Options):
    """What `vlmdata compare` measures its models on."""

    test: str | None = Field(
        None,
        min_length=1,
        description="clean pairs that no selection may train on: shards (a path, a glob, any fsspec URL) or a dataset",
    )
