"""The recipe: the one place where options and their defaults live. `vlmdata.recipe_file.load` reads one."""

import difflib
import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

Name = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*$")]


def _bytes(value: object) -> object:
    """`50MB` as a number of bytes (decimal units)."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(k|M|G)?B", value) if isinstance(value, str) else None
    return int(float(match[1]) * {None: 1, "k": 10**3, "M": 10**6, "G": 10**9}[match[2]]) if match else value


def _kind_alone(value: object) -> object:
    """`- text` as `- {kind: text}`."""
    return {"kind": value} if isinstance(value, str) else value


Paths = Annotated[list[str], BeforeValidator(lambda value: [value] if isinstance(value, str) else value)]
Bytes = Annotated[int, BeforeValidator(_bytes), Field(gt=0)]


class Options(BaseModel):
    """Options that refuse what they do not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
    unkeyed: ClassVar[frozenset[str]] = frozenset()  # options that are no part of the key

    def keyed(self, *apart: str) -> dict[str, Any]:
        """What of these options goes into a table's key: all but `unkeyed` and `apart`, as JSON has it.

        What is at its default is left out, so that a later version's new option leaves the tables of those who do not
        use it as they are, and a default that is written down is the same as one that is not. A default that CHANGES
        therefore keeps its old key: whoever changes one raises the VERSION of the module whose tables it changes
        (tests/test_plan.py notices). What has no default always stays, the kind with it. A key knows no order of a
        mapping's entries: where it matters, the caller adds it.
        """
        return self.model_dump(mode="json", exclude_defaults=True, exclude={*self.unkeyed, *apart})


class CrawlSource(Options):
    """Web pages, followed from link to link within the hosts of `start`."""

    kind: Literal["crawl"]
    name: Name = "crawl"
    start: list[str] = Field(min_length=1)
    max_pages: int | None = Field(None, gt=0, description="pages read, at most")
    max_depth: int | None = Field(None, ge=0, description="links from a start page or a sitemap's page, at most")
    sitemaps: bool = Field(True, description="read the pages that the hosts' sitemaps list, too")
    concurrency: int = Field(8, gt=0, le=64, description="requests at once to one host, at most")
    delay: float = Field(0.0, ge=0, description="seconds between requests to one host; robots.txt may ask for more")
    autothrottle: bool = Field(True, description="leave as much time between requests as the host needs to answer one")
    skip: bool = Field(False, description="no image is fetched: pairs are selected by what the sources tell of them")
    agent: str = Field("vlmdata", pattern=r"^[!-~]+$", description="the user agent's name; robots.txt may address it")
    contact: str | None = Field(None, pattern=r"^[!-~]+$", description="an address or URL sent with the user agent")
    allow_hosts: list[str] = Field([], description="`host` or `host:port` that may be at a private address")
    max_page_bytes: Bytes = 10_000_000

    # How fast and under which contact pages are read does not change what they hold.
    unkeyed: ClassVar[frozenset[str]] = frozenset({"concurrency", "delay", "autothrottle", "contact"})

    @field_validator("start")
    @classmethod
    def _http(cls, start: list[str]) -> list[str]:
        for url in start:
            if not re.match(r"https?://[^/\s]+", url):
                raise ValueError(f"{url!r} is not an http(s) URL")
        return start


class CommonCrawlSource(Options):
    """WAT or WARC files of Common Crawl, or of any crawler that writes WARC."""

    kind: Literal["commoncrawl"]
    name: Name = "commoncrawl"
    paths: list[str] = Field(min_length=1, description="files, globs, `wat.paths.gz` listings; any fsspec URL")
    format: Literal["wat", "warc"]
    base: str = Field("", description="put before the relative paths of a listing: `s3://commoncrawl/`, or a folder")
    agent: str = Field(
        "vlmdata", min_length=1, description="the name by which a page's robots directives may address us"
    )


class FolderSource(Options):
    """Images with a .txt or .json file of the same name beside them, an ImageFolder's metadata, or COCO captions."""

    kind: Literal["folder"]
    name: Name = "folder"
    path: str
    annotations: str | None = Field(None, description="a COCO captions file (JSON) about the folder's images")
    limit: int | None = Field(None, gt=0, description="the first so many images in the order of their paths")


class WebdatasetSource(Options):
    """WebDataset tars, or an img2dataset output folder: their images are stored, not downloaded again."""

    kind: Literal["webdataset"]
    name: Name = "webdataset"
    path: str = Field(description="a folder, a tar or a glob; a Parquet file beside a tar is img2dataset's")
    keep: list[str] | None = Field(None, description="the JSON's keys that become columns `source_…`; default: all")


class VideoSource(Options):
    """Video files with captions: each chosen frame becomes a row that knows its video and its time."""

    kind: Literal["video"]
    name: Name = "video"
    path: str = Field(
        description="a folder with captions beside the videos, or a CSV, TSV or JSONL list of files in its folder"
    )
    column: str = Field("path", description="the list's column of the videos' paths, from the list's folder")
    caption: str = Field("caption", description="the list's column of captions")
    frames: Literal["scene", "every"] = Field("scene", description="one frame of each scene, or one every so often")
    seconds: float = Field(2.0, ge=0.001, description="from frame to frame (every)")
    threshold: float = Field(10.0, gt=0, le=100, description="change that begins a scene, percent of the grey range")
    max_frames: int | None = Field(None, gt=0, description="of one video, evenly spread over those found")
    max_seconds: float = Field(
        14_400, gt=0, description="a longer video is left aside, as are those beyond the next two"
    )
    max_bytes: Bytes = 20_000_000_000
    max_pixels: int = Field(36_000_000, gt=0, description="of a frame")


class TableSource(Options):
    """A list of URLs with captions: files in any common format, or a Hugging Face dataset.

    `url` to `expected_hash` name the list's columns; a preset knows those of a published list.
    """

    kind: Literal["table"]
    name: Name = "table"
    path: str | None = Field(
        None, description="Parquet, CSV, TSV, JSON, JSONL or plain lists, packed or not; globs and fsspec URLs"
    )
    hf: str | None = Field(None, description="instead of path: a Hugging Face dataset, its name or a local folder")
    subset: str | None = Field(None, description="of the Hugging Face dataset")
    split: str = Field("train", description="of the Hugging Face dataset")
    preset: Literal["laion", "relaion", "datacomp", "cc3m", "cc12m", "coyo", "sbu", "redcaps"] | None = None
    captions: str | None = Field(None, description="plain lists with the captions of the URLs in path, line by line")
    columns: list[str] | None = Field(None, min_length=2, description="the names of a CSV's columns that has no header")
    url: str | None = Field(None, description="default: the preset's, or `url`")
    caption: str | None = Field(None, description="default: the preset's, or `caption`")
    source_id: str | None = Field(None, description="the list's own id of a pair")
    page_url: str | None = None
    license: str | None = None
    context: str | None = None
    lang_hint: str | None = None
    expected_hash: str | None = Field(None, description="hex digests of the images: SHA-256, MD5, SHA-1 or SHA-512")
    keep: list[str] | dict[str, Literal["string", "int64", "float64", "bool"]] | None = Field(
        None,
        description="further columns, kept as signals `source_…`, with their types if need be; default: a preset's",
    )

    @model_validator(mode="after")
    def _one_place(self) -> "TableSource":
        if (self.path is None) == (self.hf is None):
            raise ValueError("either `path` or `hf` says where the list is")
        return self


class DatacompSource(Options):
    """A pool of DataComp's metadata: Parquet files whose signals are there already."""

    kind: Literal["datacomp"]
    name: Name = "datacomp"
    path: str = Field(description="the folder of the Parquet files, a glob or a file; any fsspec URL")


Source = Annotated[
    CommonCrawlSource | CrawlSource | DatacompSource | FolderSource | TableSource | VideoSource | WebdatasetSource,
    Field(discriminator="kind"),
]


class Consent(Options):
    """What is done with what pages and hosts say about use for training."""

    respect: list[Literal["robots", "noai", "tdm", "noml"]] = ["robots", "noai", "tdm"]
    optout: Paths = Field([], description="lists of URLs, domains and SHA-256 that are never fetched or kept: globs")
    known: Paths = Field([], description="lists of hashes of known illegal images, which are never stored: globs")
    known_distance: int = Field(4, ge=0, le=16, description="differing bits of 64, for perceptual hashes in `known`")


class Download(Options):
    """Fetching, checking and storing images."""

    size: int = Field(512, ge=16, le=65_500, description="the shorter side of the stored image, never enlarged")
    mode: Literal["keep_ratio"] = "keep_ratio"
    quality: int = Field(95, ge=1, le=100, description="of the stored JPEG")
    timeout: float = Field(10, gt=0, description="seconds without an answer")
    deadline: float = Field(
        60, gt=0, description="seconds for one URL, redirects and retries included; no host may put it off for longer"
    )
    retries: int = Field(2, ge=0, le=10)
    max_bytes: Bytes = 50_000_000
    max_pixels: int = Field(100_000_000, gt=0)
    allow_hosts: list[str] = Field(
        [], description="`host:port` at a private address that may be fetched from all the same"
    )
    concurrency: int = Field(32, gt=0, le=512, description="URLs at once in one part")
    per_host: int = Field(4, gt=0, le=64, description="requests at once to one host")
    host_rate: float | None = Field(
        None, gt=0, description="requests a second to one host; default: 10, and no limit for those in allow_hosts"
    )
    stop_share: float = Field(
        0.95,
        gt=0,
        le=1,
        description="the download stops when more than this share fails in one way: dns, connect, "
        "timeout, tls, type or decode",
    )
    skip: bool = Field(False, description="no image is fetched: pairs are selected by what the sources tell of them")
    agent: str = Field("vlmdata", pattern=r"^[!-~]+$", description="the user agent's name; robots.txt may address it")
    contact: str | None = Field(None, pattern=r"^[!-~]+$", description="an address or URL sent with the user agent")

    # These decide whether and how fast an image comes, not what is stored of it: `--retry` asks again for what failed
    # under other ones. The agent is no such option: what robots.txt and headers said, they said to that name.
    unkeyed: ClassVar[frozenset[str]] = frozenset(
        {"timeout", "deadline", "retries", "max_bytes", "allow_hosts", "contact"}
        | {"concurrency", "per_host", "host_rate", "stop_share"}
    )


class TextSignal(Options):
    kind: Literal["text"]
    name: Literal[""] = ""
    after: list[str] = []


class PiiSignal(Options):
    """Personal data in captions."""

    kind: Literal["pii"]
    name: Literal[""] = ""
    after: list[str] = []


class FluencySignal(Options):
    """The caption's mean token loss under a language model: `smollm2` (embedded), a folder, or one of the hub."""

    kind: Literal["fluency"]
    name: str = Field("", pattern=r"^([a-z][a-z0-9_]*)?$")
    model: str = "smollm2"
    revision: str | None = Field(None, description="of a model of the hub: a commit, so that its values stay the same")
    after: list[str] = []
    tokens: int = Field(512, ge=128, description="in one batch of the model")


class LanguageSignal(Options):
    """`fasttext` is lid.176, `cld3` Google's compact language detector; a second one has a `name`."""

    kind: Literal["language"]
    name: str = Field("", pattern=r"^([a-z][a-z0-9_]*)?$")
    model: Literal["fasttext", "cld3"] = "fasttext"
    after: list[str] = []


class WordnetSignal(Options):
    """Whether a caption speaks of what is among ImageNet-21k's classes."""

    kind: Literal["wordnet"]
    name: Literal[""] = ""
    path: str = Field("/usr/share/wordnet", description="the folder of WordNet 3.0's index.noun, noun.exc and so on")
    after: list[str] = []


class ImageSignal(Options):
    kind: Literal["image"]
    name: Literal[""] = ""
    after: list[str] = []


class OcrSignal(Options):
    """Regions of text in the image; what is written there is not read."""

    kind: Literal["ocr"]
    name: Literal[""] = ""
    after: list[str] = []
    size: int = Field(736, ge=32, le=4096, description="the longer side that the detector sees; none is enlarged")


class FacesSignal(Options):
    """Where faces are. Nobody is recognised."""

    kind: Literal["faces"]
    name: Literal[""] = ""
    after: list[str] = []
    size: int = Field(640, ge=32, le=4096, description="the longer side that the detector sees; none is enlarged")
    threshold: float = Field(0.4, ge=0.05, lt=1, description="a face's score, at least")


class NsfwSignal(Options):
    kind: Literal["nsfw"]
    name: str = Field("", pattern=r"^([a-z][a-z0-9_]*)?$")
    after: list[str] = []
    batch: int = Field(16, gt=0)


class ClipSignal(Options):
    """`model: lite` (embedded), or any open_clip architecture with a pretrained tag or a checkpoint's path."""

    kind: Literal["clip"]
    name: str = Field("", pattern=r"^([a-z][a-z0-9_]*)?$")
    model: str = "lite"
    pretrained: str | None = None
    after: list[str] = []
    batch: int = Field(32, gt=0)
    precision: Literal["auto", "fp32", "bf16"] = Field(
        "auto", description="of the towers; auto: bf16 on a GPU that has it, else fp32; lite is fp32"
    )

    # The identity of model and preprocessing is in the key instead: a model that moved is the same model.
    unkeyed: ClassVar[frozenset[str]] = frozenset({"model", "pretrained"})


class AestheticSignal(Options):
    """A linear or MLP head over another signal's embeddings."""

    kind: Literal["aesthetic"]
    name: str = Field("", pattern=r"^([a-z][a-z0-9_]*)?$")
    embeddings: str = Field("clip", description="the signal whose embeddings are read: `clip`, or `clip_<name>`")
    head: str = Field(description="the head's weights: a local .safetensors, .npz, .pth or .pt file")
    activation: Literal["none", "relu"] = Field("none", description="between the head's layers")
    after: list[str] = []


class PythonSignal(Options):
    """The user's own: a Python file with one function under `@vlmdata.signal(…)`."""

    kind: Literal["python"]
    name: str = Field("", pattern=r"^([a-z][a-z0-9_]*)?$")
    path: str
    after: list[str] = []


class FilterSignal(Options):
    """A filter network (Fang 2023, arXiv:2309.17425): trained on the pairs of trusted sources, it scores every pair."""

    kind: Literal["filter"]
    name: str = Field("", pattern=r"^([a-z][a-z0-9_]*)?$")
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
    after: list[str] = []

    unkeyed: ClassVar[frozenset[str]] = frozenset({"checkpoint"})  # the hashes of its files are in the key

    @model_validator(mode="after")
    def _one_origin(self) -> "FilterSignal":
        if bool(self.trusted) == (self.checkpoint is not None):
            raise ValueError("either `trusted` names the sources to train on, or `checkpoint` a trained filter")
        return self


class NearTargetSignal(Options):
    """Whether no cluster of the pool's images is nearer than one to which a target is nearest (DataComp's image-based
    filtering, Gadre 2023, arXiv:2304.14108)."""

    kind: Literal["near_target"]
    name: str = Field("", pattern=r"^([a-z][a-z0-9_]*)?$")
    embeddings: str = Field("clip", description="the signal whose embeddings are clustered: `clip`, or `clip_<name>`")
    targets: Paths = Field(
        [], description="folders, images, tars, Parquet, npy and npz with images or their vectors: paths, globs, URLs"
    )
    checkpoint: str | None = Field(None, description="instead of `targets`: a folder with clusters that are made")
    clusters: int | None = Field(None, gt=0, description="about; default: one for 128 pairs, 100,000 at most")
    seed: int = Field(0, ge=0)
    after: list[str] = []

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


class SscdSignal(Options):
    """Copy-detection embeddings, for `dedup`: table `embeddings_sscd`."""

    kind: Literal["sscd"]
    name: str = Field("", pattern=r"^([a-z][a-z0-9_]*)?$")
    model: Literal["sscd", "distilled"] = Field(
        "sscd", description="distilled: a smaller one, two to three times as fast"
    )
    after: list[str] = []
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
        list[Annotated[Preset, BeforeValidator(_kind_alone)]],
        BeforeValidator(lambda value: value if isinstance(value, list) else [value]),
    ] = Field([], description="published selections; their rules come first, and several make an intersection")
    rules: dict[Name, str] = {}
    survivor: str = Field(
        "original_width * original_height desc, length(caption) desc",
        description="which of a group stays: an order in SQL, or `hard`, `easy` (farthest from and nearest to the "
        "centroid of its partition, as SemDeDup has them) or `random`",
    )
    top: Top | None = None
    balance: Balance | None = None
    sample: Sample | None = None


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


class Runner(Options):
    """Where parts are worked on."""

    kind: Literal["direct", "dask"] = "direct"
    workers: int | None = Field(
        None, gt=0, description="threads (direct) or processes (dask); default: one a core, or those at the address"
    )
    address: str | None = Field(None, description="of the Dask scheduler; default: a local cluster")


class Parts(Options):
    rows: int = Field(10_000, gt=0)


class LiteHeads(Options):
    """The trained part of the embedded scorer `lite`."""

    hidden: int = Field(512, gt=0, description="width of the heads' hidden layer")
    dropout: float = Field(0.6, ge=0, lt=1, description="of the image's features and of the hidden layers")
    temperature: float = Field(1.5, gt=0, description="by which the logits of ImageNet's classes are divided")
    share: float = Field(0.35, ge=0, le=1, description="of the learned residual, when scoring")
    context: float = Field(0.4, ge=0, le=1, description="how often a sample's context stands in for its caption")


class TrainJob(Options):
    """The built-in trainer on the snapshot's shards."""

    kind: Literal["train"]
    name: Name = "train"
    objective: Literal["contrastive"] = "contrastive"
    model: str | dict[str, Any] = Field(
        "tiny", description="tiny, lite, an open_clip architecture, its JSON file, or that file's content"
    )
    pretrained: str | None = Field(None, description="a tag or checkpoint of the open_clip architecture to begin from")
    heads: LiteHeads = Field(LiteHeads(), description="of the model lite")
    steps: int = Field(200, gt=0)
    batch: int = Field(64, gt=1, description="samples of one forward pass in one process")
    accumulate: int = Field(1, gt=0, description="forward passes a step")
    lr: float = Field(1e-3, gt=0)
    warmup: int = Field(10, ge=0, description="steps")
    weight_decay: float = Field(0.1, ge=0)
    clip_norm: float = Field(1.0, gt=0, description="the largest norm of the gradient")
    crop: float = Field(1.0, gt=0, le=1, description="the smallest side of a random training crop, of the shorter side")
    seed: int = Field(0, ge=0)
    workers: int = Field(1, ge=0, description="threads that decode ahead")
    threads: int = Field(1, gt=0, description="threads of the model's arithmetic; another number gives other last bits")
    precision: Literal["fp32", "bf16"] = "fp32"
    save_every: int = Field(100, gt=0)
    keep: int = Field(2, gt=0, description="checkpoints that stay")
    eval_every: int = Field(100, gt=0)
    train_split: Name = "train"
    test_split: Name = "test"


Job = Annotated[TrainJob, Field()]


class Recipe(Options):
    """A whole recipe. Its JSON Schema is `schemas/recipe.schema.json`."""

    dataset: str = Field(min_length=1, description="a folder or any fsspec URL")
    sources: list[Source] = Field(min_length=1)
    consent: Consent = Consent()
    download: Download = Download()
    signals: list[Annotated[Signal, BeforeValidator(_kind_alone)]] = []
    dedup: list[Annotated[Dedup, BeforeValidator(_kind_alone)]] = []
    select: Select = Select()
    shards: Shards = Shards()
    runner: Runner = Runner()
    parts: Parts = Parts()
    jobs: list[Job] = []

    @model_validator(mode="after")
    def _without_images(self) -> "Recipe":
        if self.download.skip and (self.jobs or self.consent.known):
            what = "jobs" if self.jobs else "consent.known"
            raise ValueError(f"download.skip: without images there is nothing for {what}: leave one of the two out")
        return self

    @model_validator(mode="after")
    def _names(self) -> "Recipe":
        named: dict[str, list[str]] = {
            "sources": [s.name for s in self.sources],
            "signals": [signal_name(s) for s in self.signals],
            "dedup": [d.kind for d in self.dedup],
            "select.preset": [p.kind for p in self.select.preset],
            "jobs": [j.name for j in self.jobs],
        }
        for what, names in named.items():
            twice = sorted({n for n in names if names.count(n) > 1})
            if twice:
                raise ValueError(f"{what}: two entries are called {', '.join(twice)}; give one a `name`")
        if self.select.sample and isinstance(self.select.sample.weights, dict):
            for source in self.select.sample.weights:
                if source not in named["sources"]:
                    raise ValueError(
                        f"select.sample.weights: no source is called {source!r}{nearest(source, named['sources'])}"
                    )
        for signal in self.signals:
            for trusted in signal.trusted if isinstance(signal, FilterSignal) else []:
                if trusted not in named["sources"]:
                    raise ValueError(
                        f"signals.filter.trusted: no source is called {trusted!r}{nearest(trusted, named['sources'])}"
                    )
            for rule in signal.after:
                if rule not in self.select.rules and "/" not in rule:  # a preset's is looked up by the plan
                    raise ValueError(
                        f"signals.{signal.kind}.after: no rule is called {rule!r}{nearest(rule, self.select.rules)}"
                    )
        return self


def signal_name(signal: Signal) -> str:
    """`clip`, or `clip_b` for `name: b`: the name of the signal's table."""
    return signal.kind + (f"_{signal.name}" if signal.name else "")


def nearest(word: str, choices: Any) -> str:
    """`; did you mean 'size'?` for the most similar of `choices`, or nothing."""
    close = difflib.get_close_matches(word, [str(c) for c in choices], n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


if __name__ == "__main__":
    import json
    import sys

    json.dump(Recipe.model_json_schema(), sys.stdout, indent=1)
