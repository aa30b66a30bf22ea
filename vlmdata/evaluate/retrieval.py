"""Image-to-text and text-to-image retrieval: recall at k, as CLIP's paper and its followers report it."""

import numpy as np

from vlmdata.errors import DataError


def retrieval(
    image_vectors: np.ndarray,
    text_vectors: np.ndarray,
    ks: tuple[int, ...] = (1, 5, 10),
    chunk: int = 1024,
) -> dict[str, float]:
    """Recall at k in both directions; row i of the images belongs to row i of the texts.

    image_vectors, text_vectors: float [n, d]; scores are their dot products, so unit vectors give cosines.
    chunk: queries compared at once; memory grows with chunk * n.

    Returns flat names to shares from 0 to 1: `retrieval/image_to_text/R@10`, beside it the share that guessing gives
    under `…/chance`, `retrieval/<direction>/median_rank` (1 is best) and `retrieval/n`, the number of pairs.

    A query finds its own row at rank 1 + (rows with a higher score) + (other rows with the same score) / 2: ties
    count as if their order were drawn by lot and half of them came first, so a model that gives one vector to all
    has no more than chance. Two pairs with the same caption are such a tie, and neither image may claim both: with
    m equal captions the rank is at best (m + 1) / 2, and recall at 1 counts such a query as missed.

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
    if not (np.isfinite(image_vectors).all() and np.isfinite(text_vectors).all()):
        raise DataError("retrieval: some vectors are not finite; the model that made them has diverged")
    images, texts = image_vectors.astype(np.float32), text_vectors.astype(np.float32)
    return {"image_to_text": _ranks(images, texts, chunk), "text_to_image": _ranks(texts, images, chunk)}


def _ranks(queries: np.ndarray, items: np.ndarray, chunk: int) -> np.ndarray:
    """The rank of row i's own item for every query, float64 [n], from 1."""
    # One number stands for equal items, so that equal captions tie exactly: two dot products of the same rows may
    # differ in the last bit, by where in the matrix they were computed.
    distinct, which = np.unique(items, axis=0, return_inverse=True)
    counts = np.bincount(which.ravel(), minlength=len(distinct)).astype(np.float64)
    own = which.ravel()
    ranks = np.empty(len(queries))
    for start in range(0, len(queries), chunk):
        stop = min(start + chunk, len(queries))
        scores = queries[start:stop] @ distinct.T
        mine = scores[np.arange(stop - start), own[start:stop], None]
        ranks[start:stop] = 0.5 + (scores > mine) @ counts + (scores == mine) @ counts / 2
    return ranks
