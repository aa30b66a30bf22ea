"""The stage `signals` (text, image, clip lite) on one set of pictures, by the engines of this machine: wall time, the
CPU time of this process and all below it, and how much of both cores that is.

Use: bench_engines.py [PICTURES [ENGINE …]]; engines: direct-1 direct-2 dask-2 prism-2 start
"""

import os
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import psutil

from vlmdata import ingest
from vlmdata.dataset import Dataset
from vlmdata.parts import Table
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
    """Prints what passes in the block.

    wanted: the time in which our threads ran or waited for a core that others had, as a share of both cores: what they
    would use of an idle machine, at most. What is missing of 1 they waited for Python's lock, files or each other.
    """
    waits: dict[str, int] = {}
    ended = threading.Event()

    def sample() -> None:
        while True:
            waits.update(_waits())
            if ended.wait(0.5):
                return

    before = _waits()
    own, started = _cpu(), time.monotonic()
    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    yield
    wall, cpu = time.monotonic() - started, _cpu() - own
    ended.set()
    thread.join()
    waited = sum(value - before.get(task, 0) for task, value in waits.items()) / 1e9
    print(
        f"{name:<9} {wall:6.1f} s, {cpu:6.1f} CPU-s, {count / wall:4.1f} a second, {cpu / wall / 2:.2f} of both cores, "
        f"{min(1, (cpu + waited) / wall / 2):.2f} wanted; load {os.getloadavg()[0]:.1f}",
        flush=True,
    )


def _waits() -> dict[str, int]:
    """Nanoseconds that each thread of this process and those below it could have run but had no core."""
    found = {}
    for process in [psutil.Process(), *psutil.Process().children(recursive=True)]:
        for file in Path(f"/proc/{process.pid}/task").glob("*/schedstat"):
            with suppress(OSError):  # it has ended
                found[str(file)] = int(file.read_text().split()[1])
    return found


def _cpu() -> float:
    """CPU-seconds of this process and those below it."""
    every = [psutil.Process(), *psutil.Process().children(recursive=True)]
    return sum(sum(process.cpu_times()[:2]) for process in every)


if __name__ == "__main__":
    main()
