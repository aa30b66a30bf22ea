"""Near-duplicates by perceptual hash: every pair within the radius, none beyond, none for images without content."""

import tracemalloc
from collections.abc import Callable

import cv2
import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlmdata import dedup, recipe
from vlmdata.dedup import perceptual
from vlmdata.signals import image
from vlmdata.signals.pictures import Pictures

# FAISS compares all with all; above its bound, which is 0 here, bands do it.
WAYS = pytest.mark.parametrize("brute_force", [0, perceptual.BRUTE_FORCE], ids=["bands", "faiss"])


def found_pairs(hashes: np.ndarray, distance: int, brute_force: int = 0) -> list[tuple[int, int, int]]:
    blocks = perceptual._near(hashes, distance, brute_force, np.ones(len(hashes), bool))
    return sorted((min(i, j), max(i, j), int(d)) for a, b, near in blocks for i, j, d in zip(a, b, near, strict=True))


def compared_all(hashes: np.ndarray, distance: int) -> list[tuple[int, int, int]]:
    differing = np.bitwise_count(hashes[:, None] ^ hashes[None])
    i, j = np.nonzero(np.triu(differing <= distance, 1))
    return [(int(a), int(b), int(differing[a, b])) for a, b in zip(i, j, strict=True)]


@WAYS
@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=6),
    st.lists(st.tuples(st.integers(0, 5), st.sets(st.integers(0, 63), max_size=17)), max_size=40),
    st.integers(0, 16),
)
def test_every_pair_within_the_radius_is_found_once(
    brute_force: int, seeds: list[int], changes: list[tuple[int, set[int]]], distance: int
) -> None:
    changed = [seeds[n % len(seeds)] ^ sum(1 << bit for bit in bits) for n, bits in changes]
    hashes = np.unique(np.array(seeds + changed, np.uint64))
    assert found_pairs(hashes, distance, brute_force) == compared_all(hashes, distance)


@WAYS
@pytest.mark.parametrize("distance", range(17))
def test_no_pair_is_missed_among_hashes_that_crowd(distance: int, brute_force: int) -> None:
    rng = np.random.default_rng(distance)
    # few different bands, so that buckets are large and more than one block of candidates is needed
    hashes = np.unique(rng.integers(0, 2**10, 1_500, np.uint64) * np.uint64(0x0400_1004_0100_4011))
    assert found_pairs(hashes, distance, brute_force) == compared_all(hashes, distance)


def test_blocks_of_candidates_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(perceptual, "_CANDIDATES", 1_000)
    hashes = np.arange(2_000, dtype=np.uint64) << np.uint64(50)
    assert found_pairs(hashes, 3) == compared_all(hashes, 3)
    key = np.zeros(500, np.int64)
    sizes = [len(a) for a, _ in perceptual._candidates(key, 8, 0, np.ones(500, bool))]
    assert sum(sizes) == 500 * 499 / 2
    assert max(sizes) <= 1_000


def photo(seed: int) -> np.ndarray:
    """A made picture with the spectrum of a photograph: strong low frequencies, weak high ones."""
    rng = np.random.default_rng(seed)
    height, width = 240, 320
    frequency = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.fftfreq(width)[None])
    channels = []
    for _ in range(3):
        spectrum = np.fft.fft2(rng.normal(size=(height, width))) / (frequency + 0.004) ** 1.2
        plane = np.fft.ifft2(spectrum).real
        channels.append(128 + 50 * (plane - plane.mean()) / plane.std())
    return np.stack(channels, axis=2).clip(0, 255).astype(np.uint8)


def jpeg(picture: np.ndarray, quality: int) -> np.ndarray:
    return cv2.imdecode(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, quality])[1], cv2.IMREAD_COLOR)


def half(picture: np.ndarray) -> np.ndarray:
    return jpeg(cv2.resize(picture, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA), 90)


def measured(pictures: list[np.ndarray]) -> dict[str, np.ndarray]:
    n = len(pictures)
    rows = pa.table({"uid": [f"{k:032x}" for k in range(n)], "original_width": [320] * n, "original_height": [240] * n})
    found = image.measure(rows, Pictures(pictures, np.arange(n)), recipe.ImageSignal(kind="image"))["image"]
    return {name: found[name].to_numpy() for name in ("phash", "entropy")}


def grouped(pictures: list[np.ndarray], distance: int = 4) -> dict[str, list[int]]:
    options = recipe.PerceptualDedup(kind="perceptual", distance=distance)
    uids = pa.array([f"{k:032x}" for k in range(len(pictures))])
    found = dedup.groups(options, uids, measured(pictures))
    members: dict[str, list[int]] = {}
    for uid, group in zip(found["uid"].to_pylist(), found["dup_group"].to_pylist(), strict=True):
        members.setdefault(group, []).append(int(uid, 16))
    return members


@pytest.mark.parametrize("change", [lambda p: jpeg(p, 20), half], ids=["jpeg quality 20", "half size"])
def test_planted_copies_join_their_picture_and_no_other(change: Callable[[np.ndarray], np.ndarray]) -> None:
    originals = [photo(seed) for seed in range(60)]
    groups = grouped(originals + [change(p) for p in originals])
    pairs = [tuple(members) for members in groups.values()]
    assert all(b == a + 60 for a, b in pairs)
    assert len(pairs) >= 57


def test_flat_striped_and_nearly_empty_images_join_no_group() -> None:
    rng = np.random.default_rng(0)
    flat = [jpeg(np.full((200, 300, 3), grey, np.uint8), 95) for grey in range(0, 256, 16)]
    stripes = [np.repeat(rng.integers(0, 255, (50, 1, 1), np.uint8), 4, axis=0) for _ in range(8)]
    stripes = [np.broadcast_to(stripe, (200, 300, 3)).copy() for stripe in stripes]
    specks = []
    for place in range(8):
        speck = np.full((200, 300, 3), 255, np.uint8)
        speck[20 * place : 20 * place + 3, 100:103] = 0
        specks.append(speck)
    assert grouped(flat + stripes + specks) == {}
    assert grouped([photo(0), photo(0), *flat]) == {"0" * 32: [0, 1]}


def test_rows_of_one_hash_are_as_similar_as_can_be_and_near_ones_by_their_bits() -> None:
    first = 0x0F0F_0F0F_0F0F_0F0F
    hashes = np.array([first, first ^ 0b111, first, 0xAAAA_AAAA_AAAA_AAAA], np.uint64)
    options = recipe.PerceptualDedup(kind="perceptual", distance=4)
    uids = pa.array(["b" * 32, "a" * 32, "c" * 32, "d" * 32])
    found = dedup.groups(options, uids, {"phash": hashes, "entropy": np.full(4, 5, np.float32)})
    assert found["uid"].to_pylist() == ["a" * 32, "b" * 32, "c" * 32]
    assert found["dup_group"].to_pylist() == ["a" * 32] * 3
    assert found["similarity"].to_pylist() == [1 - 3 / 64, 1.0, 1.0]


def test_an_unknown_entropy_joins_no_group() -> None:
    hashes = np.full(3, 0x0F0F_0F0F_0F0F_0F0F, np.uint64)
    options = recipe.PerceptualDedup(kind="perceptual")
    uids = pa.array([str(n) * 32 for n in range(3)])
    found = dedup.groups(options, uids, {"phash": hashes, "entropy": np.array([5, np.nan, 5], np.float32)})
    assert found["uid"].to_pylist() == ["0" * 32, "2" * 32]


def test_a_row_costs_few_bytes_of_memory() -> None:
    peaks = []
    for n in (50_000, 150_000):
        hashes = np.random.default_rng(0).integers(0, 2**64, n, np.uint64)
        entropy = np.full(n, 5, np.float32)
        tracemalloc.start()
        for _ in perceptual.pairs(hashes, 2, entropy):
            pass
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert (peaks[1] - peaks[0]) / 100_000 < 60


def test_a_hundred_thousand_hashes_take_seconds() -> None:
    rng = np.random.default_rng(0)
    base = rng.integers(0, 2**64, 50_000, np.uint64)
    flips = np.uint64(1) << rng.integers(0, 64, (3, 50_000)).astype(np.uint64)
    copies = base ^ flips[0] ^ flips[1] ^ flips[2]
    every = np.concatenate([base, copies])
    found = [
        (i, j)
        for a, b, _ in perceptual._near(every, 4, 0, np.ones(len(every), bool))
        for i, j in zip(a, b, strict=True)
    ]
    assert {(min(i, j), max(i, j)) for i, j in found} >= {(n, n + 50_000) for n in range(50_000)}
