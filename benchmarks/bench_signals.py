"""Images a CPU-second of the signals that read pixels, their models loaded before."""

import time

import numpy as np
import pyarrow as pa

from vlmdata import recipe
from vlmdata.signals import family
from vlmdata.signals.pictures import Pictures

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


if __name__ == "__main__":
    main()
