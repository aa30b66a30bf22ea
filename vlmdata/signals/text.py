"""What a caption's text says of itself: its length, repetition, whether it is a URL or a file's name, profanity."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlmdata import recipe
from vlmdata.schemas import conform, table_schema
from vlmdata.signals.models import file_sha256, package_file
from vlmdata.signals.pictures import Pictures

VERSION = 1
IMAGES = False

# A scheme or `www.` and no white space; or a bare host and path (`example.org/a.jpg`), whose last label has two
# letters or more, so that `and/or` and `e.g./i.e.` are none.
_URL = r"(?i)^(?:[a-z][a-z0-9+.-]*://|www\.)\S+$|^[a-z0-9-]+(?:\.[a-z0-9-]+)*\.[a-z]{2,}/\S*$"

# One line that ends in an image's, film's or drawing's extension; or a name that a camera, phone or site makes:
# DSC01234, IMG_20190101_1234, IMG-20190101-WA0001, P1010123, Screenshot_2021-01-01, 1234_5678_9012_n, a long hex.
_FILE_NAME = (
    r"(?i)^[^/\\\r\n]{0,254}[^\s/\\.]\.(?:jpe?g|jpe|jfif|png|gif|webp|bmp|tiff?|svg|hei[cf]|avif|raw|cr2|nef|dng|psd|ai"
    r"|eps|pdf|mp4|mov|avi|webm)$"
    r"|(?i)^_?(?:dsc[nf]?|img|imgp|pict|pxl|mvimg|vid|mov|gopr|dji|sam|hpim|cimg|p|wp|scan|screen[ _-]?shot)"
    r"[ _-]?\d{3,}(?:[ _.()-]*(?:wa|at|copy|edited)?[ _.()-]*\d*)*$"
    r"|(?i)^\d+(?:_\d+){2,}(?:_[a-z])?$"
    r"|(?i)^[0-9a-f]{16,}$|(?i)^[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}$"
)


def schemas(options: recipe.TextSignal) -> dict[str, pa.Schema]:
    """The tables that `measure` gives."""
    return {"text": table_schema("text")}


def identity(options: recipe.TextSignal) -> dict[str, str]:
    """sha256 of the files of the profanity model."""
    names = ("model.joblib", "vectorizer.joblib")
    return {f"profanity_check/{n}": file_sha256(package_file("profanity_check", "data", n)) for n in names}


def measure(rows: pa.Table, images: Pictures | None, options: recipe.TextSignal) -> dict[str, pa.Table]:
    """The `text` table of some rows; reads the columns uid and caption.

    chars: Unicode characters. words: what str.split() gives. repeated_words: 1 - different words / words, without
    regard to case, 0 where there is no word. profanity: by alt-profanity-check's linear model
    (https://github.com/dimitrismistriotis/alt-profanity-check). All are null for a null caption.
    """
    caption = pa.chunked_array(rows["caption"]).combine_chunks()
    trimmed = pc.utf8_trim_whitespace(caption)
    words, repeated = _words(caption)
    columns = {
        "uid": rows["uid"],
        "chars": pc.utf8_length(caption),
        "words": words,
        "repeated_words": repeated,
        "caption_is_url": pc.match_substring_regex(trimmed, _URL),
        "caption_is_file_name": pc.match_substring_regex(trimmed, _FILE_NAME),
        "profanity": _profanity(caption),
    }
    return {"text": conform(pa.table(columns), table_schema("text"))}


def _words(caption: pa.Array) -> tuple[pa.Array, pa.Array]:
    """int32 words and float32 share of repeated words, null for null."""
    split = pc.utf8_split_whitespace(pc.utf8_lower(caption))
    word = pa.table({"row": pc.list_parent_indices(split), "word": pc.list_flatten(split)})
    # the split leaves an empty word before leading and after trailing white space
    word = word.filter(pc.not_equal(word["word"], ""))
    counts = word.group_by("row").aggregate([("word", "count"), ("word", "count_distinct")])
    total, different = np.zeros((2, len(caption)), np.int64)
    place = counts["row"].to_numpy()
    total[place] = counts["word_count"].to_numpy()
    different[place] = counts["word_count_distinct"].to_numpy()
    absent = caption.is_null().to_numpy(zero_copy_only=False)
    repeated = 1 - different / np.maximum(total, 1)
    repeated[total == 0] = 0
    return pa.array(total, pa.int32(), mask=absent), pa.array(repeated.astype(np.float32), mask=absent)


def _profanity(caption: pa.Array) -> pa.Array:
    """float32 probabilities, null for null."""
    if not len(caption):
        return pa.array([], pa.float32())
    from profanity_check import predict_prob  # loads scikit-learn: seconds

    scores = predict_prob(caption.fill_null("").to_pylist())
    return pa.array(scores.astype(np.float32), mask=caption.is_null().to_numpy(zero_copy_only=False))
