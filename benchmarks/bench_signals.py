"""Images a CPU-second of the signals that read pixels, their models loaded before; phash beside imagehash's."""

import sys
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
from PIL import Image

from vlmdata import recipe
from vlmdata.signals import family
from vlmdata.signals.image import perceptual_hashes, small_grey
from vlmdata.signals.pictures import Pictures

sys.path.append(str(Path(__file__).resolve().parents[1] / ".cache/peers/extract"))  # what `make peers` installed

COUNT = {"image": 1000, "clip": 96, "nsfw": 96, "ocr": 48, "faces": 48, "masked_clip": 48}
OPTIONS = {
    "image": recipe.ImageSignal,
    "clip": recipe.ClipSignal,
    "nsfw": recipe.NsfwSignal,
    "ocr": recipe.OcrSignal,
    "faces": recipe.FacesSignal,
    "masked_clip": recipe.MaskedClipSignal,
}


def main() -> None:
    draw = np.random.default_rng(0)
    for kind, count in COUNT.items():
        options = OPTIONS[kind](kind=kind)
        pixels = [draw.integers(0, 255, (256, 341, 3), dtype=np.uint8) for _ in range(count)]
        rows = pa.table(
            {
                "uid": [f"{number:032x}" for number in range(count)],
                "caption": [f"a photo of thing number {number}" for number in range(count)],
                "original_width": pa.array([341] * count, pa.int32()),
                "original_height": pa.array([256] * count, pa.int32()),
            }
        )
        module = family(kind)
        module.measure(rows.slice(0, 8), Pictures(pixels[:8], np.arange(8)), options)  # loads the model
        started = time.process_time()
        module.measure(rows, Pictures(pixels, np.arange(count)), options)
        print(f"{kind:<12} {count / (time.process_time() - started):8.0f} images a CPU-second")
    compare_phash(256, 341)
    compare_phash(512, 683)  # as the download stores them by default


def compare_phash(height: int, width: int, count: int = 500) -> None:
    """Hashes of decoded pixels, which each is given as it takes them: ours in one batch. The best of three rounds."""
    import imagehash

    draw = np.random.default_rng(0)
    pixels = [draw.integers(0, 255, (height, width, 3), dtype=np.uint8) for _ in range(count)]
    images = [Image.fromarray(picture) for picture in pixels]
    best = {"phash": 0.0, "imagehash": 0.0}
    for _ in range(3):
        started = time.process_time()
        perceptual_hashes(np.stack([small_grey(picture) for picture in pixels]))
        ours = time.process_time()
        for image in images:
            imagehash.phash(image)
        theirs = time.process_time()
        best["phash"] = max(best["phash"], count / (ours - started))
        best["imagehash"] = max(best["imagehash"], count / (theirs - ours))
    for name, speed in best.items():
        print(f"{name:<9} {width} x {height} {speed:7.0f} hashes a CPU-second")
    print(f"ratio     {width} x {height} {best['phash'] / best['imagehash']:7.1f}")


if __name__ == "__main__":
    main()
