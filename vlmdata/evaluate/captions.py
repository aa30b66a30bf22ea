"""Captions that a checkpoint writes against those of its pictures: BLEU-4 (Papineni 2002) and chrF (Popović 2015)."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from vlmdata.errors import InputError
from vlmdata.evaluate import bootstrap
from vlmdata.evaluate.material import Material, captioned, seen
from vlmdata.evaluate.pictures import batches
from vlmdata.recipe import Evaluation

if TYPE_CHECKING:
    from vlmdata.evaluate.model import Model


def refused(model: "Model", material: Material) -> str | None:
    """Why this cannot be measured, if it cannot."""
    return material.no_pairs() if model.caption else f"{model.name} writes no captions"


def measure(model: "Model", material: Material) -> dict[str, Any]:
    """sacrebleu's corpus scores, 0 to 100, against all captions of each image, as `captioned` finds them.

    `shuffled` beside them is the score of the same captions given to other images: what is left where a model has
    learned what captions sound like, and does not see. Raises InputError where no picture can be decoded.
    """
    assert model.caption is not None
    pairs, options = material.pairs, material.options
    images = captioned(pairs, "all", model.frames)
    written, references = list[str](), list[list[str]]()
    for numbers, pictures in batches(
        lambda number: seen(pairs, images[number][0], model.frames, model.shorter, material.broken),
        [pairs.uids[clip[0]] for clip, _ in images],
        options,
        material.broken,
        "captions",
    ):
        written += model.caption(pictures if model.frames > 1 else [frame for clip in pictures for frame in clip])
        references += [images[number][1] for number in numbers]
    if not written:
        raise InputError(f"{material.url}: there is no picture with a caption that can be decoded")
    return {"n": len(written), **scores(written, references, options)}


def scores(written: list[str], references: list[list[str]], options: Evaluation) -> dict[str, Any]:
    """BLEU-4 and chrF of n texts, each against its references, with intervals and the shuffled score."""
    from sacrebleu.metrics import BLEU, CHRF

    n = len(written)
    # Every text goes to the image that follows its own in an order drawn by lot: none stays where it is.
    order = np.random.default_rng(options.seed).permutation(n)
    other = np.empty(n, np.int64)
    other[order] = np.roll(order, 1)
    found: dict[str, Any] = {}
    for name, metric in (("BLEU-4", BLEU(lowercase=True)), ("chrF", CHRF())):
        statistic = _corpus(metric, written, references)
        shuffled = float(_corpus(metric, [written[i] for i in other], references)(np.arange(n)[None])[0])
        found |= bootstrap.measured(name, statistic, n, options, shuffled=shuffled)
    return found


def _corpus(metric: Any, written: list[str], references: list[list[str]]) -> Callable[[np.ndarray], np.ndarray]:
    """The statistic of a corpus score, which is no mean: it is made of the sums of what every text counts for."""
    most = max(len(texts) for texts in references)
    streams = [[texts[k] if k < len(texts) else None for texts in references] for k in range(most)]
    counts = np.array(metric._extract_corpus_statistics(written, streams), np.float64)

    def score(drawn: np.ndarray) -> float:
        times = np.bincount(drawn, minlength=len(counts))
        return metric._compute_score_from_stats((times @ counts).tolist()).score

    return lambda drawn: np.array([score(row) for row in drawn])
