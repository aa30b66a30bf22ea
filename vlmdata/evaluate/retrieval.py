"""Image-to-text and text-to-image retrieval: recall at k, as CLIP's paper and its followers report it."""

from typing import TYPE_CHECKING, Any

import numpy as np

from vlmdata.errors import DataError, InputError
from vlmdata.evaluate import bootstrap
from vlmdata.evaluate.material import Material, captioned, seen
from vlmdata.evaluate.pictures import encoded
from vlmdata.evaluate.ranks import both

if TYPE_CHECKING:
    from vlmdata.evaluate.model import Model

KS = (1, 5, 10)


def refused(model: "Model", material: Material) -> str | None:
    """Why this cannot be measured, if it cannot."""
    return material.no_pairs() if model.encoder else f"{model.name} has no encoders of pictures and texts"


def measure(model: "Model", material: Material) -> dict[str, Any]:
    """Recall at 1, 5 and 10 and the median rank in both directions; ties as in `ranks`.

    The intervals are over images: those of `captions: all` draw an image's captions together. Chance is what an order
    drawn by lot gives. Raises InputError where no picture can be decoded.
    """
    assert model.encoder is not None
    pairs, options = material.pairs, material.options
    images = captioned(pairs, options.captions, model.frames)
    places, image_vectors = encoded(
        lambda clips: pooled(model, clips),
        lambda number: seen(pairs, images[number][0], model.frames, model.shorter, material.broken),
        [pairs.uids[clip[0]] for clip, _ in images],
        options,
        material.broken,
        "retrieval",
    )
    if not len(places):
        raise InputError(f"{material.url}: there is no picture with a caption that can be decoded")
    captions = [images[place][1] for place in places]
    text_vectors = model.encoder.encode_texts([text for texts in captions for text in texts])
    sizes = np.array([len(texts) for texts in captions])
    starts = np.concatenate([[0], np.cumsum(sizes)])
    n, m = len(places), int(starts[-1])
    of_image, of_text = both(image_vectors, text_vectors, starts)
    return {
        "n": n,
        "captions": m,
        "image_to_text": _recall(of_image, np.ones(n, np.int64), _chances(sizes, m), material),
        "text_to_image": _recall(of_text, sizes, [min(1.0, k / n) for k in KS], material),
    }


def pooled(model: "Model", clips: list[list[np.ndarray]]) -> np.ndarray:
    """Unit vectors of videos, float32 [n, d], each of `model.frames` frames: the mean of the frames', normalised, as
    `vlmdata.train.contrastive` learns it. One frame's is its own."""
    assert model.encoder is not None
    vectors = model.encoder.encode_images([frame for clip in clips for frame in clip])
    if model.frames == 1:
        return vectors
    mean = vectors.reshape(len(clips), model.frames, -1).mean(1)
    return mean / np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)


def _recall(ranks: np.ndarray, sizes: np.ndarray, chances: list[float], material: Material) -> dict[str, Any]:
    """sizes: int [n], the number of queries of each image; those of one image follow each other in `ranks`."""
    starts = np.cumsum(sizes) - sizes
    found: dict[str, Any] = {}
    for k, chance in zip(KS, chances, strict=True):
        hits = np.add.reduceat((ranks <= k).astype(np.int64), starts)
        statistic = bootstrap.ratio(hits, sizes) if sizes.max() > 1 else bootstrap.mean(hits > 0)
        found |= bootstrap.measured(f"R@{k}", statistic, len(sizes), material.options, chance=chance)
    return found | {"median_rank": float(np.median(ranks))}


def _chances(sizes: np.ndarray, m: int) -> list[float]:
    """The share of images of which one of the first k of m captions in an order drawn by lot is their own."""
    left = [np.maximum(m - sizes - drawn, 0) / max(1, m - drawn) for drawn in range(max(KS))]
    return [float(1 - np.prod(left[:k], axis=0).mean()) for k in KS]


def retrieval(
    image_vectors: np.ndarray,
    text_vectors: np.ndarray,
    ks: tuple[int, ...] = KS,
    chunk: int = 1024,
) -> dict[str, float]:
    """Recall at k in both directions; row i of the images belongs to row i of the texts.

    image_vectors, text_vectors: float [n, d]; scores are their dot products, so unit vectors give cosines.
    chunk: queries compared at once, fewer where n is large: memory is bounded.

    Returns flat names to shares from 0 to 1: `retrieval/image_to_text/R@10`, beside it the share that guessing gives
    under `…/chance`, `retrieval/<direction>/median_rank` (1 is best) and `retrieval/n`, the number of pairs.

    Ties count as in `ranks`, so a model that gives one vector to all has no more than chance. Two pairs with the same
    caption are such a tie, and neither image may claim both: with m equal captions the rank is at best (m + 1) / 2, and
    recall at 1 counts such a query as missed.

    Raises DataError for vectors that are not finite, for no rows, or for two shapes that do not fit.
    """
    found = ranks(image_vectors, text_vectors, chunk)
    n = len(image_vectors)
    result: dict[str, float] = {"retrieval/n": float(n)}
    for direction, of in found.items():
        for k in ks:
            result[f"retrieval/{direction}/R@{k}"] = float((of <= k).mean())
            result[f"retrieval/{direction}/R@{k}/chance"] = min(1.0, k / n)
        result[f"retrieval/{direction}/median_rank"] = float(np.median(of))
    return result


def ranks(image_vectors: np.ndarray, text_vectors: np.ndarray, chunk: int = 1024) -> dict[str, np.ndarray]:
    """For each direction the rank of every query's own item, float64 [n], from 1; arguments and errors as above."""
    if image_vectors.shape != text_vectors.shape or image_vectors.ndim != 2 or not len(image_vectors):
        raise DataError(f"retrieval: vectors of shape {image_vectors.shape} and {text_vectors.shape} do not pair up")
    found = both(image_vectors, text_vectors, np.arange(len(image_vectors) + 1), chunk)
    return dict(zip(("image_to_text", "text_to_image"), found, strict=True))
