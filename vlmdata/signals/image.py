"""What an image's pixels say of it: shape, hashes, sharpness, entropy, colour."""

import hashlib
from functools import cache, lru_cache

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlmdata import recipe
from vlmdata.schemas import conform, table_schema
from vlmdata.signals.pictures import Pictures

VERSION = 3
IMAGES = True

_HASHED = 32  # pixels a side of what is hashed
_BITS = 8  # the hash is made of 8 x 8 coefficients
_SHARPNESS_AREA = 256 * 256  # pixels of what sharpness is measured on
_LEVELS = 16  # steps of each channel that are one colour for the flat share


def schemas(options: recipe.ImageSignal) -> dict[str, pa.Schema]:
    """The tables that `measure` gives."""
    return {"image": table_schema("image")}


def identity(options: recipe.ImageSignal) -> dict[str, str]:
    """Nothing: no model is used."""
    return {}


def measure(rows: pa.Table, images: Pictures | None, options: recipe.ImageSignal) -> dict[str, pa.Table]:
    """The `image` table of some rows; reads uid, original_width, original_height and the images.

    aspect_ratio: longer side over shorter side of the image received, 1 or more, null where its size is not known.
    phash: uint64, see `perceptual_hashes`. pixels_sha256: see `pixels_sha256`.
    sharpness: variance of the Laplacian (Pech-Pacheco et al. 2000) of the grey image (0 to 255) after resizing to
    65,536 pixels, so that sizes compare; 0 or more. entropy: of the grey values' histogram, bits, 0 to 8.
    colourfulness: M of Hasler & Süsstrunk 2003, "Measuring colourfulness in natural images", of the sRGB values; 0 for
    grey; their viewers called 15 slightly and 59 quite colourful.
    flat_share: pixels of the most frequent colour over all pixels, above 0 to 1; colours are equal when each channel
    is in the same of 16 equal steps.
    """
    assert images is not None, "image reads images"
    # One Python call an image, not a row: images have different sizes, and OpenCV takes them one by one.
    small = np.empty((len(images.pixels), _HASHED, _HASHED), np.float32)
    sharp, entropy, colourful, flat = np.empty((4, len(images.pixels)), np.float32)
    digests = np.empty(len(images.pixels), object)
    for place, pixels in enumerate(map(np.ascontiguousarray, images.pixels)):
        grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
        small[place] = _averaged(grey)
        sharp[place] = _sharpness(grey)
        entropy[place] = _entropy(grey)
        colourful[place] = _colourfulness(pixels)
        flat[place] = _flat_share(pixels)
        digests[place] = pixels_sha256(pixels)
    width, height = (pc.cast(rows[side], pa.float64()) for side in ("original_width", "original_height"))
    long, short = pc.max_element_wise(width, height, skip_nulls=False), pc.min_element_wise(width, height)
    known = pc.greater(pc.fill_null(short, 0), 0)
    columns = {
        "uid": rows["uid"],
        "aspect_ratio": pc.cast(pc.if_else(known, pc.divide(long, short), None), pa.float32()),
        "phash": perceptual_hashes(small)[images.of],
        "pixels_sha256": pa.array(digests[images.of], pa.string()),
        "sharpness": sharp[images.of],
        "entropy": entropy[images.of],
        "colourfulness": colourful[images.of],
        "flat_share": flat[images.of],
    }
    return {"image": conform(pa.table(columns), table_schema("image"))}


def pixels_sha256(pixels: np.ndarray) -> str:
    """Hex sha256 of height, width and channels (32 bits each, little-endian) and then the pixels, row by row.

    pixels: uint8 [height, width, 3], RGB. With the shape in it, a picture and the same bytes in other rows differ.
    """
    digest = hashlib.sha256(np.array(pixels.shape, "<u4").tobytes())
    digest.update(np.ascontiguousarray(pixels).data)
    return digest.hexdigest()


def perceptual_hash(pixels: np.ndarray) -> int:
    """The `phash` of one image: uint8 [height, width, 3], RGB."""
    return int(perceptual_hashes(small_grey(pixels)[None])[0])


def small_grey(pixels: np.ndarray) -> np.ndarray:
    """What of an image is hashed: grey values [32, 32]."""
    grey = cv2.cvtColor(np.ascontiguousarray(pixels), cv2.COLOR_RGB2GRAY)
    return _averaged(grey)


def _averaged(grey: np.ndarray) -> np.ndarray:
    """Area averages, whole numbers, float32 [32, 32], as OpenCV's INTER_AREA gives them at twice its time."""
    height, width = grey.shape
    if min(height, width) <= _HASHED:
        return _resized(grey, _HASHED, _HASHED).astype(np.float32)
    return np.rint(_shares(height) @ (grey.astype(np.float32) @ _shares(width).T))


@lru_cache(maxsize=256)
def _shares(n: int) -> np.ndarray:
    """How much of each of 32 cells over n pixels a pixel is, float32 [32, n]; rows sum to 1."""
    edges, pixel = np.arange(_HASHED + 1) * n / _HASHED, np.arange(n)
    shared = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    return (shared.clip(0) * _HASHED / n).astype(np.float32)


def perceptual_hashes(small: np.ndarray) -> np.ndarray:
    """uint64 [n] pHash (Zauner 2010, "Implementation and benchmarking of perceptual image hash functions").

    small: grey values [n, 32, 32]. Of the two-dimensional DCT-II the 8 x 8 lowest frequencies without the first row
    and column; bit = greater than their median, the lowest vertical and horizontal frequency in the highest bit.
    A flat image's hash is 0; the fewer bits are set (never more than 32), the less the hash tells.
    """
    basis = _dct()[1 : 1 + _BITS]
    found = (basis @ small.astype(np.float64) @ basis.T).reshape(-1, _BITS * _BITS)
    # Rounded, so that coefficients that are zero but for arithmetic noise are equal on every machine.
    found = found.round(3)
    bits = found > np.median(found, axis=1, keepdims=True)
    return np.packbits(bits, axis=1).view(">u8").ravel().astype(np.uint64)


@cache
def _dct() -> np.ndarray:
    """The orthonormal DCT-II as a matrix: row k is the cosine of frequency k."""
    k, x = np.mgrid[:_HASHED, :_HASHED]
    scale = np.where(k == 0, np.sqrt(1 / _HASHED), np.sqrt(2 / _HASHED))
    return scale * np.cos(np.pi * (2 * x + 1) * k / (2 * _HASHED))


def _sharpness(grey: np.ndarray) -> float:
    height, width = grey.shape
    scale = (_SHARPNESS_AREA / (height * width)) ** 0.5
    grey = _resized(grey, max(1, round(height * scale)), max(1, round(width * scale)))
    _, deviation = cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_16S))
    return float(deviation[0, 0]) ** 2


def _entropy(grey: np.ndarray) -> float:
    counts = cv2.calcHist([grey], [0], None, [256], [0, 256]).ravel().astype(np.float64)  # exact below 2**24 pixels
    share = counts[counts > 0] / grey.size
    return abs(float(share @ np.log2(share)))


def _colourfulness(pixels: np.ndarray) -> float:
    red, green, blue = cv2.split(pixels)
    # In whole numbers, so that grey is exactly 0; yellow - blue at twice its size.
    red_green = cv2.subtract(red, green, dtype=cv2.CV_16S)
    yellow_blue = cv2.subtract(cv2.add(red, green, dtype=cv2.CV_16S), cv2.add(blue, blue, dtype=cv2.CV_16S))
    (mean, deviation), (mean_twice, deviation_twice) = cv2.meanStdDev(red_green), cv2.meanStdDev(yellow_blue)
    return (np.hypot(deviation, deviation_twice / 2) + 0.3 * np.hypot(mean, mean_twice / 2)).item()


def _flat_share(pixels: np.ndarray) -> float:
    counts = cv2.calcHist([pixels], [0, 1, 2], None, [_LEVELS] * 3, [0, 256] * 3)  # exact below 2**24 pixels
    return float(counts.max()) / (pixels.size // 3)


def _resized(grey: np.ndarray, height: int, width: int) -> np.ndarray:
    """Area averages where the image shrinks, linear interpolation where it grows."""
    shrinks = height * width < grey.size
    return cv2.resize(grey, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
