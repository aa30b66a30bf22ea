"""The score without the image's text: what is painted over, and that nothing else changes."""

import cv2
import numpy as np
import pyarrow as pa
import pytest
from photos import photo

from vlmdata import recipe
from vlmdata.errors import InputError
from vlmdata.signals import clip, masked_clip, ocr
from vlmdata.signals.pictures import Pictures

OPTIONS = recipe.MaskedClipSignal(kind="masked_clip")
CAPTION = "a restaurant menu"


def rows(captions: list[str | None]) -> pa.Table:
    uids = pa.array([f"{k:032x}" for k in range(len(captions))], pa.string())
    return pa.table({"uid": uids, "caption": pa.array(captions, pa.string())})


def strip(text: str) -> np.ndarray:
    """A cup of coffee with a plain strip below, in which the text stands."""
    picture = np.vstack([photo("coffee"), np.full((100, 600, 3), (240, 230, 120), np.uint8)])
    cv2.putText(picture, text, (20, 465), cv2.FONT_HERSHEY_DUPLEX, 1.1, (0, 0, 90), 2, cv2.LINE_AA)
    return picture


def scores(kind: str, pictures: list[np.ndarray], captions: list[str | None]) -> list[float | None]:
    module, options = (masked_clip, OPTIONS) if kind == "masked_clip" else (clip, recipe.ClipSignal(kind="clip"))
    found = module.measure(rows(captions), Pictures(pictures, np.arange(len(pictures))), options)
    return found[kind].column(f"{kind}_score").to_pylist()


def test_painted_text_vanishes_and_the_photo_stays() -> None:
    plain, written = strip(""), strip("fresh coffee every day")
    masked = masked_clip.without_text(written, ocr.detect(written, OPTIONS.size))
    assert (written != plain).any(axis=2).sum() > 3000
    assert np.abs(masked[400:].astype(int) - plain[400:]).max() <= 2
    np.testing.assert_array_equal(masked[:380], written[:380])


def test_the_score_is_that_of_the_image_without_its_text() -> None:
    plain, written = strip(""), strip("fresh coffee every day")
    captions: list[str | None] = ["a cup of coffee", None, "a cup of coffee"]
    masked = scores("masked_clip", [written, written, photo("grass")], captions)
    assert masked[0] == pytest.approx(scores("clip", [plain], captions[:1])[0], abs=2e-3)
    assert masked[0] != pytest.approx(scores("clip", [written], captions[:1])[0], abs=2e-3)
    assert masked[1] is None
    assert masked[2] == scores("clip", [photo("grass")], captions[:1])[0]


def test_an_image_of_nothing_but_text_loses_its_score() -> None:
    """White paper with the caption's words, and a scanned page: what is left of them looks like no menu."""
    paper = np.full((360, 640, 3), 255, np.uint8)
    for line, words in enumerate((CAPTION, "with many dishes on it", "and prices behind them")):
        cv2.putText(paper, words, (30, 80 + 100 * line), cv2.FONT_HERSHEY_DUPLEX, 1.1, (0, 0, 0), 2, cv2.LINE_AA)
    pictures, captions = [paper, photo("page")], [CAPTION] * 2
    with_text, without = scores("clip", pictures, captions), scores("masked_clip", pictures, captions)
    for before, after in zip(with_text, without, strict=True):
        assert after < before - 0.1


def test_an_image_full_of_text_is_filled_with_its_mean_colour() -> None:
    pixels = np.zeros((20, 30, 3), np.uint8)
    pixels[:10] = 200
    whole = np.array([[[0, 0], [1, 0], [1, 1], [0, 1]]], np.float32)
    assert (masked_clip.without_text(pixels, whole) == 100).all()


def test_a_region_takes_the_colour_around_it() -> None:
    pixels = np.full((100, 100, 3), (200, 10, 10), np.uint8)
    pixels[:, 50:] = (10, 10, 200)
    pixels[40:60, 10:30] = pixels[40:60, 70:90] = 255
    boxes = np.array([[[x, 0.4], [x + 0.2, 0.4], [x + 0.2, 0.6], [x, 0.6]] for x in (0.1, 0.7)], np.float32)
    masked = masked_clip.without_text(pixels, boxes)
    assert (masked[:, :50] == (200, 10, 10)).all()
    assert (masked[:, 50:] == (10, 10, 200)).all()


def test_options_are_those_of_clip_and_the_identity_knows_both_models() -> None:
    named = recipe.MaskedClipSignal(kind="masked_clip", name="b")
    assert masked_clip.schemas(named)["masked_clip_b"].names == ["uid", "masked_clip_score_b"]
    found = masked_clip.measure(rows([]), Pictures([], np.zeros(0, np.int64)), named)
    assert found["masked_clip_b"].schema == masked_clip.schemas(named)["masked_clip_b"]
    identity = masked_clip.identity(OPTIONS)
    assert clip.identity(recipe.ClipSignal(kind="clip")).items() <= identity.items()
    assert "ch_PP-OCRv4_det_infer.onnx" in identity
    wrong = recipe.MaskedClipSignal(kind="masked_clip", model="ViT-B-33", pretrained="x")
    with pytest.raises(InputError, match="did you mean 'ViT-B-32'"):
        masked_clip.schemas(wrong)
