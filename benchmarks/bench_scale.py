"""10 thousand to a million rows through ingest, grouping, selection and funnel: CPU time a row, and peak memory.

python benchmarks/bench_scale.py [--rows 10000 100000 1000000] [--images 2000 20000] [--until funnel]

A list in Parquet has a URL, a caption and a score that is kept as a signal; every tenth pair stands in it twice.
Images, text, language and image signals are made up and ready; 15 % of the pairs are in groups of three, two of the
same bytes and one that is near. Funnel: all rules but one are changed. Images: JPEGs of 384 x 288 in local WebDataset
tars: read, stored, measured (text, image), selected and written as shards.

Each stage runs in a process of its own, first over 1,000 rows (100 images), so that all is imported, then over all,
which is measured. "Of those more": what a row costs that this count has more than the one before. Memory is this
process's, looked at every 10 ms: its own (anonymous), and what it was before; and pages of files that it has mapped,
which the system can take back.
"""

import argparse
import hashlib
import io
import json
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from vlmdata import ingest, snapshot
from vlmdata.catalog import GROUPED
from vlmdata.dataset import Dataset
from vlmdata.parts import Table
from vlmdata.plan import Plan, make_plan, tables_there
from vlmdata.recipe import Recipe
from vlmdata.schemas import conform, table_schema

STAGES = ("ingest", "dedup", "select", "funnel")
LEAST, FEWEST = 1000, 100  # rows, images
RULES = {
    "size": "least(original_width, original_height) >= 200",
    "words": "words between 3 and 200 and chars > 5",
    "english": "lang = 'en'",
    "sharp": "sharpness > 20",
}
CHANGED = ["size=least(original_width, original_height) >= 256", "words=words > 4", "sharp=sharpness > 10"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--images", type=int, nargs="*", default=[2_000, 20_000])
    parser.add_argument("--until", default="funnel", choices=STAGES, help="the last stage of rows that is measured")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        print(json.dumps(child(*given.child)))
        return
    print("| stage | rows | wall seconds | CPU seconds | CPU µs each | of those more | own memory | mapped files |")
    print("|---|---|---|---|---|---|---|---|")
    costs: dict[str, tuple[int, float]] = {}  # of the count before
    for rows in given.rows:
        with tempfile.TemporaryDirectory() as few, tempfile.TemporaryDirectory() as many:
            datasets = [listed(Path(few), LEAST), listed(Path(many), rows)]
            for stage in STAGES[: 1 + STAGES.index(given.until)]:
                if stage == "funnel":
                    for plan, dataset in datasets:
                        publish(plan, dataset)
                run(stage, few, many, rows, costs)
                if stage == "ingest":
                    for plan, dataset in datasets:
                        measure(plan, dataset)
    for count in given.images:
        with tempfile.TemporaryDirectory() as few, tempfile.TemporaryDirectory() as many:
            pictures(Path(few), FEWEST)
            pictures(Path(many), count)
            run("images", few, many, count, costs)


def run(stage: str, few: str, many: str, count: int, costs: dict[str, tuple[int, float]]) -> None:
    """Run a stage in a process of its own, and print what it costs."""
    command = [sys.executable, __file__, "--child", stage, few, many]
    ran = subprocess.run(command, cwd=many, capture_output=True, text=True)
    if ran.returncode:
        raise SystemExit(ran.stderr)
    cost = json.loads(ran.stdout.splitlines()[-1])
    before, cpu = costs.get(stage, (0, 0.0))
    more = f"{(cost['cpu'] - cpu) / (count - before) * 1e6:.1f}" if before else "-"
    print(
        f"| {stage} | {count:,} | {cost['wall']:.1f} | {cost['cpu']:.2f} | {cost['cpu'] / count * 1e6:.1f} | {more} "
        f"| {cost['own'] / 1e6:.0f} MB, {cost['before'] / 1e6:.0f} before | {cost['mapped'] / 1e6:.0f} MB |",
        flush=True,
    )
    costs[stage] = count, cost["cpu"]


def child(stage: str, few: str, many: str) -> dict[str, float]:
    """Seconds, and peaks in bytes: own memory (and what it was before), mapped files."""
    work(stage, few)
    before, _ = memory()
    with watched() as peaks:
        wall, cpu = time.monotonic(), time.process_time()
        work(stage, many)
        wall, cpu = time.monotonic() - wall, time.process_time() - cpu
    return {"wall": wall, "cpu": cpu, "own": peaks[0], "mapped": peaks[1], "before": before}


def work(stage: str, folder: str) -> None:
    """A stage, as the flow does it."""
    from vlmdata.pipelines import dedup, download, select, shards, signals
    from vlmdata.select.reconsider import reconsider

    recipe = Recipe.model_validate(yaml.safe_load(Path(folder, "recipe.yaml").read_text()))
    plan, dataset = make_plan(recipe), Dataset(recipe.dataset)
    tables = {
        name: table for name, table in tables_there(plan, dataset).items() if (stage, name) != ("dedup", GROUPED[0])
    }
    if stage in ("ingest", "images"):
        found = [ingest.read_source(dataset, source, plan.found[source.name]) for source in recipe.sources]
        tables = {"pairs": ingest.unite(dataset, found, plan.pairs, recipe.parts.rows, None, plan.brings)}
    if stage == "images":
        tables["images"] = download.run(plan, dataset, tables["pairs"])
        tables |= signals.run(plan, dataset, tables)
        shards.run(plan, dataset, tables, select.run(plan, dataset, tables, 1), 1)
    if stage == "dedup":
        dedup.run(plan, dataset, tables)
    if stage == "select":
        select.run(plan, dataset, tables, 1)
    if stage == "funnel":
        reconsider(dataset, [f"select.rules.{rule}" for rule in CHANGED])


@contextmanager
def watched() -> Iterator[list[int]]:
    """The peaks of `memory` in the block."""
    peaks, ended = [0, 0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.01):
            peaks[:] = map(max, peaks, memory())

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    yield peaks
    ended.set()
    thread.join()


def memory() -> tuple[int, int]:
    """Bytes of this process's own, and of pages of files, that are in memory."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    own, mapped = (int(lines[name].split()[0]) << 10 for name in ("RssAnon", "RssFile"))
    return own, mapped


def listed(folder: Path, rows: int) -> tuple[Plan, Dataset]:
    """A list of so many different pairs, and a recipe."""
    source = {"kind": "table", "name": "list", "path": str(folder / "list.parquet"), "url": "URL", "caption": "TEXT"}
    recipe = {
        "dataset": str(folder / "it"),
        "sources": [source | {"keep": ["score"]}],
        "signals": ["text", "language", "image"],
        "dedup": ["exact", "perceptual"],
        "select": {"rules": RULES},
    }
    numbers = np.concatenate([np.arange(rows), np.arange(0, rows, 10)])
    pairs = {
        "URL": [f"https://host{n % 997}.example/pictures/{n}.jpg" for n in numbers.tolist()],
        "TEXT": [f"a photo of thing number {n} on a table in the garden" for n in numbers.tolist()],
        "score": (numbers % 1000) / 1000,
    }
    pq.write_table(pa.table(pairs), folder / "list.parquet")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    return make_plan(Recipe.model_validate(recipe)), Dataset(str(folder / "it"))


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
    own = [hashlib.sha256(b"%d" % n).hexdigest() for n in numbers]
    group = [hashlib.sha256(b"%d" % (n - n % 20 if n % 20 < 3 else n)).hexdigest() for n in numbers]
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


def publish(plan: Plan, dataset: Dataset) -> None:
    """The snapshot of the first selection, without shards."""
    samples = dataset.read_table("samples", "1")
    assert samples is not None
    dataset.publish(snapshot.manifest(plan, 1, tables_there(plan, dataset), samples, [], []))


def pictures(folder: Path, count: int) -> None:
    """Tars of a thousand JPEGs, no two alike, with captions; and a recipe."""
    draw = np.random.default_rng(0)
    drawn = [cv2.resize(draw.integers(0, 256, (24, 32, 3), np.uint8), (384, 288)) for _ in range(300)]
    for start in range(0, count, 1000):
        with tarfile.open(folder / f"{start:07d}.tar", "w") as tar:
            for number in range(start, min(start + 1000, count)):
                moved = np.roll(drawn[number % 300], number // 300, (0, 1))
                for ending, content in (
                    ("jpg", cv2.imencode(".jpg", moved)[1].tobytes()),
                    ("txt", b"a photo of thing number %d on a table" % number),
                ):
                    member = tarfile.TarInfo(f"{number:07d}.{ending}")
                    member.size = len(content)
                    tar.addfile(member, io.BytesIO(content))
    recipe = {
        "dataset": str(folder / "it"),
        "sources": [{"kind": "webdataset", "path": str(folder / "*.tar")}],
        "signals": ["text", "image"],
        "select": {"rules": {"words": "words > 3", "size": "width >= 200"}},
    }
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))


if __name__ == "__main__":
    main()
