"""How duplicates are found."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from vlmdata.recipe.options import Options, Paths


class _Merging(Options):
    merge: Literal["captions"] | None = Field(
        None, description="`captions`: the survivor of a group gets the captions of those that it replaces"
    )

    # Groups are the same either way: what becomes of their members is the selection's.
    unkeyed: ClassVar[frozenset[str]] = frozenset({"merge"})


class ExactDedup(_Merging):
    """The same bytes."""

    kind: Literal["exact"]


Groups = Literal["connected", "semdedup"]
_GROUPS = "one survivor a connected group; or SemDeDup's rule: what is like an earlier one by `survivor` goes"


class PixelsDedup(_Merging):
    """The same pixels, once resized and stored, in whatever file they came."""

    kind: Literal["pixels"]


class UrlDedup(_Merging):
    """The same URL, once it is normalised."""

    kind: Literal["url"]


class PerceptualDedup(_Merging):
    kind: Literal["perceptual"]
    distance: int = Field(4, ge=0, le=16, description="differing bits of 64, at most")
    groups: Groups = Field("connected", description=_GROUPS)


class SemanticDedup(_Merging):
    kind: Literal["semantic"]
    embeddings: str = Field("clip", description="the signal whose embeddings are compared: `clip`, or `clip_<name>`")
    similarity: float = Field(0.95, gt=0, le=1, description="cosine, at least")
    groups: Groups = Field("connected", description=_GROUPS)


class DecontaminateDedup(Options):
    """What stands in an evaluation set is rejected, every copy of it."""

    kind: Literal["decontaminate"]
    against: Paths = Field(
        min_length=1, description="folders, images, tars, Parquet, npy and npz: paths, globs, any fsspec URL"
    )
    distance: int | None = Field(
        4, ge=0, le=16, description="differing bits of the perceptual hash; null: do not compare"
    )
    embeddings: str | None = Field(None, description="the signal whose embeddings are compared too: `sscd`, `clip_b`")
    similarity: float | None = Field(None, gt=0, le=1, description="cosine of these embeddings, at least")

    @model_validator(mode="after")
    def _both(self) -> "DecontaminateDedup":
        if (self.embeddings is None) != (self.similarity is None):
            raise ValueError("`embeddings` and `similarity` go together: a threshold is one model's")
        return self


Dedup = Annotated[
    ExactDedup | PixelsDedup | UrlDedup | PerceptualDedup | SemanticDedup | DecontaminateDedup,
    Field(discriminator="kind"),
]
