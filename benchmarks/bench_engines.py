"""The stage `signals` (text, image, clip lite) on one set of pictures, by the engines of this machine: wall time, the
CPU time of this process and all below it, and how much of both cores that is.

Use: bench_engines.py [PICTURES [ENGINE …]]; engines: direct-1 direct-2 dask-2 prism-2 start
"""

import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil

from vlmdata import ingest
from vlmdata.dataset import Dataset, Table
from vlmdata.pipelines import download, signals
from vlmdata.pipelines.runner import engine, run_parts
from vlmdata.plan import Plan, make_plan
from vlmdata.recipe import Recipe, Runner

PRISM = Path(__file__).resolve().parents[1] / ".cache/engines/bin/prism"  # what `make test-engines` builds
ENGINES: dict[str, dict[str, Any]] = {
    "direct-1": {"workers": 1},
    "direct-2": {"workers": 2},
    "dask-2": {"kind": "dask", "workers": 2},
    "prism-2": {"kind": "prism", "workers": 2, "options": {"prism_location": str(PRISM)}},
}


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 1500
    names = sys.argv[2:] or [*ENGINES, "start"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plan, dataset, tables = downloaded(folder, count)
        for engine_name in names:
            if engine_name == "start":
                starts(dataset)
                continue
            with engine(Runner.model_validate(ENGINES[engine_name])) as runner:
                on = make_plan(plan.recipe.model_copy(update={"runner": runner}))
                signals.run(on, dataset, _first(tables, 2))  # models are loaded and workers have imported
                for table in on.signal_tables:
                    dataset.remove(f"tables/{table}")
                with measured(engine_name, count):
                    signals.run(on, dataset, tables)
            for table in on.signal_tables:
                dataset.remove(f"tables/{table}")


def starts(dataset: Dataset) -> None:
    """Seconds that a pipeline of 16 parts without work takes, the second one of its kind."""
    for name, options in ENGINES.items():
        with engine(Runner.model_validate(options)) as runner:
            run_parts(dataset, "nothing", abs, list(range(16)), runner)
            started = time.monotonic()
            run_parts(dataset, "nothing", abs, list(range(16)), runner)
            print(f"{name:<9} {time.monotonic() - started:6.2f} s a pipeline without work", flush=True)


def downloaded(folder: Path, count: int) -> tuple[Plan, Dataset, dict[str, Table]]:
    """Pictures of 341 x 256 pixels in parts of 100."""
    draw = np.random.default_rng(0)
    (folder / "photos").mkdir()
    for number in range(count):
        small = draw.integers(0, 255, (12, 16, 3), dtype=np.uint8)
        cv2.imwrite(str(folder / f"photos/{number:05d}.jpg"), cv2.resize(small, (341, 256)))
        (folder / f"photos/{number:05d}.txt").write_text(f"a photo of the thing with number {number} in the park")
    recipe = Recipe.model_validate(
        {
            "dataset": str(folder / "data"),
            "sources": [{"kind": "folder", "name": "photos", "path": str(folder / "photos")}],
            "signals": ["text", "image", {"kind": "clip", "model": "lite"}],
            "parts": {"rows": 100},
        }
    )
    plan, dataset = make_plan(recipe), Dataset(recipe.dataset)
    found = [ingest.read_source(dataset, source, plan.found[source.name]) for source in recipe.sources]
    pairs = ingest.unite(dataset, found, plan.pairs, 100, None)
    return plan, dataset, {"pairs": pairs, "images": download.run(plan, dataset, pairs)}


def _first(tables: dict[str, Table], parts: int) -> dict[str, Table]:
    return {name: Table(name, table.key, table.parts[:parts]) for name, table in tables.items()}


@contextmanager
def measured(name: str, count: int) -> Iterator[None]:
    """Prints what passes in the block. `idle`: the share of the cores that nobody used, other processes neither."""
    own, all_cores, started = _cpu(), psutil.cpu_times(), time.monotonic()
    yield
    wall, now = time.monotonic() - started, psutil.cpu_times()
    cpu, cores = _cpu() - own, 2 * wall
    idle = (now.idle - all_cores.idle + now.iowait - all_cores.iowait) / cores
    print(
        f"{name:<9} {wall:6.1f} s, {cpu:6.1f} CPU-s, {count / wall:5.1f} pictures/s, {cpu / cores:.2f} of both cores, "
        f"{idle:.2f} idle, {cpu / (cpu + idle * cores):.2f} of what others left; load {os.getloadavg()[0]:.1f}",
        flush=True,
    )


def _cpu() -> float:
    """CPU-seconds of this process and those below it."""
    every = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in every)


if __name__ == "__main__":
    main()
