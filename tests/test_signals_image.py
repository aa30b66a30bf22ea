"""What is measured on pixels."""

import cv2
import numpy as np
import pyarrow as pa
import pytest

from vlmdata import recipe
from vlmdata.schemas import table_schema
from vlmdata.signals import image
from vlmdata.signals.pictures import Pictures

OPTIONS = recipe.ImageSignal(kind="image")


def measured(pixels: list[np.ndarray], of: list[int] | None = None, sizes: list | None = None) -> pa.Table:
    of = list(range(len(pixels))) if of is None else of
    sizes = sizes or [(pixels[k].shape[1], pixels[k].shape[0]) for k in of]
    columns = {
        "uid": [f"{k:032x}" for k in range(len(of))],
        "original_width": pa.array([w for w, _ in sizes], pa.int32()),
        "original_height": pa.array([h for _, h in sizes], pa.int32()),
    }
    return image.measure(pa.table(columns), Pictures(pixels, np.array(of, np.int64)), OPTIONS)["image"]


def made(seed: int, height: int = 120, width: int = 200) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    return cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC)


def test_the_hash_is_that_of_the_paper() -> None:
    pictures = [made(seed) for seed in range(20)]
    found = measured(pictures)["phash"].to_pylist()
    for pixels, value in zip(pictures, found, strict=True):
        grey = cv2.resize(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), (32, 32), interpolation=cv2.INTER_AREA)
        low = cv2.dct(grey.astype(np.float64))[1:9, 1:9].ravel()
        bits = "".join("1" if c > np.median(low) else "0" for c in low)
        assert f"{value:064b}" == bits
        assert bits.count("1") == 32


def test_the_hash_of_a_batch_is_that_of_each_image_alone() -> None:
    pictures = [made(seed, 50 + seed, 90) for seed in range(12)]
    together = measured(pictures)["phash"].to_pylist()
    assert together == [measured([p])["phash"].to_pylist()[0] for p in pictures]
    assert len(set(together)) == 12


def test_flat_images_have_hash_and_entropy_and_sharpness_zero() -> None:
    found = measured([np.full((90, 40, 3), grey, np.uint8) for grey in (0, 77, 255)])
    for column in ("phash", "sharpness", "entropy"):
        assert found[column].to_pylist() == [0, 0, 0]
    assert not np.signbit(found["entropy"].to_numpy()).any()


def test_entropy_counts_the_grey_values() -> None:
    squares = [np.repeat(np.arange(n, dtype=np.uint8), 256 // n).reshape(16, 16) for n in (2, 16, 256)]
    found = measured([np.stack([square] * 3, axis=2) for square in squares])
    assert found["entropy"].to_pylist() == pytest.approx([1, 4, 8])


def test_blur_lowers_sharpness_and_size_hardly_changes_it() -> None:
    sharp = np.random.default_rng(0).integers(0, 2, (64, 64), np.uint8) * 255
    sharp = cv2.resize(np.stack([sharp] * 3, axis=2), (512, 512), interpolation=cv2.INTER_CUBIC)
    larger = cv2.resize(sharp, (1024, 1024), interpolation=cv2.INTER_CUBIC)
    original, blurred, big = measured([sharp, cv2.GaussianBlur(sharp, (0, 0), 4), larger])["sharpness"].to_pylist()
    assert blurred < original / 5
    assert big == pytest.approx(original, rel=0.1)
    grey = cv2.resize(cv2.cvtColor(sharp, cv2.COLOR_RGB2GRAY), (256, 256), interpolation=cv2.INTER_AREA)
    assert original == pytest.approx(cv2.Laplacian(grey, cv2.CV_64F).var(), rel=1e-5)


def test_the_aspect_ratio_is_that_of_the_image_received() -> None:
    picture = made(0)
    found = measured([picture], of=[0] * 5, sizes=[(200, 100), (100, 300), (50, 50), (None, 50), (0, 50)])
    assert found["aspect_ratio"].to_pylist() == [2, 3, 1, None, None]


def test_each_row_gets_its_image_and_the_columns_are_those_of_the_schema() -> None:
    pictures = [made(1), made(2)]
    found = measured(pictures, of=[1, 0, 1])
    alone = measured(pictures)
    assert found.schema == table_schema("image") == image.schemas(OPTIONS)["image"]
    for column in ("phash", "sharpness", "entropy"):
        first, second = alone[column].to_pylist()
        assert found[column].to_pylist() == [second, first, second]
    assert measured([]).schema == table_schema("image")


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5_000), (30_000, 1), (31, 33)])
def test_images_of_odd_shapes_are_measured(height: int, width: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    found = measured([pixels, np.asfortranarray(pixels), pixels[:, :, ::-1]])
    assert found["phash"][0] == found["phash"][1]
    assert np.isfinite(found["sharpness"].to_numpy()).all()
    assert 0 <= found["entropy"].to_pylist()[0] <= 8
