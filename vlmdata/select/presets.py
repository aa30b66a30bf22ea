"""Published selections as rules. `docs/selection.md` says where each is published; their options are in the recipe.

A preset gives rules in the recipe's own SQL, named `<preset>/<rule>`, and for each what makes its columns.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vlmdata.errors import InputError
from vlmdata.recipe import LanguageSignal, Recipe
from vlmdata.rules import quoted


@dataclass(frozen=True)
class Rule:
    """sql: the rule. add: what the recipe must have for it. fraction: the rule is instead that the number `sql` is at
    least the threshold that DataComp's rank rule gives for this fraction of all pairs (`top.datacomp_place`)."""

    sql: str
    add: str
    fraction: float | None = None


def rules(recipe: Recipe) -> dict[str, Rule]:
    """The rules of all of the recipe's presets, by name, in order. Raises InputError where a signal is missing."""
    found = {}
    for options in recipe.select.preset:
        for name, rule in _PRESETS[options.kind](options, recipe).items():
            found[f"{options.kind}/{name}"] = rule
    return found


def _language(recipe: Recipe, preset: str, model: str) -> Rule:
    """English by the recipe's first `language` signal with this model."""
    for signal in recipe.signals:
        if isinstance(signal, LanguageSignal) and signal.model == model:
            return Rule(f"lang{f'_{signal.name}' if signal.name else ''} = 'en'", "")
    line = "language" if model == "fasttext" else "{kind: language, model: cld3, name: cld3}"
    raise InputError(f"select.preset: {preset} needs the language by {model}: add `- {line}` to `signals`")


def _score(options: Any) -> str:
    """What to add for a column with a score."""
    return f"a signal with the column {options.score} (`clip`, `aesthetic`), or name another by `score`"


def _sizes(recipe: Recipe) -> tuple[str, str, str]:
    """The shorter and the longer side in SQL, and what to add for them: of the images received, or where none are
    fetched those that the source states."""
    sides, add = "original_width, original_height", "the sizes of the images received, which the download measures"
    if recipe.download.skip:
        sides = "source_original_width, source_original_height"
        add = "the images' sizes: a source that keeps original_width and original_height, or the download"
    return f"least({sides})", f"greatest({sides})", add


def _basic(options: Any, recipe: Recipe) -> dict[str, Rule]:
    shorter, longer, add = _sizes(recipe)
    return {
        "english": _language(recipe, options.kind, "fasttext"),
        "words": Rule("words > 2", "the signal `text`"),
        "characters": Rule("chars > 5", "the signal `text`"),
        "size": Rule(f"{shorter} >= 200", add),
        "aspect": Rule(f"{longer} <= 3 * {shorter}", add),
    }


def _clip(options: Any, recipe: Recipe) -> dict[str, Rule]:
    if options.threshold is not None:
        return {"score": Rule(f"{quoted(options.score)} >= {options.threshold!r}", _score(options))}
    return {"score": Rule(quoted(options.score), _score(options), options.fraction or 0.3)}


def _laion2b(options: Any, recipe: Recipe) -> dict[str, Rule]:
    return {
        "english": _language(recipe, options.kind, "cld3"),
        "score": Rule(f"{quoted(options.score)} >= 0.28", _score(options)),
    }


def _text_based(options: Any, recipe: Recipe) -> dict[str, Rule]:
    return {
        "english": _language(recipe, options.kind, "fasttext"),
        "imagenet": Rule("imagenet_words", "the signal `wordnet`"),
    }


def _image_based(options: Any, recipe: Recipe) -> dict[str, Rule]:
    # fastText's tokens: what stands between white space of ASCII, and one for the end of each line
    ends = "length(caption) - length(replace(caption, chr(10), ''))"
    tokens = rf"len(regexp_extract_all(caption, '[^ \n\r\t\v\f\x00]+')) + {ends}"
    return {
        "english": _language(recipe, options.kind, "fasttext"),
        "tokens": Rule(f"{tokens} > 1", ""),
        "characters": Rule("chars > 5", "the signal `text`"),
        "near_target": Rule(
            quoted(options.near_target), "the signal `near_target`, or name another bool column by `near_target`"
        ),
    }


def _aesthetics(options: Any, recipe: Recipe) -> dict[str, Rule]:
    return {"score": Rule(f"{quoted(options.score)} >= {options.threshold!r}", _score(options))}


def _obelics(options: Any, recipe: Recipe) -> dict[str, Rule]:
    shorter, longer, add = _sizes(recipe)
    return {
        "size": Rule(f"{shorter} >= 150 and {longer} <= 20000", add),
        "aspect": Rule(f"{longer} <= 2 * {shorter}", add),
    }


_PRESETS: dict[str, Callable[[Any, Recipe], dict[str, Rule]]] = {
    "datacomp-basic": _basic,
    "datacomp-clip": _clip,
    "datacomp-laion2b": _laion2b,
    "datacomp-text-based": _text_based,
    "datacomp-image-based": _image_based,
    "laion-aesthetics": _aesthetics,
    "obelics-image": _obelics,
}
