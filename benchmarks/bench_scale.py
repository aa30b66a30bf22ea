"""10 thousand to a million rows through ingest, grouping, selection and funnel: CPU time a row, and peak memory.

python benchmarks/bench_scale.py [--rows 10000 100000 1000000] [--images 2000 20000] [--until funnel]

Each stage is the whole command in a process of its own. A list in Parquet has a URL, a caption and a score that is
kept as a signal; every tenth pair stands in it twice. Images, text, language and image signals are made up and ready;
15 % of the pairs are in groups of three, two of the same bytes and one that is near. Funnel: every rule changed.
Images: JPEGs of 384 x 288 in local WebDataset tars, stored, measured (text, image), selected and written as shards.

Imports and the start of Prefect are apart: a run of 1,000 rows (of 100 images) is taken off the time. Memory is
sampled, that of all processes of a command together: its own (anonymous), and pages of files that it has mapped, which
the system can take back.
"""

import argparse
import hashlib
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from vlmdata import snapshot
from vlmdata.dataset import Dataset, Table
from vlmdata.plan import Plan, make_plan, tables_there
from vlmdata.recipe import Recipe
from vlmdata.schemas import conform, table_schema

STAGES = ("ingest", "dedup", "select", "funnel")
LEAST, FEWEST = 1000, 100  # rows, images
SELECT = {
    "rules": {
        "size": "least(original_width, original_height) >= 200",
        "words": "words between 3 and 200 and chars > 5",
        "english": "lang = 'en'",
        "sharp": "sharpness > 20",
    }
}
CHANGED = ["size=least(original_width, original_height) >= 256", "words=words > 4", "sharp=sharpness > 10"]


class Cost(NamedTuple):
    """Seconds on the wall and of CPU; peaks in bytes: own memory, and pages of mapped files."""

    wall: float
    cpu: float
    own: int
    mapped: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--images", type=int, nargs="*", default=[2_000, 20_000])
    parser.add_argument("--until", default="funnel", choices=STAGES, help="the last stage of rows that is measured")
    given = parser.parse_args()
    if given.rows:
        table("stage | rows", of_rows, given.rows, LEAST, given.until)
    if given.images:
        table("stages | images", of_images, given.images, FEWEST)


def table(
    first: str, costs: Callable[..., Iterator[tuple[str, Cost]]], counts: list[int], least: int, *more: Any
) -> None:
    """Print what each count costs, without what the least count does."""
    print(f"| {first} | wall seconds | CPU seconds | microseconds of CPU each | own memory | mapped files |")
    print("|---|---|---|---|---|---|---|")
    base: dict[str, Cost] = {}
    for count in (least, *counts):
        for stage, cost in costs(count, *more):
            off = base.get(stage, Cost(0, 0, 0, 0))
            cpu = cost.cpu - off.cpu
            each = f"{cpu / (count - least) * 1e6:.1f}" if count > least else "-"
            print(
                f"| {stage} | {count:,} | {cost.wall - off.wall:.1f} | {cpu:.1f} | {each} "
                f"| {cost.own / 1e6:.0f} MB | {cost.mapped / 1e6:.0f} MB |",
                flush=True,
            )
            base.setdefault(stage, cost)


def of_rows(rows: int, until: str) -> Iterator[tuple[str, Cost]]:
    """What each stage costs."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = {"kind": "table", "name": "list", "path": str(folder / "list.parquet"), "url": "URL"}
        source |= {"caption": "TEXT", "keep": ["score"]}
        recipe = {
            "dataset": str(folder / "it"),
            "sources": [source],
            "signals": ["text", "language", "image"],
            "dedup": ["exact", "perceptual"],
            "select": SELECT,
        }
        numbers = np.concatenate([np.arange(rows), np.arange(0, rows, 10)])
        pairs = {
            "URL": [f"https://host{n % 997}.example/pictures/{n}.jpg" for n in numbers.tolist()],
            "TEXT": [f"a photo of thing number {n} on a table in the garden" for n in numbers.tolist()],
            "score": (numbers % 1000) / 1000,
        }
        pq.write_table(pa.table(pairs), folder / "list.parquet")
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        plan, dataset = make_plan(Recipe.model_validate(recipe)), Dataset(recipe["dataset"])
        for stage in STAGES[: 1 + STAGES.index(until)]:
            if stage == "funnel":
                samples = dataset.read_table("samples", "1")
                dataset.publish(snapshot.manifest(plan, 1, tables_there(plan, dataset), samples, [], []))
                settings = [word for rule in CHANGED for word in ("--set", f"select.rules.{rule}")]
                yield stage, run(folder, "funnel", dataset.url, *settings)
            else:
                yield stage, run(folder, "run", "recipe.yaml", "--stages", stage)
            if stage == "ingest":
                measure(plan, dataset)


def measure(plan: Plan, dataset: Dataset) -> None:
    """The tables that download and signals would leave, with made-up values, without images."""
    pairs = dataset.read_table("pairs", plan.pairs)
    assert pairs is not None
    schemas = {"images": table_schema("images")}
    schemas |= {name: schema for signal in plan.signals for name, schema in signal.measurement.schemas.items()}
    parts: dict[str, list[Any]] = {name: [] for name in schemas}
    for number, part in enumerate(pairs.parts):
        rows = dataset.read_part(part, ["uid", "url"])
        values = made_up(np.random.default_rng(number), rows)
        for name, schema in schemas.items():
            columns = [values.get(field.name, pa.nulls(rows.num_rows, field.type)) for field in schema]
            content = conform(pa.table(columns, schema.names), schema)
            parts[name].append(dataset.write_part(name, plan.tables[name], part.name, content, {}))
    for name, written in parts.items():
        dataset.write_table(Table(name, plan.tables[name], tuple(written)))


def made_up(draw: np.random.Generator, rows: pa.Table) -> dict[str, Any]:
    """Columns of a part's pairs, by name. Of 20 numbers the first two show one picture, the third one like it."""
    count = rows.num_rows
    numbers = [int(url.rpartition("/")[2].removesuffix(".jpg")) for url in rows["url"].to_pylist()]
    shown = [n - n % 20 if n % 20 < 3 else n for n in numbers]
    own = [hashlib.sha256(b"%d" % n).hexdigest() for n in numbers]
    group = [hashlib.sha256(b"%d" % n).hexdigest() for n in shown]
    width, height = (np.exp(draw.normal(6.3, 0.7, count)).astype(np.int32) + 16 for _ in range(2))
    words = draw.poisson(8, count).astype(np.int32)
    return {
        "uid": rows["uid"],
        "download_status": np.where(draw.random(count) < 0.1, "4xx", "success"),
        "sha256": [mine if n % 20 == 2 else its for n, mine, its in zip(numbers, own, group, strict=True)],
        "mime": ["image/jpeg"] * count,
        "width": width,
        "height": height,
        "original_width": width,
        "original_height": height,
        "chars": words * 6,
        "words": words,
        "lang": draw.choice(["en", "de", "fr", "ru"], count, p=[0.7, 0.1, 0.1, 0.1]),
        "lang_score": draw.random(count).astype(np.float32),
        "phash": np.array(
            [int(its[:16], 16) ^ (n % 20 == 2) for n, its in zip(numbers, group, strict=True)], np.uint64
        ),
        "pixels_sha256": own,
        "sharpness": draw.gamma(2, 100, count).astype(np.float32),
        "entropy": draw.normal(6, 1, count).astype(np.float32),
    }


def of_images(count: int) -> Iterator[tuple[str, Cost]]:
    """What it costs to store, measure, select and write as shards the images of local tars."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw = np.random.default_rng(0)
        drawn = [cv2.resize(draw.integers(0, 256, (24, 32, 3), np.uint8), (384, 288)) for _ in range(300)]
        for start in range(0, count, 1000):
            with tarfile.open(folder / f"{start:07d}.tar", "w") as tar:
                for number in range(start, min(start + 1000, count)):
                    pixels = np.roll(drawn[number % 300], number // 300, (0, 1))
                    jpeg = cv2.imencode(".jpg", pixels)[1].tobytes()
                    add(tar, f"{number:07d}.jpg", jpeg)
                    add(tar, f"{number:07d}.txt", b"a photo of thing number %d on a table" % number)
        recipe = {
            "dataset": "it",
            "sources": [{"kind": "webdataset", "path": "*.tar"}],
            "signals": ["text", "image"],
            "select": {"rules": {"words": "words > 3", "size": "width >= 200"}},
        }
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        yield "images", run(folder, "run", "recipe.yaml")


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def run(folder: Path, *arguments: str) -> Cost:
    """Run a command of vlmdata in the folder, its memory looked at every 20 ms."""
    began = time.monotonic()
    command = [sys.executable, "-m", "vlmdata.cli", *arguments]
    with (folder / "told").open("w+") as told:
        child = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=told)
        own = mapped = 0
        while not (ended := os.wait4(child.pid, os.WNOHANG))[0]:
            now = [memory(pid) for pid in family(child.pid)]
            own, mapped = max(own, sum(each[0] for each in now)), max(mapped, sum(each[1] for each in now))
            time.sleep(0.02)
        told.seek(0)
        if ended[1]:
            raise SystemExit(told.read())
    return Cost(time.monotonic() - began, ended[2].ru_utime + ended[2].ru_stime, own, mapped)


def family(pid: int) -> list[int]:
    """The process and those that it and its children have started."""
    found = [pid]
    for each in found:
        try:
            for thread in Path(f"/proc/{each}/task").iterdir():
                found += map(int, (thread / "children").read_text().split())
        except OSError:  # it has ended
            continue
    return found


def memory(pid: int) -> tuple[int, int]:
    """Bytes of its own, and of pages of files, that a process has in memory."""
    try:
        lines = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
        own, mapped = (int(lines[name].split()[0]) << 10 for name in ("RssAnon", "RssFile"))
    except (OSError, KeyError):  # it has ended
        return 0, 0
    return own, mapped


if __name__ == "__main__":
    main()
