"""What the stage `signals` costs around a CLIP model's forward passes, and what a filter network tells apart.

    python benchmarks/bench_models.py [overhead | filter]

overhead: CPU-seconds of `measure_part` with the signal clip alone (reading and decoding JPEGs of 256 pixels,
preprocessing, tokenizing, batches, scores, tables) beside those of the bare model on ready tensors: the same images and
captions in the same batches, the last one filled up in both. They take turns, so that a busy machine treats both alike.

filter: needs `python recipes/demo_data.py fetch --all`. Filter networks are trained on one collection's titles, and
score held-out pairs of it, and of another, beside the same pairs with captions shuffled: AUC, 0.5 being chance.
"""

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pyarrow as pa
import torch

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

    def stage() -> None:
        measure_part(rows, lambda offset, length: stored[offset], measurements, {}, {})

    stage()  # loads the model
    bare = bare_lite(count, captions) if model == "lite" else bare_open_clip(options, count, captions)
    whole, alone = take_turns(stage, bare, 5)
    print(
        f"{model:<9} {count} pairs: bare model {count / alone:6.1f} pairs a CPU-second, stage {count / whole:6.1f}: "
        f"{whole / alone - 1:.1%} more"
    )


def take_turns(one: Callable[[], None], other: Callable[[], None], times: int) -> list[float]:
    """The smallest CPU-seconds of each."""
    seconds: list[list[float]] = [[], []]
    for _ in range(times):
        for place, work in enumerate((one, other)):
            started = time.process_time()
            work()
            seconds[place].append(time.process_time() - started)
    return [min(found) for found in seconds]


def bare_lite(count: int, captions: tuple[str, ...]) -> Callable[[], None]:
    """EfficientNet-Lite0 in batches of 16, MiniLM, and the heads in blocks of 32."""
    vision, sentences, heads = towers.vision(), towers.sentences(), lite.load().heads
    size = towers.Vision.batch
    pixels = torch.randn(size, 3, towers.SIDE, towers.SIDE).to(memory_format=torch.channels_last)

    @torch.inference_mode()
    def run() -> None:
        for _ in range(-(-count // size)):
            pooled = vision.net.extract_features(pixels).flatten(2).mean(2)
            features = torch.cat([pooled, vision.net._fc(pooled)], 1)
        for _ in range(-(-count // 32)):
            heads.encode_images(torch.cat([features, features]))
            heads.encode_texts(torch.zeros(32, lite.DIM))
        sentences.embed(list(captions))

    return run


def bare_open_clip(options: recipe.ClipSignal, count: int, captions: tuple[str, ...]) -> Callable[[], None]:
    import open_clip

    model = open_clip.create_model(options.model).eval()
    size = model.visual.image_size
    images = torch.randn(options.batch, 3, *((size, size) if isinstance(size, int) else size))
    tokens = open_clip.get_tokenizer(options.model)(list(captions[: options.batch]))

    @torch.inference_mode()
    def run() -> None:
        for _ in range(-(-count // options.batch)):
            model.encode_image(images, normalize=True)
            model.encode_text(tokens, normalize=True)

    return run


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
        "uid": [f"{number:032x}" for number in range(len(pairs))],
        "jpg": pa.array([content for content, _ in pairs], pa.large_binary()),
        "txt": [title for _, title in pairs],
        "json": ["{}"] * len(pairs),
    }
    shards.write_tar(pa.table(rows), out / "pairs.tar")
    train(filter.job(options), {"train": [str(out / "pairs.tar")]}, str(out / "run"))
    return filter._encoder(str(out / "run" / "model"))


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
