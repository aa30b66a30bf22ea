"""Where pairs come from."""

import re
from typing import Annotated, ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from vlmdata.recipe.options import Bytes, Name, Options


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
