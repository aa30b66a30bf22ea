"""The column names of published lists of image-text pairs.

Each list has been published in several forms: of the names given for one column the first that a file has counts.
"""

from dataclasses import dataclass, field

Names = tuple[str, ...]


@dataclass(frozen=True)
class Preset:
    """`columns`: column of `pairs` -> its names in the list. `keep`: further columns -> their type as a signal.
    `header`: the columns of a file that has no names. `site`: what a page's path is relative to."""

    columns: dict[str, Names]
    keep: dict[str, str] = field(default_factory=dict)
    header: Names = ()
    site: str = ""


# LAION-400M (https://laion.ai/blog/laion-400-open-dataset/), LAION-2B/5B (https://laion.ai/blog/laion-5b/), the sets
# joined with punsafe and pwatermark (laion2B-en-joined) and with the images' MD5 (laion2B-en-md5), and the subsets with
# an aesthetic score. `hash` is one of URL and text, not of the image. Re-LAION-5B
# (https://laion.ai/blog/relaion-5b/) and files from img2dataset have small letters.
_LAION = Preset(
    {
        "url": ("URL", "url"),
        "caption": ("TEXT", "caption", "text"),
        "source_id": ("SAMPLE_ID", "hash"),
        "license": ("LICENSE",),
        "expected_hash": ("md5",),
    },
    {
        "WIDTH": "int64",
        "HEIGHT": "int64",
        "width": "int64",
        "height": "int64",
        "similarity": "float64",
        "punsafe": "float64",
        "pwatermark": "float64",
        "aesthetic": "float64",
        "AESTHETIC_SCORE": "float64",
        "NSFW": "string",
        "LANGUAGE": "string",
    },
)

PRESETS = {
    "laion": _LAION,
    "relaion": _LAION,
    # CommonPool and DataComp-1B: https://huggingface.co/datasets/mlfoundations/datacomp_pools and datacomp_1b
    "datacomp": Preset(
        {"url": ("url",), "caption": ("text",), "source_id": ("uid",), "expected_hash": ("sha256",)},
        {
            "original_width": "int64",
            "original_height": "int64",
            "clip_b32_similarity_score": "float64",
            "clip_l14_similarity_score": "float64",
        },
    ),
    # https://ai.google.com/research/ConceptualCaptions/download: caption and URL without names on top. On the hub
    # (google-research-datasets/conceptual_captions) with names.
    "cc3m": Preset({"url": ("url", "image_url"), "caption": ("caption",)}, header=("caption", "url")),
    # https://github.com/google-research-datasets/conceptual-12m: URL and caption without names on top
    "cc12m": Preset({"url": ("url", "image_url"), "caption": ("caption",)}, header=("url", "caption")),
    # https://github.com/kakaobrain/coyo-dataset and https://huggingface.co/datasets/kakaobrain/coyo-700m
    "coyo": Preset(
        {"url": ("url",), "caption": ("text",), "source_id": ("id",)},
        {
            "width": "int64",
            "height": "int64",
            "image_phash": "string",
            "num_faces": "int64",
            "clip_similarity_vitb32": "float64",
            "clip_similarity_vitl14": "float64",
            "nsfw_score_opennsfw2": "float64",
            "nsfw_score_gantman": "float64",
            "watermark_score": "float64",
            "aesthetic_score_laion_v2": "float64",
        },
    ),
    # https://www.cs.rice.edu/~vo9/sbucaptions/: one JSON object with the lists image_urls, user_ids and captions. On
    # the hub (vicenteor/sbu_captions) a row a pair.
    "sbu": Preset({"url": ("image_urls", "image_url"), "caption": ("captions", "caption")}),
    # https://github.com/redcaps-dataset/redcaps-downloader: `annotations` in a JSON file a subreddit and year. On the
    # hub (kdexd/red_caps) a row a pair, with image_url. `caption` is the cleaned form of `raw_caption`.
    "redcaps": Preset(
        {
            "url": ("url", "image_url"),
            "caption": ("caption", "raw_caption"),
            "source_id": ("image_id",),
            "page_url": ("permalink",),
        },
        {"subreddit": "string", "score": "int64", "created_utc": "int64"},
        site="https://www.reddit.com",
    ),
}
