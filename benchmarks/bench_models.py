"""What the stage `signals` costs around a CLIP model's forward passes, and what a filter network tells apart.

    python benchmarks/bench_models.py [overhead | filter]

overhead: CPU-seconds of `measure_part` with the signal clip alone (decoding JPEGs of 256 pixels, preprocessing,
tokenizing, batches, scores, tables) over those that the model's forward passes take in it, on ready tensors. Both are
taken in the same run, since two runs on a busy machine differ by more than what is measured.

filter: needs `python recipes/demo_data.py fetch --all`. Filter networks are trained on one collection's titles, and
score held-out pairs of it, and of another, beside the same pairs with captions shuffled: AUC, 0.5 being chance.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import pyarrow as pa

from vlmdata import lite, recipe, shards, towers
from vlmdata.signals import Measurement, clip, filter, measure_part

DEMO = Path(__file__).resolve().parents[1] / ".cache" / "demo"
COUNTS = {"lite": 128, "ViT-B-32": 64}
TRAINED, HELD_OUT = 1500, 300
FILTERS = (
    {"model": "tiny", "steps": 400, "batch": 128, "crop": 0.8},
    {"model": "lite", "steps": 100, "batch": 512, "lr": 0.002, "warmup": 20, "weight_decay": 2.0},
)
Pair = tuple[bytes, str]


def main() -> None:
    wanted = sys.argv[1:] or ["overhead", "filter"]
    if "overhead" in wanted:
        for model, count in COUNTS.items():
            overhead(model, count)
    if "filter" in wanted:
        filters()


def overhead(model: str, count: int) -> None:
    options = recipe.ClipSignal(kind="clip", model=model, pretrained=None if model == "lite" else "random")
    stored, captions = zip(*made(count), strict=True)
    rows = pa.table(
        {
            "uid": [f"{number:032x}" for number in range(count)],
            "caption": captions,
            "width": pa.array([341] * count, pa.int32()),
            "height": pa.array([256] * count, pa.int32()),
            "offset": pa.array(range(count), pa.int64()),
            "length": pa.array([len(content) for content in stored], pa.int64()),
        }
    )
    measurements = [Measurement(options, clip.schemas(options), {})]
    inside = [0.0]

    def timed(work: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **named: Any) -> Any:
            started = time.process_time()
            found = work(*arguments, **named)
            inside[0] += time.process_time() - started
            return found

        return run

    with ExitStack() as stack:
        for owner, name in forward_passes(model):
            stack.enter_context(patch.object(owner, name, timed(getattr(owner, name))))
        whole = alone = 0.0
        for turn in range(4):
            inside[0], started = 0.0, time.process_time()
            measure_part(rows, lambda offset, length: stored[offset], measurements, {}, {})
            if turn:  # the first one loads the model
                whole, alone = whole + time.process_time() - started, alone + inside[0]
    print(
        f"{model:<9} {count} pairs: forward passes {3 * count / alone:6.1f} pairs a CPU-second, "
        f"stage {3 * count / whole:6.1f}: {whole / alone - 1:.1%} more",
        flush=True,
    )


def forward_passes(model: str) -> list[tuple[Any, str]]:
    """The functions that take ready tensors through the model."""
    if model == "lite":
        net, heads = towers.vision().net, lite.load().heads
        passes: list[tuple[Any, str]] = [
            (net, "extract_features"),
            (net._fc, "forward"),
            (towers.sentences(), "_forward"),
        ]
        return [*passes, (heads, "encode_images"), (heads, "encode_texts")]
    import open_clip

    return [(open_clip.CLIP, "encode_image"), (open_clip.CLIP, "encode_text")]


def made(count: int) -> list[Pair]:
    """Smooth pictures of 341 x 256 as the download stores them, about as large as photographs, and captions."""
    draw = np.random.default_rng(0)
    pairs = []
    for number in range(count):
        coarse = cv2.resize(draw.integers(0, 255, (24, 32, 3), np.uint8), (341, 256), interpolation=cv2.INTER_CUBIC)
        content = cv2.imencode(".jpg", coarse, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
        pairs.append((content, f"a photo of thing number {number} on a table in the garden"))
    return pairs


def filters() -> None:
    collections = {"emoji": DEMO / "emoji" / "google", "openclipart": DEMO / "openclipart-all"}
    other = {"emoji": DEMO / "emoji" / "twitter"}  # of the same things
    if not all(folder.is_dir() for folder in (*collections.values(), *other.values())):
        print("filter: there is no data: python recipes/demo_data.py fetch --all")
        return
    print("| trusted | model | pairs | AUC, held out | AUC, other drawings of the same |\n|---|---|---|---|---|")
    for name, folder in collections.items():
        pairs = in_folder(folder, TRAINED + HELD_OUT)
        titles = {title for _, title in pairs[:-HELD_OUT]}
        new = [pair for pair in pairs[-HELD_OUT:] if pair[1] not in titles]
        redrawn = in_folder(other[name], HELD_OUT) if name in other else []
        for values in FILTERS:
            options = recipe.FilterSignal(kind="filter", trusted=["it"], **values)
            with tempfile.TemporaryDirectory() as out:
                encoder = trained(options, pairs[:-HELD_OUT], Path(out))
            found = [f"{auc(encoder, held):.3f}" if held else "" for held in (new, redrawn)]
            print(f"| {name} | {options.model} | {len(pairs) - HELD_OUT} | {' | '.join(found)} |", flush=True)


def trained(options: recipe.FilterSignal, pairs: list[Pair], out: Path) -> clip.Encoder:
    from vlmdata.train.loop import train

    rows = {
        "key": [f"{number:032x}" for number in range(len(pairs))],
        "jpg": pa.array([content for content, _ in pairs], pa.large_binary()),
        "txt": [title for _, title in pairs],
        "json": ["{}"] * len(pairs),
    }
    shards.write_tar([pa.table(rows)], out / "pairs.tar")
    train(filter.job(options), {"train": [str(out / "pairs.tar")]}, str(out / "run"))
    return filter._encoder(str(out / "run" / "model"), "")


def auc(encoder: clip.Encoder, pairs: list[Pair]) -> float:
    """How often a right pair scores higher than a wrong one, over the pairs and one shuffling of their captions."""
    pictures = [cv2.imdecode(np.frombuffer(c, np.uint8), cv2.IMREAD_COLOR)[..., ::-1] for c, _ in pairs]
    images, texts = encoder.encode_images(pictures), encoder.encode_texts([title for _, title in pairs])
    right, wrong = ((images * np.roll(texts, turn, 0)).sum(1) for turn in (0, 1))
    return float(np.mean(right[:, None] > wrong[None]))


def in_folder(folder: Path, count: int) -> list[Pair]:
    """Pairs with different titles in a random order: JPEGs on white, the shorter side at most 256, and titles."""
    paths = sorted(folder.rglob("*.png"))
    pairs: dict[str, bytes] = {}
    for place in np.random.default_rng(0).permutation(len(paths)):
        title = json.loads(paths[place].with_suffix(".json").read_text("utf-8"))["title"]
        drawn = cv2.imread(str(paths[place]), cv2.IMREAD_UNCHANGED)
        if title in pairs or "skin tone" in title or drawn is None or drawn.dtype != np.uint8 or drawn.ndim != 3:
            continue
        if drawn.shape[2] == 4:
            alpha = drawn[..., 3:] / 255
            drawn = (drawn[..., :3] * alpha + 255 * (1 - alpha)).astype(np.uint8)
        scale = min(1, 256 / min(drawn.shape[:2]))
        small = cv2.resize(drawn, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        pairs[title] = cv2.imencode(".jpg", small, [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()
        if len(pairs) == count:
            break
    return [(content, title) for title, content in pairs.items()]


if __name__ == "__main__":
    main()
