"""The trainer against open_clip_train on the same shards: samples a second, by the clock and by the processor.

python benchmarks/bench_open_clip.py [--rounds 3]        (`make peers` first)

Both run as commands, on one process with one thread that decodes and one thread of arithmetic, from tars of pictures
of 256 pixels at the shorter side, as the demo stores them, with the same model, batch and precision, and cut a random
square of 0.9 to 1 of each picture. Each runs a short and a long training in turns; what counts is the difference, so
that imports, the first steps and the last checkpoint are apart.
"""

import argparse
import io
import json
import os
import resource
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np
from bench_models import made

PEERS = Path(__file__).parents[1] / ".cache/peers/open_clip"
SIZES = {"64 pixels": 64, "128 pixels": 128}
BATCH, SHARDS, SHORT, LONG = 64, 8, 4, 28


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    if not PEERS.is_dir():
        raise SystemExit("open_clip_train is not there: make peers")
    ways = {"vlmdata": ours, "open_clip_train": theirs}
    print(
        "| model | trainer | samples a second, best | median | a CPU-second, best | median |\n|---|---|---|---|---|---|"
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shards(folder)
        for title, side in SIZES.items():
            (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": model(side), "preprocess_cfg": {}}))
            rates: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
            for _ in range(rounds):
                for way, command in ways.items():
                    (short_wall, short_cpu), (long_wall, long_cpu) = (
                        timed(command(folder, steps), folder) for steps in (SHORT, LONG)
                    )
                    samples = BATCH * (LONG - SHORT)
                    rates[way].append((samples / (long_wall - short_wall), samples / (long_cpu - short_cpu)))
            for way, found in rates.items():
                wall, cpu = np.array(found).T
                values = (wall.max(), np.median(wall), cpu.max(), np.median(cpu))
                print(f"| {title} | {way} | " + " | ".join(f"{value:.1f}" for value in values) + " |", flush=True)


def model(side: int) -> dict[str, object]:
    return {
        "embed_dim": 128,
        "vision_cfg": {"image_size": side, "layers": 4, "width": 192, "head_width": 32, "patch_size": side // 8},
        "text_cfg": {"context_length": 24, "vocab_size": 49408, "width": 128, "heads": 4, "layers": 3},
    }


def ours(folder: Path, steps: int) -> list[str]:
    options = {
        "model": str(folder / "open_clip_config.json"), "steps": steps, "batch": BATCH, "crop": 0.9, "warmup": 2,
        "workers": 1, "threads": 1, "save_every": 10**6, "eval_every": 10**6,
    }  # fmt: skip
    settings = [word for name, value in options.items() for word in ("--set", f"{name}={json.dumps(value)}")]
    data = ("--data", str(folder / "train-*.tar"), "--out", str(folder / f"ours-{time.time_ns()}"))
    return [sys.executable, "-m", "vlmdata.cli", "train", "contrastive", *data, *settings]


def theirs(folder: Path, steps: int) -> list[str]:
    return [
        *(sys.executable, "-m", "open_clip_train.main", "--dataset-type", "webdataset", "--dataset-resampled"),
        *("--train-data", str(folder / f"train-{{0000000..{SHARDS - 1:07d}}}.tar")),
        *("--train-num-samples", str(BATCH * steps), "--model", f"local-dir:{folder}", "--batch-size", str(BATCH)),
        *("--epochs", "1", "--warmup", "2", "--workers", "1", "--device", "cpu", "--precision", "fp32"),
        *("--logs", str(folder / "logs"), "--name", str(time.time_ns()), "--save-frequency", "0"),
    ]


def timed(command: list[str], folder: Path) -> tuple[float, float]:
    """Seconds by the clock, and of the processor in the process and those that it started."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(PEERS) if "open_clip" in command[2] else ""}
    before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    wall, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    if ended.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{ended.stderr[-3000:]}")
    return wall, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def shards(folder: Path) -> None:
    pairs = made(2048)
    for number in range(SHARDS):
        with tarfile.open(folder / f"train-{number:07d}.tar", "w") as out:
            for place, (jpeg, caption) in enumerate(pairs[number::SHARDS]):
                members = {"jpg": jpeg, "txt": caption.encode(), "json": json.dumps({"n": place}).encode()}
                for extension, content in members.items():
                    info = tarfile.TarInfo(f"{number:02d}{place:07d}.{extension}")
                    info.size = len(content)
                    out.addfile(info, io.BytesIO(content))


if __name__ == "__main__":
    cv2.setNumThreads(1)
    main()
