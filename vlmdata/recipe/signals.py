"""What is measured."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from vlmdata.recipe.options import Options, Paths


class _Signal(Options):
    """after: the rules that a pair must pass before the signal is measured."""

    name: Literal[""] = ""
    after: list[str] = []


class _Named(_Signal):
    """A family that may stand in a recipe more than once: the columns of `name: b` end in `_b`."""

    name: str = Field("", pattern=r"^([a-z][a-z0-9_]*)?$")  # type: ignore[assignment]


class TextSignal(_Signal):
    kind: Literal["text"]


class PiiSignal(_Signal):
    """Personal data in captions."""

    kind: Literal["pii"]


class FluencySignal(_Named):
    """The caption's mean token loss under a language model: `smollm2` (embedded), a folder, or one of the hub."""

    kind: Literal["fluency"]
    model: str = "smollm2"
    revision: str | None = Field(None, description="of a model of the hub: a commit, so that its values stay the same")
    tokens: int = Field(512, ge=128, description="in one batch of the model")


class LanguageSignal(_Named):
    """`fasttext` is lid.176, `cld3` Google's compact language detector; a second one has a `name`."""

    kind: Literal["language"]
    model: Literal["fasttext", "cld3"] = "fasttext"
    path: str | None = Field(
        None, description="fastText's file, such as the full model lid.176.bin; default: the compressed lid.176.ftz"
    )

    unkeyed: ClassVar[frozenset[str]] = frozenset({"path"})  # the file's hash is in the key

    @model_validator(mode="after")
    def _of_fasttext(self) -> "LanguageSignal":
        if self.path is not None and self.model != "fasttext":
            raise ValueError("`path` is a file of fastText's: leave it out for cld3")
        return self


class WordnetSignal(_Signal):
    """Whether a caption speaks of what is among ImageNet-21k's classes."""

    kind: Literal["wordnet"]
    path: str = Field("/usr/share/wordnet", description="the folder of WordNet 3.0's index.noun, noun.exc and so on")


class ImageSignal(_Signal):
    kind: Literal["image"]


class OcrSignal(_Signal):
    """Regions of text in the image; what is written there is not read."""

    kind: Literal["ocr"]
    size: int = Field(736, ge=32, le=4096, description="the longer side that the detector sees; none is enlarged")


class FacesSignal(_Signal):
    """Where faces are. Nobody is recognised."""

    kind: Literal["faces"]
    size: int = Field(640, ge=32, le=4096, description="the longer side that the detector sees; none is enlarged")
    threshold: float = Field(0.4, ge=0.05, lt=1, description="a face's score, at least")


class NsfwSignal(_Named):
    kind: Literal["nsfw"]
    batch: int = Field(16, gt=0)


class ClipSignal(_Named):
    """`model: lite` (embedded), or any open_clip architecture with a pretrained tag or a checkpoint's path."""

    kind: Literal["clip"]
    model: str = "lite"
    pretrained: str | None = None
    batch: int = Field(32, gt=0)
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="of the towers; auto: bf16 on a GPU that has it, else fp32; lite is fp32"
    )

    # The identity of model and preprocessing is in the key instead: a model that moved is the same model.
    unkeyed: ClassVar[frozenset[str]] = frozenset({"model", "pretrained"})

    def keyed(self, *apart: str) -> dict[str, Any]:
        """As `Options.keyed`; lite has batches of its own and is fp32."""
        return super().keyed(*apart, *(("batch", "precision") if self.model == "lite" else ()))


class AestheticSignal(_Named):
    """A linear or MLP head over another signal's embeddings."""

    kind: Literal["aesthetic"]
    embeddings: str = Field("clip", description="the signal whose embeddings are read: `clip`, or `clip_<name>`")
    head: str = Field(description="the head's weights: a local .safetensors, .npz, .pth or .pt file")
    activation: Literal["none", "relu"] = Field("none", description="between the head's layers")


class PythonSignal(_Named):
    """The user's own: a Python file with one function under `@vlmdata.signal(…)`."""

    kind: Literal["python"]
    path: str


class FilterSignal(_Named):
    """A filter network (Fang 2023, arXiv:2309.17425): trained on the pairs of trusted sources, it scores every pair."""

    kind: Literal["filter"]
    trusted: list[str] = Field([], description="names of the sources that it is trained on")
    checkpoint: str | None = Field(None, description="instead of `trusted`: a folder with a filter that is trained")
    model: str = Field(
        "tiny", description="tiny, lite (heads on locked towers), an open_clip architecture, or its JSON"
    )
    pretrained: str | None = Field(None, description="a tag or checkpoint of the open_clip architecture to begin from")
    steps: int = Field(200, gt=0)
    batch: int = Field(64, gt=1, description="pairs of one training step")
    lr: float = Field(1e-3, gt=0)
    warmup: int = Field(10, ge=0, description="steps")
    weight_decay: float = Field(0.1, ge=0)
    crop: float = Field(1.0, gt=0, le=1, description="the smallest side of a random training crop, of the shorter side")
    seed: int = Field(0, ge=0)

    unkeyed: ClassVar[frozenset[str]] = frozenset({"checkpoint"})  # the hashes of its files are in the key

    @model_validator(mode="after")
    def _one_origin(self) -> "FilterSignal":
        if bool(self.trusted) == (self.checkpoint is not None):
            raise ValueError("either `trusted` names the sources to train on, or `checkpoint` a trained filter")
        return self


class NearTargetSignal(_Named):
    """Whether no cluster of the pool's images is nearer than one to which a target is nearest (DataComp's image-based
    filtering, Gadre 2023, arXiv:2304.14108)."""

    kind: Literal["near_target"]
    embeddings: str = Field("clip", description="the signal whose embeddings are clustered: `clip`, or `clip_<name>`")
    targets: Paths = Field(
        [], description="folders, images, tars, Parquet, npy and npz with images or their vectors: paths, globs, URLs"
    )
    checkpoint: str | None = Field(None, description="instead of `targets`: a folder with clusters that are made")
    clusters: int | None = Field(None, gt=0, description="about; default: one for 128 pairs, 100,000 at most")
    seed: int = Field(0, ge=0)

    unkeyed: ClassVar[frozenset[str]] = frozenset({"targets", "checkpoint"})  # what their files hold is in the key

    @model_validator(mode="after")
    def _one_origin(self) -> "NearTargetSignal":
        if bool(self.targets) == (self.checkpoint is not None):
            raise ValueError("either `targets` names images or vectors, or `checkpoint` a folder with clusters")
        return self


class MaskedClipSignal(ClipSignal):
    """The score of `clip` for the image with its text painted over; options as those of `clip`."""

    kind: Literal["masked_clip"]  # type: ignore[assignment]  # the same options under another kind
    size: int = Field(736, ge=32, le=4096, description="the longer side that the text's detector sees, as for `ocr`")


class SscdSignal(_Named):
    """Copy-detection embeddings, for `dedup`: table `embeddings_sscd`."""

    kind: Literal["sscd"]
    model: Literal["sscd", "distilled"] = Field(
        "sscd", description="distilled: a smaller one, two to three times as fast"
    )
    batch: int = Field(16, gt=0)


Signal = Annotated[
    TextSignal
    | PiiSignal
    | FluencySignal
    | LanguageSignal
    | WordnetSignal
    | ImageSignal
    | OcrSignal
    | FacesSignal
    | NsfwSignal
    | ClipSignal
    | MaskedClipSignal
    | AestheticSignal
    | PythonSignal
    | FilterSignal
    | NearTargetSignal
    | SscdSignal,
    Field(discriminator="kind"),
]
