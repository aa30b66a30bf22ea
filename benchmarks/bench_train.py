"""What the trainer costs around the model, and how fast it reads shards.

python benchmarks/bench_train.py [loop] [loader] [--rounds 3]

loop: samples a CPU-second of `train` against a hand-written PyTorch loop of the same model, optimiser and batches,
which stand ready in memory for both; one process and one thread each, in turns. The first steps are apart.
loader: samples a CPU-second of pictures of 512 pixels (the shorter side) out of tars, cut and resized to 224: ours by
position, as the trainer reads them, against webdataset with its own decoder and the resize of torchvision or of OpenCV.
"""

import argparse
import io
import json
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import torch
import webdataset
from bench_models import made
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from vlmdata.recipe import ContrastiveJob
from vlmdata.train import contrastive, data, loop, order

SIDE = 224
MODEL = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": 4, "width": 192, "head_width": 32, "patch_size": 8},
    "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 3},
}
STEPS, WARM = 12, 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["loop", "loader"])
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    with tempfile.TemporaryDirectory() as folder:
        tar = shard(Path(folder) / "train-0000000.tar", 1500)
        if "loop" in given.what:
            compare("loop", {"train": trainer, "by hand": by_hand}, tar, given.rounds)
        if "loader" in given.what:
            ways = {"vlmdata": ours, "webdataset, Pillow": pillow, "webdataset, OpenCV": opencv}
            compare("loader", ways, tar, given.rounds)


def compare(title: str, ways: dict[str, Callable[[str], tuple[int, float]]], tar: str, rounds: int) -> None:
    """Each way in turns; samples a CPU-second, the best and the median."""
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            samples, seconds = way(tar)
            rates[name].append(samples / seconds)
    first = next(iter(rates))
    print(f"\n| {title} | samples a CPU-second, best | median | {first} is |\n|---|---|---|---|")
    for name, found in rates.items():
        ratio = f"{max(rates[first]) / max(found):.2f} x"
        print(f"| {name} | {max(found):.1f} | {np.median(found):.1f} | {ratio} |", flush=True)


def job(**more: Any) -> ContrastiveJob:
    return ContrastiveJob(
        kind="train",
        model=MODEL,
        steps=STEPS,
        batch=64,
        warmup=2,
        workers=0,
        save_every=10**6,
        eval_every=10**6,
        **more,
    )


class Ready:
    """All samples of a shard as tensors."""

    def __init__(self, whole: contrastive.Pictures) -> None:
        self.uids, self.first, self.broken = whole.uids, whole.first, whole.broken
        self.rows = whole.batch(np.arange(512), None)

    def batch(self, places: np.ndarray, seeds: np.ndarray | None) -> dict[str, torch.Tensor]:
        return {name: tensor[places % 512] for name, tensor in self.rows.items()}


def trainer(tar: str) -> tuple[int, float]:
    """CPU-seconds of the steps behind the first ones, checkpoint and end apart."""
    marks: list[float] = []
    samples = contrastive.Contrastive.samples

    def ready(self: contrastive.Contrastive, shards: data.Index, out: Path) -> Any:
        return Ready(samples(self, shards, out)) if len(shards) else samples(self, shards, out)

    with tempfile.TemporaryDirectory() as out, patch.object(contrastive.Contrastive, "samples", ready):
        loop.train(job(), {"train": [tar]}, out, on_step=lambda *_: marks.append(time.process_time()))
    # the last step also saves: up to the one before
    return 64 * (STEPS - 1 - WARM), marks[STEPS - 2] - marks[WARM - 1]


def by_hand(tar: str) -> tuple[int, float]:
    """The same model and optimiser in the shortest loop."""
    with tempfile.TemporaryDirectory() as out:
        torch.manual_seed(0)
        objective = contrastive.build(job())
        ready = Ready(objective.samples(data.index([tar], Path(out)), Path(out)))
    model = objective.model.train()
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    groups = [{"params": decayed, "weight_decay": 0.1}]
    groups += [{"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-3, betas=(0.9, 0.98), eps=1e-6, fused=True)
    start = 0.0
    for step in range(STEPS - 1):
        if step == WARM:
            start = time.process_time()
        batch = ready.batch(np.arange(64 * step, 64 * (step + 1)), None)
        optimizer.zero_grad()
        loss = model(batch)["contrastive"]
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return 64 * (STEPS - 1 - WARM), time.process_time() - start


def ours(tar: str) -> tuple[int, float]:
    """As the trainer reads: in the order of an epoch, a batch at once."""
    start = time.process_time()
    shards = data.index([tar], Path())
    places = order.positions(len(shards), len(shards), 0, 0)
    for place in places:
        _, picture = data.decodable(shards, int(place), round(1.5 * SIDE), set())
        data.square(picture, SIDE)
        data.caption(shards, int(place))
    return len(shards), time.process_time() - start


def pillow(tar: str) -> tuple[int, float]:
    """webdataset as its documentation has it: Pillow's pictures through torchvision's transforms."""
    change = Compose([Resize(SIDE, InterpolationMode.BICUBIC), CenterCrop(SIDE)])
    return through(
        webdataset.WebDataset(tar, shardshuffle=False).shuffle(500).decode("pil").to_tuple("jpg", "txt"), change
    )


def opencv(tar: str) -> tuple[int, float]:
    """webdataset with the same cut and resize as ours."""
    pipe = webdataset.WebDataset(tar, shardshuffle=False).shuffle(500).decode("rgb8").to_tuple("jpg", "txt")
    return through(pipe, lambda picture: data.square(picture, SIDE))


def through(pipe: Any, change: Callable[[Any], Any]) -> tuple[int, float]:
    start, samples = time.process_time(), 0
    for picture, _ in pipe:
        change(picture)
        samples += 1
    return samples, time.process_time() - start


def shard(path: Path, count: int) -> str:
    """Pictures as large as the download stores them by default, 512 pixels at the shorter side."""
    with tarfile.open(path, "w") as out:
        for number, (jpeg, caption) in enumerate(made(count)):
            members = {"jpg": larger(jpeg), "txt": caption.encode(), "json": json.dumps({"n": number}).encode()}
            for extension, content in members.items():
                info = tarfile.TarInfo(f"{number:09d}.{extension}")
                info.size = len(content)
                out.addfile(info, io.BytesIO(content))
    return str(path)


def larger(jpeg: bytes) -> bytes:
    buffer = io.BytesIO()
    Image.open(io.BytesIO(jpeg)).resize((682, 512)).save(buffer, "JPEG", quality=95)
    return buffer.getvalue()


if __name__ == "__main__":
    main()
