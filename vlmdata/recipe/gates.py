"""When a refresh stops before it publishes."""

from typing import Annotated

from pydantic import Field, field_validator

from vlmdata.recipe.options import Options

Share = Annotated[float, Field(ge=0, le=1)]


class Gates(Options):
    """Limits for what a refresh brings, judged on its new pairs alone, before shards are written."""

    kept_share: tuple[Share, Share] | None = Field(
        None, description="[least, most] of the new pairs that are kept, shares from 0 to 1"
    )
    error_share: Share | None = Field(None, description="of the new pairs whose download ended in an error, at most")
    score: dict[str, Share] = Field(
        {}, description="numeric column -> Kolmogorov-Smirnov distance from the snapshot in force, at most"
    )
    languages: Share | None = Field(
        None, description="total variation distance of the mix of `lang` from the snapshot in force, at most"
    )
    min_pairs: int = Field(1, ge=1, description="fewer new pairs are not judged")

    @field_validator("kept_share")
    @classmethod
    def _ordered(cls, share: tuple[float, float] | None) -> tuple[float, float] | None:
        if share and share[0] > share[1]:
            raise ValueError("write it as [least, most]")
        return share
