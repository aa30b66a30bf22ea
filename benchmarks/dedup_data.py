"""Real embeddings and hashes for bench_dedup.py, and as many more like them as are wanted, with planted copies.

python benchmarks/dedup_data.py        measures the packages' images into .cache/bench/dedup.npz (an hour)
"""

import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
DEMO = ROOT / ".cache" / "demo"
MEASURED = ROOT / ".cache" / "bench" / "dedup.npz"
FOLDERS = ("openclipart-all", "emoji/google", "emoji/twitter", "mate-backgrounds", "site")
DIM = 256
BLOCK = 20_000
NOISE = 0.5


def measure() -> None:
    """Every image of the packages, decoded as the download stores it: lite's vector, the hash, the entropy."""
    import pyarrow as pa

    sys.path.insert(0, str(ROOT / "recipes"))
    from demo_data import fetch
    from lite_measure import decode

    from vlmdata import lite, recipe
    from vlmdata.signals import image
    from vlmdata.signals.pictures import Pictures

    fetch(DEMO, everything=True)
    paths = sorted(p for f in FOLDERS for p in (DEMO / f).rglob("*") if p.suffix in (".png", ".jpg"))
    np.random.default_rng(0).shuffle(paths)  # what is done so far is a fair sample
    model = lite.load()
    found: dict[str, list[np.ndarray]] = {"vector": [], "phash": [], "entropy": []}
    for start in range(0, len(paths), 256):
        read = [decode(path.read_bytes()) for path in paths[start : start + 256]]
        pictures = [picture for picture in read if picture is not None]
        n = len(pictures)
        rows = pa.table({"uid": [""] * n, "original_width": [1] * n, "original_height": [1] * n})
        table = image.measure(rows, Pictures(pictures, np.arange(n)), recipe.ImageSignal(kind="image"))["image"]
        found["vector"].append(model.encode_images(pictures))
        found["phash"].append(table["phash"].to_numpy())
        found["entropy"].append(table["entropy"].to_numpy())
        print(f"{start + n:,} of {len(paths):,} images", file=sys.stderr, flush=True)
        MEASURED.parent.mkdir(parents=True, exist_ok=True)
        aside = MEASURED.with_name("aside.npz")
        np.savez(aside, **{name: np.concatenate(values) for name, values in found.items()})
        aside.rename(MEASURED)


def embeddings(rows: int, path: Path) -> None:
    """Write float16 [rows, DIM] to an .npy file: one row in ten is a copy of another at a cosine of 0.9 to 1.

    The real vectors, on their first principal components; then mixtures of two of them, with noise of their
    covariance. Copies are turned by a known angle towards such noise.
    """
    draw = np.random.default_rng(0)
    real = np.load(MEASURED)["vector"]
    axes = np.linalg.svd(real - real.mean(0), full_matrices=False)[2][:DIM]
    real = _unit(real @ axes.T)
    root = np.linalg.cholesky(np.cov(real.T) + 1e-9 * np.eye(DIM)).astype(np.float32)
    out = np.lib.format.open_memmap(path, "w+", np.float16, (rows, DIM))
    for start in range(0, rows, BLOCK):
        n = min(BLOCK, rows - start)
        one, two = real[draw.integers(0, len(real), (2, n))]
        share = draw.uniform(0.5, 1, (n, 1)).astype(np.float32)
        noise = draw.standard_normal((2, n, DIM), np.float32) @ root.T
        block = _unit(share * one + (1 - share) * two + NOISE * noise[0])
        if start < len(real):
            there = real[start : start + n]
            block[: len(there)] = there
        copies = draw.permutation(n)[: n // 10]
        block[copies] = _turned(block[draw.integers(0, n, len(copies))], noise[1, copies], draw)
        out[start : start + n] = block
    out.flush()


def hashes(rows: int) -> tuple[np.ndarray, np.ndarray]:
    """uint64 [rows] and the entropies: the real hashes, then such with 8 to 32 bits flipped; one row in ten is a copy
    of another with up to 6 bits flipped."""
    draw = np.random.default_rng(0)
    measured = np.load(MEASURED)
    real = len(measured["phash"])
    source = draw.integers(0, real, rows)
    source[:real] = np.arange(real)[:rows]
    flips = draw.integers(8, 33, rows)
    flips[:real] = 0
    found = measured["phash"][source] ^ _bits(flips, draw)
    copies = draw.permutation(rows)[: rows // 10]
    of = draw.integers(0, rows, len(copies))
    source[copies] = source[of]
    found[copies] = found[of] ^ _bits(draw.integers(0, 7, len(copies)), draw)
    return found, measured["entropy"][source]


def _bits(count: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """uint64 [n], so many random bits set in each."""
    found = np.empty(len(count), np.uint64)
    for start in range(0, len(count), BLOCK):
        order = draw.random((len(count[start : start + BLOCK]), 64)).argsort(axis=1).astype(np.uint64)
        bits = np.where(np.arange(64) < count[start : start + BLOCK, None], np.uint64(1) << order, np.uint64(0))
        found[start : start + BLOCK] = np.bitwise_or.reduce(bits, axis=1)
    return found


def _turned(rows: np.ndarray, towards: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    cosine = draw.uniform(0.9, 1, (len(rows), 1)).astype(np.float32)
    across = _unit(towards - np.einsum("nd,nd->n", rows, towards)[:, None] * rows)
    return cosine * rows + np.sqrt(1 - cosine**2) * across


def _unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


if __name__ == "__main__":
    measure()
