"""Regions of text: on a scanned page, in drawn lines whose place is known, and nowhere else."""

from concurrent.futures import ThreadPoolExecutor

import cv2
import numpy as np
import pyarrow as pa
import pytest
from photos import photo

from vlmdata import recipe
from vlmdata.signals import ocr
from vlmdata.signals.pictures import Pictures

OPTIONS = recipe.OcrSignal(kind="ocr")
FONT = cv2.FONT_HERSHEY_SIMPLEX


def measured(pixels: list[np.ndarray], of: list[int]) -> dict[str, pa.Table]:
    rows = pa.table({"uid": pa.array([f"{k:032x}" for k in range(len(of))], pa.string())})
    return ocr.measure(rows, Pictures(pixels, np.array(of, np.int64)), OPTIONS)


def written(pixels: np.ndarray, text: str, left: int, bottom: int, scale: float = 1.2) -> np.ndarray:
    """bool [height, width]: the box of the text that is drawn into `pixels`."""
    (width, height), below = cv2.getTextSize(text, FONT, scale, 2)
    cv2.putText(pixels, text, (left, bottom), FONT, scale, (255, 255, 255), 6)
    cv2.putText(pixels, text, (left, bottom), FONT, scale, (10, 10, 10), 2)
    box = np.zeros(pixels.shape[:2], bool)
    box[bottom - height : bottom + below, left : left + width] = True
    return box


def test_a_scanned_page_is_mostly_text_and_a_meadow_is_none() -> None:
    found = measured([photo("page"), photo("grass")], [0, 1, 0])
    assert {name: table.schema for name, table in found.items()} == ocr.schemas(OPTIONS)
    area, count = found["ocr"]["text_area"].to_pylist(), found["ocr"]["text_boxes"].to_pylist()
    assert area[0] == area[2] > 0.3
    assert area[1] == 0
    assert count[0] >= 6  # it has eight lines
    assert count[1] == 0
    polygons = found["boxes_ocr"]["text_polygons"].to_pylist()
    assert [len(each) for each in polygons] == count
    assert all(len(polygon) == 8 and min(polygon) >= 0 and max(polygon) <= 1 for polygon in polygons[0])


def test_regions_lie_where_the_text_is() -> None:
    pixels = photo("coffee").copy()
    truth = written(pixels, "fresh coffee today", 40, 80) | written(pixels, "two for one", 300, 360)
    polygons = ocr.detect(pixels, OPTIONS.size)
    assert len(polygons) >= 2
    found = ocr.painted(polygons, *truth.shape)
    assert (found & truth).sum() / truth.sum() > 0.9
    assert (found & truth).sum() / found.sum() > 0.5
    assert ocr.covered(polygons, *truth.shape) == pytest.approx(found.mean())


def test_slanted_text_has_a_slanted_region() -> None:
    pixels = np.full((400, 400, 3), 235, np.uint8)
    box = written(pixels, "a slanted line", 50, 210)
    turn = cv2.getRotationMatrix2D((200, 200), 30, 1)
    pixels = cv2.warpAffine(pixels, turn, (400, 400), borderValue=(235, 235, 235))
    truth = cv2.warpAffine(box.astype(np.uint8), turn, (400, 400)) > 0
    found = ocr.painted(ocr.detect(pixels, OPTIONS.size), 400, 400)
    assert (found & truth).sum() / (found | truth).sum() > 0.6


def test_overlapping_regions_count_once() -> None:
    square = np.array([[[0, 0], [0.5, 0], [0.5, 1], [0, 1]]], np.float32)
    assert ocr.covered(np.concatenate([square, square]), 100, 100) == pytest.approx(0.5, abs=0.02)


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 2), (33, 31), (736, 736)])
def test_any_size_is_measured(shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    polygons = ocr.detect(noise, 736)
    assert polygons.shape[1:] == (4, 2)
    assert 0 <= ocr.covered(polygons, *shape) <= 1


def test_no_rows_are_no_error() -> None:
    found = measured([], [])
    assert {name: table.schema for name, table in found.items()} == ocr.schemas(OPTIONS)


def test_values_do_not_depend_on_neighbours_or_threads() -> None:
    pixels = [photo("page"), photo("coffee"), photo("text")]
    alone = [ocr.detect(each, 736) for each in pixels]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda each: ocr.detect(each, 736), pixels * 2))
    for place, found in enumerate(together):
        np.testing.assert_array_equal(found, alone[place % 3])
    assert len(alone[0])
    assert len(ocr.identity(OPTIONS)["ch_PP-OCRv4_det_infer.onnx"]) == 64


def test_an_image_is_searched_once_for_all_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    detect = ocr.detect
    monkeypatch.setattr(ocr, "detect", lambda pixels, size: seen.append(size) or detect(pixels, size))
    pictures = Pictures([photo("text"), photo("page")], np.array([0, 1]))
    first = ocr.regions(pictures, 320)
    again = ocr.regions(Pictures(pictures.pixels[::-1], np.array([0]), pictures.found), 320)
    assert seen == [320, 320]
    np.testing.assert_array_equal(again[1], first[0])
    ocr.regions(pictures, 352)
    assert len(seen) == 4
