"""What is measured on pixels."""

import hashlib

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
    for column in ("phash", "sharpness", "entropy", "colourfulness"):
        assert found[column].to_pylist() == [0, 0, 0]
    assert found["flat_share"].to_pylist() == [1, 1, 1]
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
    for column in set(found.column_names) - {"uid", "aspect_ratio"}:
        first, second = alone[column].to_pylist()
        assert found[column].to_pylist() == [second, first, second]
    assert measured([]).schema == table_schema("image")


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 5_000), (30_000, 1), (31, 33)])
def test_images_of_odd_shapes_are_measured(height: int, width: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    found = measured([pixels, np.asfortranarray(pixels), pixels[:, :, ::-1]])
    assert found["phash"][0] == found["phash"][1]
    assert np.isfinite(found["sharpness"].to_numpy()).all()
    assert found["pixels_sha256"][0] == found["pixels_sha256"][1]
    assert 0 <= found["entropy"].to_pylist()[0] <= 8
    assert 0 < found["flat_share"].to_pylist()[0] <= 1


def test_colourfulness_is_that_of_the_paper() -> None:
    pictures = [made(seed) for seed in range(5)] + [np.full((7, 9, 3), (255, 0, 0), np.uint8)]
    for pixels, found in zip(pictures, measured(pictures)["colourfulness"].to_pylist(), strict=True):
        red, green, blue = pixels.astype(float).transpose(2, 0, 1)
        rg, yb = red - green, (red + green) / 2 - blue
        expected = np.sqrt(rg.var() + yb.var()) + 0.3 * np.sqrt(rg.mean() ** 2 + yb.mean() ** 2)
        assert found == pytest.approx(expected, rel=1e-5)


def test_the_flat_share_is_that_of_the_colour_met_most() -> None:
    drawing = np.full((10, 10, 3), 252, np.uint8)
    drawing[0, :5] = 255  # white too
    drawing[1] = (252, 252, 239)  # another step of one channel
    drawing[2] = (0, 10, 0)
    assert measured([drawing])["flat_share"].to_pylist() == [pytest.approx(0.8)]


def test_the_pixels_hash_tells_pictures_apart_and_shapes_too() -> None:
    picture = made(0, 4, 6)
    changed = picture.copy()
    changed[3, 5, 2] ^= 1
    found = measured([picture, picture.copy(), changed, picture.reshape(6, 4, 3), picture[:, :, ::-1]])
    digests = found["pixels_sha256"].to_pylist()
    assert digests[0] == digests[1]
    assert len(set(digests)) == 4
    shape = b"".join(n.to_bytes(4, "little") for n in (4, 6, 3))
    assert digests[0] == hashlib.sha256(shape + picture.tobytes()).hexdigest()
