"""Recall in both directions: exact on small cases, no better than chance without information, whatever the chunks."""

from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from coloured import BROKEN, COLOURS, MODEL, jpg, tar

from vlmdata.errors import DataError
from vlmdata.evaluate import material
from vlmdata.evaluate import retrieval as task
from vlmdata.evaluate.model import Model
from vlmdata.evaluate.ranks import ranks
from vlmdata.evaluate.retrieval import retrieval
from vlmdata.recipe import Evaluation


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


def brute(queries: np.ndarray, items: np.ndarray, own: list[set[int]]) -> list[float]:
    found = []
    for query, mine in zip(queries, own, strict=True):
        scores = items @ query
        best = max(scores[i] for i in mine)
        others = [scores[i] for i in range(len(items)) if i not in mine]
        found.append(1 + sum(s > best for s in others) + sum(s == best for s in others) / 2)
    return found


@pytest.mark.parametrize("chunk", [1, 4, 1000])
def test_ranks_are_those_of_a_sorted_list_with_any_number_of_own_items(chunk: int) -> None:
    rng = np.random.default_rng(2)
    items = rng.integers(-2, 3, (40, 3)).astype(np.float32)  # many equal rows, and exact products
    queries = rng.integers(-2, 3, (12, 3)).astype(np.float32)
    sizes = rng.integers(1, 6, 12)
    starts = np.concatenate([[0], np.cumsum(sizes)])
    own = np.concatenate([rng.permutation(40)[:size] for size in sizes])
    mine = [set(own[a:b]) for a, b in pairwise(starts)]
    assert ranks(queries, items, own, starts, chunk).tolist() == brute(queries, items, mine)


def test_many_items_are_compared_with_few_queries_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(3)
    vectors = unit(rng.normal(size=(60, 8)))
    texts = unit(vectors + 0.5 * rng.normal(size=(60, 8)))
    whole = retrieval(vectors, texts)
    monkeypatch.setattr("vlmdata.evaluate.ranks._AT_ONCE", 130)
    assert retrieval(vectors, texts) == whole


def measured(path: str, spool: Path, model: Model = MODEL, **options: Any) -> dict[str, Any]:
    found = material.find(path, Evaluation(resamples=50, **options), spool)
    assert task.refused(model, found) is None
    return {**task.measure(model, found), "broken": found.broken}


def test_any_of_an_images_captions_counts(tmp_path: Path) -> None:
    """As in Karpathy's test sets: rows of one url are one image, with its JSON's captions and the .txt's lines."""
    red, green, blue = (jpg(colour) for colour in (COLOURS["red"], COLOURS["green"], (60, 60, 230)))
    shard = tar(
        tmp_path / "test-0.tar",
        {
            "a": {"jpg": red, "txt": "a dull sky", "json": {"url": "http://x/1", "captions": ["a dull sky"]}},
            "b": {"jpg": red, "txt": "a red car", "json": {"url": "http://x/1", "captions": ["a red car"]}},
            "c": {"jpg": green, "txt": "a green hill", "json": {"url": "", "captions": ["a green hill", "green"]}},
            "d": {"jpg": blue, "txt": "the blue sea\nblue, all blue\n"},
            "e": {"jpg": BROKEN, "txt": "a red thing"},
        },
    )
    first = measured(shard, tmp_path)
    assert first["broken"] == {"e"}
    assert (first["n"], first["captions"]) == (4, 4)
    assert first["image_to_text"]["R@1"] == 1 - 1 / 4  # image a prefers the caption of b
    found = measured(shard, tmp_path, captions="all")
    assert (found["n"], found["captions"]) == (3, 6)
    assert found["image_to_text"]["R@1"] == 1
    assert found["image_to_text"]["R@1/chance"] == pytest.approx(2 / 6)
    assert found["image_to_text"]["R@5/chance"] == 1
    assert found["text_to_image"]["R@1"] == pytest.approx(5 / 6)  # "a dull sky" prefers the least red image
    assert found["text_to_image"]["R@1/chance"] == pytest.approx(1 / 3)
    low, high = found["text_to_image"]["R@1/interval"]
    assert (low, high) == (0.5, 1)  # whole images are drawn: at worst the one with one of two right, three times


def test_chance_is_what_a_model_that_guesses_has() -> None:
    sizes = np.array([1, 2, 5, 5])
    rng = np.random.default_rng(0)
    owner = np.repeat(np.arange(4), sizes)
    hits = np.zeros(3)
    for _ in range(4000):
        order = owner[rng.permutation(13)]
        hits += [np.mean([image in order[:k] for image in range(4)]) for k in (1, 5, 10)]
    assert task._chances(sizes, 13) == pytest.approx(hits / 4000, abs=0.02)


def test_the_batch_and_the_threads_do_not_matter(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    names = list(COLOURS)
    samples = {
        f"s{i}": {"jpg": jpg(tuple(rng.integers(0, 255, 3).tolist())), "txt": f"a {names[i % 3]} one"}
        for i in range(20)
    }
    shard = tar(tmp_path / "a.tar", samples)
    results = [measured(shard, tmp_path, batch=b, workers=w) for b, w in ((1, 0), (7, 3), (100, 1))]
    assert results[0] == results[1] == results[2]
