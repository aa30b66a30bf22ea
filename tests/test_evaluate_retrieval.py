"""Recall in both directions: exact on small cases, no better than chance without information, whatever the chunks."""

import numpy as np
import pytest

from vlmdata.errors import DataError
from vlmdata.evaluate.retrieval import retrieval


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


def test_a_perfect_model_finds_every_pair_first() -> None:
    vectors = unit(np.random.default_rng(0).normal(size=(50, 16)))
    found = retrieval(vectors, vectors)
    assert found["retrieval/image_to_text/R@1"] == found["retrieval/text_to_image/R@1"] == 1
    assert found["retrieval/image_to_text/median_rank"] == 1
    assert found["retrieval/image_to_text/R@5/chance"] == 0.1
    assert found["retrieval/n"] == 50


def test_the_two_directions_are_not_mixed_up() -> None:
    images = np.array([[1, 0], [0.8, 0.6]], np.float32)
    texts = np.array([[1, 0], [1, 0.1]], np.float32)
    found = retrieval(images, texts, ks=(1,))
    # Image 0 scores 1 and 1 (a tie: rank 1.5); image 1 prefers text 1. Text 0 prefers image 0, text 1 too.
    assert found["retrieval/image_to_text/R@1"] == 0.5
    assert found["retrieval/text_to_image/R@1"] == 0.5
    assert found["retrieval/image_to_text/median_rank"] == 1.25


def test_one_vector_for_everything_has_no_recall_above_chance() -> None:
    same = np.ones((40, 8), np.float32)
    found = retrieval(same, same)
    assert found["retrieval/image_to_text/R@10"] == 0  # every rank is 20.5
    assert found["retrieval/image_to_text/median_rank"] == 20.5


def test_two_equal_captions_share_the_first_rank() -> None:
    texts = np.eye(4, dtype=np.float32)
    texts[1] = texts[0]
    found = retrieval(texts, texts, ks=(1, 2))
    assert found["retrieval/image_to_text/R@1"] == 0.5
    assert found["retrieval/image_to_text/R@2"] == 1


def test_the_result_does_not_depend_on_the_chunks() -> None:
    rng = np.random.default_rng(1)
    texts = unit(rng.normal(size=(101, 8)))
    images = unit(texts + 0.7 * rng.normal(size=(101, 8)))
    assert retrieval(images, texts, chunk=7) == retrieval(images, texts, chunk=1000)
    assert 0.1 < retrieval(images, texts)["retrieval/image_to_text/R@5"] < 1


@pytest.mark.parametrize("broken", [np.full((3, 2), np.nan, np.float32), np.ones((4, 2), np.float32)])
def test_vectors_that_do_not_pair_up_are_refused(broken: np.ndarray) -> None:
    with pytest.raises(DataError, match="retrieval"):
        retrieval(np.ones((3, 2), np.float32), broken)
