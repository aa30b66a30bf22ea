"""How images are fetched, and what is done with what pages and hosts say."""

from typing import ClassVar, Literal

from pydantic import Field

from vlmdata.recipe.options import Bytes, Options, Paths


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
