"""How well each method of deduplication finds planted copies of real pictures: the tables of docs/deduplication.md.

python benchmarks/bench_quality.py [--photos 60] [--drawings 240] [--seed 0] [--peers FOLDER]

Pictures: the demo's packages (`python recipes/demo_data.py fetch --all`); photos are mate-backgrounds and the manual's
JPEGs, drawings are openclipart's, emoji, and the manual's PNGs (screenshots). Of each a copy is made by every change,
and all are stored as the download stores them (512 pixels, JPEG 95), then measured by the signals. Recall: the share of
originals whose copy is near enough. False merges: of all pairs of different originals those that are near enough;
originals that are copies of one another as they come (sha256, SSCD of 0.9) are left out first.
--peers: a folder with imagehash and imagededup installed (`pip install --no-deps --target`).
"""

import argparse
import functools
import hashlib
import io
import sys
import time
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
from PIL import Image, ImageDraw, ImageEnhance

from vlmdata import recipe, signals
from vlmdata.dedup.perceptual import telling
from vlmdata.download.decode import to_jpeg
from vlmdata.download.header import ImageError

DEMO = Path(__file__).resolve().parent.parent / ".cache" / "demo"
PHOTOS = ("mate-backgrounds/**/*.jpg", "mate-backgrounds/**/*.png", "site/gimp-help-en/**/*.jpg")
DRAWINGS = ("openclipart-all/**/*.png", "emoji/**/*.png", "site/gimp-help-en/**/*.png")
SIDE = 64  # pixels of the shorter side, at least
SIGNALS = {
    "phash": {"kind": "image"},
    "clip lite": {"kind": "clip", "model": "lite"},
    "sscd": {"kind": "sscd"},
    "sscd distilled": {"kind": "sscd", "model": "distilled", "name": "distilled"},
}
TABLES = {"clip lite": "embeddings_clip", "sscd": "embeddings_sscd", "sscd distilled": "embeddings_sscd_distilled"}
THRESHOLDS = {
    "clip lite": (0.99, 0.97, 0.95, 0.9),
    "sscd": (0.9, 0.8, 0.75, 0.7, 0.6, 0.5),
    "sscd distilled": (0.9, 0.8, 0.75, 0.7, 0.6, 0.5),
}


def jpeg(image: Image.Image, quality: int = 95) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG", quality=quality)
    return out.getvalue()


def png(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=1)
    return out.getvalue()


def crop(image: Image.Image) -> Image.Image:
    """The middle 90 % of each side."""
    width, height = image.size
    x, y = round(width * 0.05), round(height * 0.05)
    return image.crop((x, y, width - x, height - y))


def text(image: Image.Image) -> Image.Image:
    """A line of text across the lower third, a fifteenth of the height high."""
    image = image.copy()
    draw = ImageDraw.Draw(image)
    width, height = image.size
    size = max(8, height // 15)
    for shift, colour in ((1, "black"), (0, "white")):
        draw.text((width * 0.08 + shift, height * 0.75 + shift), "www.example.org", fill=colour, font_size=size)
    return image


def half(image: Image.Image) -> Image.Image:
    size = max(1, image.width // 2), max(1, image.height // 2)
    return image.resize(size, Image.Resampling.LANCZOS)


def padding(image: Image.Image) -> Image.Image:
    """A black border of a tenth of each side."""
    width, height = image.size
    out = Image.new("RGB", (round(width * 1.2), round(height * 1.2)))
    out.paste(image, (round(width * 0.1), round(height * 0.1)))
    return out


CHANGES: dict[str, Callable[[Image.Image], bytes]] = {
    "PNG again": png,
    "JPEG 20": lambda image: jpeg(image, 20),
    "half size": lambda image: jpeg(half(image)),
    "10 % crop": lambda image: jpeg(crop(image)),
    "flip": lambda image: jpeg(image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
    "greyscale": lambda image: jpeg(image.convert("L").convert("RGB")),
    "text": lambda image: jpeg(text(image)),
    "padding": lambda image: jpeg(padding(image)),
    "brighter": lambda image: jpeg(ImageEnhance.Brightness(image).enhance(1.3)),
}  # fmt: skip


def choose(patterns: tuple[str, ...], count: int, seed: int) -> list[bytes]:
    """Originals by lot, about as many of each pattern, as the bytes that are stored of them: PNG pixels, RGB."""
    random = np.random.default_rng(seed)
    lots = []
    for pattern in patterns:
        paths = sorted(path for path in DEMO.glob(pattern) if path.is_file())
        lots.append([paths[place] for place in random.permutation(len(paths))])
    chosen: list[bytes] = []
    seen: set[str] = set()
    while len(chosen) < count and any(lots):
        for lot in lots:
            if not lot or len(chosen) == count:
                continue
            data = lot.pop(0).read_bytes()
            digest = hashlib.sha256(data).hexdigest()
            try:
                picture = to_jpeg(data, 1024, 98, 100_000_000)
            except ImageError:
                continue
            if digest not in seen and min(picture.width, picture.height) >= SIDE:
                seen.add(digest)
                chosen.append(picture.jpeg)
    return chosen


def measure(stored: list[bytes]) -> dict[str, np.ndarray]:
    """phash uint64 [n], entropy, pixels (digests), and unit vectors [n, d] of each model."""
    content = b"".join(distinct := list(dict.fromkeys(stored)))
    starts = dict(zip(distinct, np.cumsum([0, *map(len, distinct)]).tolist(), strict=False))
    sizes = [cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR).shape for data in stored]
    columns = {
        "uid": [f"{place:032x}" for place in range(len(stored))],
        "caption": [""] * len(stored),
        **{side: pa.array([size[1] for size in sizes], pa.int64()) for side in ("width", "original_width")},
        **{side: pa.array([size[0] for size in sizes], pa.int64()) for side in ("height", "original_height")},
        "offset": pa.array([starts[data] for data in stored], pa.int64()),
        "length": pa.array([len(data) for data in stored], pa.int64()),
    }
    found: dict[str, np.ndarray] = {}
    for name, options in SIGNALS.items():
        chosen = recipe.Recipe.model_validate(
            {"dataset": "x", "sources": [{"kind": "folder", "path": "x"}], "signals": [options]}
        ).signals[0]
        wanted = signals.Measurement(chosen, signals.family(chosen.kind).schemas(chosen), {})
        start = time.monotonic()
        tables = signals.measure_part(
            pa.table(columns), lambda offset, length: content[offset : offset + length], [wanted], {}, {}
        )
        print(f"{name}: {len(distinct) / (time.monotonic() - start):.1f} images/s", file=sys.stderr)
        if name == "phash":
            found |= {column: tables["image"][column].to_numpy() for column in ("phash", "entropy")}
        else:
            vectors = tables[TABLES[name]]["vector"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
            vectors = vectors.astype(np.float32).reshape(len(stored), -1)
            found[name] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return found


def peers(folder: str, pixels: list[np.ndarray]) -> dict[str, np.ndarray]:
    """uint64 [n] hashes of other libraries; {} without a folder."""
    if not folder:
        return {}
    sys.path.append(folder)
    pictures = [Image.fromarray(image) for image in pixels]
    found: dict[str, np.ndarray] = {}
    import imagehash

    for name in ("phash", "dhash", "average_hash", "whash"):
        hashes = [getattr(imagehash, name)(picture).hash.ravel() for picture in pictures]
        found[f"imagehash {name}"] = np.packbits(np.array(hashes), axis=1).view(">u8").ravel().astype(np.uint64)
    from imagededup.methods.hashing import AHash, DHash, PHash, WHash

    for kind in (PHash, DHash, AHash, WHash):
        hasher = kind()
        codes = [int(hasher.encode_image(image_array=image), 16) for image in pixels]
        found[f"imagededup {kind.__name__}"] = np.array(codes, np.uint64)
    return found


def report(title: str, names: list[str], rows: list[tuple[str, list[float], int, int]]) -> None:
    print(f"\n**{title}**\n")
    print("| method | " + " | ".join(names) + " | false merges |")
    print("|---" * (len(names) + 2) + "|")
    for method, recalls, false, pairs in rows:
        print(f"| {method} | " + " | ".join(f"{100 * recall:.0f}" for recall in recalls) + f" | {false} of {pairs:,} |")


def judge(
    copies: dict[str, dict[str, np.ndarray]],
    alone: np.ndarray,
    near: Callable[[dict, int | np.ndarray, dict, int | np.ndarray], np.ndarray],
) -> tuple[list[float], int]:
    """Recall of each change, and how many pairs of different originals are near."""
    original = copies["original"]
    every = np.arange(len(alone))
    recalls = [
        float(near(original, every, found, every).mean()) for name, found in copies.items() if name != "original"
    ]
    i, j = np.array(list(combinations(np.flatnonzero(alone), 2))).T
    return recalls, int(near(original, i, original, j).sum())


def hash_near(name: str, distance: int, informed: bool, a: dict, i: np.ndarray, b: dict, j: np.ndarray) -> np.ndarray:
    close = np.bitwise_count(a[name][i] ^ b[name][j]) <= distance
    if informed:
        close &= telling(a[name], a["entropy"])[i] & telling(b[name], b["entropy"])[j]
    return close


def cosine_near(name: str, similarity: float, a: dict, i: np.ndarray, b: dict, j: np.ndarray) -> np.ndarray:
    return np.einsum("nd,nd->n", a[name][i], b[name][j]) >= similarity


def equal(name: str, a: dict, i: np.ndarray, b: dict, j: np.ndarray) -> np.ndarray:
    return a[name][i] == b[name][j]


def run(title: str, originals: list[bytes], folder: str) -> None:
    """Make the copies, measure them in one go, and print the table."""
    received: dict[str, list[bytes]] = {"original": []}
    for data in originals:
        image = Image.open(io.BytesIO(data)).convert("RGB")
        received["original"].append(png(image))
        for name, change in CHANGES.items():
            received.setdefault(name, []).append(change(image) if name != "PNG again" else png_again(image))
    n = len(originals)
    bytes_ = [data for group in received.values() for data in group]
    stored = [to_jpeg(data, 512, 95, 100_000_000).jpeg for data in bytes_]
    found = measure(stored)
    pixels = [
        cv2.cvtColor(cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
        for data in stored
    ]
    found["bytes"] = np.array([hashlib.sha256(data).hexdigest() for data in bytes_])
    found["pixels"] = np.array(
        [hashlib.sha256(image.tobytes() + str(image.shape).encode()).hexdigest() for image in pixels]
    )
    found |= (other := peers(folder, pixels))
    copies = {
        name: {key: values[place * n : (place + 1) * n] for key, values in found.items()}
        for place, name in enumerate(received)
    }
    first = copies["original"]
    alone = np.ones(n, np.bool_)
    likeness = np.triu(first["sscd"] @ first["sscd"].T, 1)
    alone[np.unique(np.nonzero(likeness >= 0.9)[1])] = False
    methods: list[tuple[str, Callable]] = [
        ("exact", functools.partial(equal, "bytes")),
        ("pixels", functools.partial(equal, "pixels")),
    ]
    methods += [(f"perceptual, {d}", functools.partial(hash_near, "phash", d, True)) for d in (2, 4, 6, 8, 10)]
    for model, thresholds in THRESHOLDS.items():
        methods += [(f"{model}, {s}", functools.partial(cosine_near, model, s)) for s in thresholds]
    for name in other:
        methods += [(f"{name}, {d}", functools.partial(hash_near, name, d, False)) for d in (4, 10)]
    pairs = int(alone.sum() * (alone.sum() - 1) // 2)
    rows = [(name, *judge(copies, alone, near), pairs) for name, near in methods]
    report(f"{title}: {n} originals ({int(alone.sum())} for false merges); recall in %", list(CHANGES), rows)


def png_again(image: Image.Image) -> bytes:
    """The same pixels in other bytes."""
    out = io.BytesIO()
    image.save(out, "PNG", compress_level=9)
    return out.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=60)
    parser.add_argument("--drawings", type=int, default=240)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--peers", default="")
    given = parser.parse_args()
    for title, patterns, count in (("Photos", PHOTOS, given.photos), ("Drawings", DRAWINGS, given.drawings)):
        if count:
            run(title, choose(patterns, count, given.seed), given.peers)


if __name__ == "__main__":
    main()
