"""The files that training reads."""

from typing import Literal

from pydantic import Field, field_validator

from vlmdata.recipe.options import Name, Options


class Shards(Options):
    """The files that training reads."""

    formats: list[Literal["webdataset", "parquet"]] = Field(["webdataset", "parquet"], min_length=1)
    samples: int = Field(10_000, gt=0, description="in one shard, at most")
    seed: int = 0
    columns: list[str] = Field([], description="further columns of samples for the shards' JSON")
    blur_faces: bool = Field(False, description="make the faces that the signal `faces` found unrecognisable")
    splits: dict[Name, float] = {"train": 1.0}

    @field_validator("splits")
    @classmethod
    def _whole(cls, splits: dict[str, float]) -> dict[str, float]:
        if any(share <= 0 for share in splits.values()) or abs(sum(splits.values()) - 1) > 1e-9:
            raise ValueError("the splits' shares must be above 0 and add up to 1")
        return splits
