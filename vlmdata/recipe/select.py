"""Which pairs are kept."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from vlmdata.recipe.options import Name, Options, Paths, kind_alone


class Balance(Options):
    """Frequent entries (words and phrases) are sampled down, rare ones are kept whole, as MetaCLIP describes."""

    kind: Literal["metaclip"]
    limit: int = Field(20_000, gt=0, description="matches of an entry from which on it is sampled")
    entries: Paths = Field(
        ["wordnet", "unigrams", "bigrams"],
        min_length=1,
        description="wordnet; unigrams and bigrams of the pool; files with an entry a line",
    )
    wordnet: str = Field("/usr/share/wordnet", description="the folder of WordNet's data.noun, data.verb and so on")
    min_count: int = Field(100, gt=0, description="how often a word or bigram of the pool stands in it, at least")
    min_pmi: float = Field(3.0, description="pointwise mutual information of a bigram, bits, at least")
    unmatched: Literal["drop", "keep"] = Field("drop", description="pairs that match no entry")
    seed: int = 0


class Sample(Options):
    """A fixed number of the pairs that are left, drawn by weight."""

    weights: dict[Name, Annotated[float, Field(ge=0)]] | str = Field(
        {}, description="source -> weight (1 where it is not named), or a SQL expression over columns"
    )
    count: int = Field(gt=0, description="samples in the shards")
    replacement: bool = Field(False, description="whether a pair may stand in the shards more than once")
    seed: int = 0


class Top(Options):
    """The pairs with the largest values, ties by uid; NULL and NaN are never among them."""

    by: str = Field(description="a column, or a SQL expression whose value is a number")
    fraction: float | None = Field(None, gt=0, le=1, description="of the pairs that are ranked, rounded up")
    count: int | None = Field(None, gt=0, description="instead of fraction")
    of: Literal["passed", "pool"] = Field("passed", description="ranked are those that are left, or all pairs")

    @model_validator(mode="after")
    def _one_size(self) -> "Top":
        if (self.fraction is None) == (self.count is None):
            raise ValueError("either `fraction` or `count` says how many stay")
        return self


class DatacompBasicPreset(Options):
    """DataComp's basic filter."""

    kind: Literal["datacomp-basic"]


class DatacompClipPreset(Options):
    """DataComp's CLIP score filter: at least `threshold`, or the `fraction` of all pairs by its rank rule."""

    kind: Literal["datacomp-clip"]
    score: str = Field("clip_score", description="the column")
    threshold: float | None = None
    fraction: float | None = Field(None, gt=0, le=1, description="default, without a threshold: 0.3")

    @model_validator(mode="after")
    def _one_size(self) -> "DatacompClipPreset":
        if self.threshold is not None and self.fraction is not None:
            raise ValueError("either `threshold` or `fraction` says how many stay")
        return self


class DatacompLaion2bPreset(Options):
    """DataComp's reproduction of LAION-2B's filter."""

    kind: Literal["datacomp-laion2b"]
    score: str = Field("clip_score", description="the column with ViT-B/32's score")


class DatacompTextBasedPreset(Options):
    """DataComp's text-based filter."""

    kind: Literal["datacomp-text-based"]


class DatacompImageBasedPreset(Options):
    """DataComp's image-based filter."""

    kind: Literal["datacomp-image-based"]
    near_target: str = Field("near_target", description="the bool column: the image's cluster is nearest to a target's")


class LaionAestheticsPreset(Options):
    """LAION-Aesthetics V2's subsets by predicted aesthetic score."""

    kind: Literal["laion-aesthetics"]
    score: str = Field("aesthetic_score", description="the column")
    threshold: float = Field(5.0, description="the published subsets: 4.5, 4.75, 5, 6, 6.25, 6.5")


class ObelicsImagePreset(Options):
    """OBELICS' filter of images by their size."""

    kind: Literal["obelics-image"]


Preset = Annotated[
    DatacompBasicPreset
    | DatacompClipPreset
    | DatacompLaion2bPreset
    | DatacompTextBasedPreset
    | DatacompImageBasedPreset
    | LaionAestheticsPreset
    | ObelicsImagePreset,
    Field(discriminator="kind"),
]


class Select(Options):
    """Which pairs are kept: the first rule that is not true is the reason."""

    preset: Annotated[
        list[Annotated[Preset, BeforeValidator(kind_alone)]],
        BeforeValidator(lambda value: value if isinstance(value, list) else [value]),
    ] = Field([], description="published selections; their rules come first, and several make an intersection")
    rules: dict[Name, str] = {}
    survivor: str = Field(
        "original_width * original_height desc, length(caption) desc",
        description="which of a group stays: an order in SQL, or `hard`, `easy` (farthest from and nearest to the "
        "centroid of its partition, as SemDeDup has them) or `random`",
    )
    dedup: list[str] | None = Field(
        None,
        description="of the recipe's `dedup` the kinds whose duplicates are rejected; default: all. What stands in an "
        "evaluation set is rejected in any case",
    )
    top: Top | None = None
    balance: Balance | None = None
    sample: Sample | None = None
