"""Zero-shot classification (Radford 2021, arXiv:2103.00020): a picture's class is the one whose prompts are nearest."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmdata.errors import InputError
from vlmdata.evaluate import bootstrap
from vlmdata.evaluate.labelled import lines
from vlmdata.evaluate.material import Material
from vlmdata.evaluate.pictures import encoded
from vlmdata.evaluate.ranks import ranks

if TYPE_CHECKING:
    from vlmdata.evaluate.model import Model

_PROMPTS = 4096  # encoded at once


def refused(model: "Model", material: Material) -> str | None:
    """Why this cannot be measured, if it cannot."""
    return material.no_classes() if model.encoder else f"{model.name} has no encoders of pictures and texts"


def measure(model: "Model", material: Material) -> dict[str, Any]:
    """Top-1 and top-5 accuracy, and the mean over the classes that occur of each one's recall (top-1).

    A class with the same score as the right one counts half, as in `ranks`. The recall's interval draws within every
    class. Raises InputError where no picture can be decoded.
    """
    assert model.encoder is not None
    found, options = material.labelled, material.options
    prompts = templates(options.templates, found.templates)
    classifier = classes(model.encoder.encode_texts, found.names, prompts)
    places, vectors = encoded(
        model.encoder.encode_images,
        lambda place: found.read(place, model.shorter),
        found.uids,
        options,
        material.broken,
        "zeroshot",
    )
    n, of = len(places), len(found.names)
    if not n:
        raise InputError(f"{material.url}: no picture can be decoded")
    labels = found.labels[places]
    rank = ranks(vectors, classifier, labels, np.arange(n + 1))
    result: dict[str, Any] = {"n": n, "classes": of, "templates": len(prompts)}
    for k in (1, 5):
        statistic = bootstrap.mean(rank <= k)
        result |= bootstrap.measured(f"top-{k}", statistic, n, options, chance=min(1.0, k / of))
    _, present, sizes = np.unique(labels, return_inverse=True, return_counts=True)
    each = (rank <= 1) / sizes[present] / len(sizes)

    def recall(drawn: np.ndarray) -> np.ndarray:
        return each[drawn].sum(1)  # every class is drawn as often as it occurs

    return result | bootstrap.measured("mean_per_class_recall", recall, n, options, labels, chance=1 / of)


def templates(chosen: str | None, own: list[str] | None) -> list[Callable[[str], str]]:
    """From a class's name to its prompts: those that the option names, else the set's own, else open_clip's 80.

    A template of a file has the name in the place of `{c}` or `{}`. Raises InputError for one without that.
    """
    from open_clip.zero_shot_metadata import OPENAI_IMAGENET_TEMPLATES, SIMPLE_IMAGENET_TEMPLATES

    known = {"imagenet": OPENAI_IMAGENET_TEMPLATES, "simple": SIMPLE_IMAGENET_TEMPLATES}
    if chosen in known or (chosen is None and own is None):
        return list(known[chosen or "imagenet"])
    if chosen is not None and not Path(chosen).is_file() and "://" not in chosen:
        raise InputError(f"--templates: {chosen!r} is neither imagenet, simple, nor a file")
    texts = own if chosen is None else lines(chosen)
    assert texts is not None
    wrong = next((text for text in texts if "{c}" not in text and "{}" not in text), None)
    if wrong is not None or not texts:
        raise InputError(f"the template {wrong!r} has no {{c}}, the place of the class's name")
    return [_template(text) for text in texts]


def _template(text: str) -> Callable[[str], str]:
    mark = "{c}" if "{c}" in text else "{}"
    return lambda name: text.replace(mark, name)  # no str.format, which would read attributes that a file names


def classes(
    encode_texts: Callable[[list[str]], np.ndarray], names: list[str], prompts: list[Callable[[str], str]]
) -> np.ndarray:
    """A unit vector for each class, float32 [classes, d]: the mean of its prompts' unit vectors."""
    block = max(1, _PROMPTS // len(prompts))
    found = []
    for first in range(0, len(names), block):
        chosen = names[first : first + block]
        vectors = encode_texts([prompt(name) for name in chosen for prompt in prompts])
        mean = vectors.reshape(len(chosen), len(prompts), -1).mean(1)
        found.append(mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12))
    return np.concatenate(found).astype(np.float32)
