"""Grouping near-duplicates in one process and by workers: the clock, CPU time and memory, and whether they agree.

python benchmarks/bench_dedup_workers.py [--rows 100000] [--methods semantic perceptual] [--threads 2]

Rows are those of dedup_data.py, in parts of 10,000. Each run is a process of its own; the workers are threads in it, so
that its memory is that of driver and workers together. "More" is the anonymous memory at its peak, beyond what it held
before: mapped files are not in it. The groups must be the same bytes.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import dedup_data
import numpy as np

PART = 10_000
SIMILARITY, DISTANCE = 0.95, 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000])
    parser.add_argument("--methods", nargs="+", default=["semantic", "perceptual"], choices=["semantic", "perceptual"])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        method, how, folder, threads = given.child
        print(json.dumps(grouped(method, how, Path(folder), int(threads))))
        return
    if not dedup_data.MEASURED.exists():
        dedup_data.measure()
    for method in given.methods:
        for rows in given.rows:
            with tempfile.TemporaryDirectory() as folder:
                write(method, rows, Path(folder))
                outcomes = []
                for how in ("one process", "workers"):
                    threads = str(given.threads if how == "one process" else 1)
                    run = subprocess.run(
                        [sys.executable, __file__, "--child", method, how, folder, str(given.threads)],
                        env={**os.environ, "OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads},
                        stdout=subprocess.PIPE, text=True, check=True,
                    )  # fmt: skip
                    told = json.loads(run.stdout)
                    outcomes.append(told.pop("digests"))
                    print(f"{method} {rows:,} rows, {how}: " + ", ".join(f"{k} {v:,}" for k, v in told.items()))
                assert outcomes[0] == outcomes[1], "other bytes"


def write(method: str, rows: int, folder: Path) -> None:
    """The table that the method compares."""
    import pyarrow as pa

    from vlmdata.dataset import Dataset
    from vlmdata.parts import Table, part_name

    dataset = Dataset(str(folder / "it"))
    uids = np.random.default_rng(2).bytes(16 * rows).hex()
    uid = [uids[place : place + 32] for place in range(0, len(uids), 32)]
    if method == "semantic":
        dedup_data.embeddings(rows, folder / "rows.npy")
        vectors = np.load(folder / "rows.npy", mmap_mode="r")
    else:
        hashes, entropy = dedup_data.hashes(rows)
    parts = []
    for number, start in enumerate(range(0, rows, PART)):
        here = slice(start, start + PART)
        columns: dict[str, Any] = {"uid": pa.array(uid[here])}
        if method == "semantic":
            columns["vector"] = pa.FixedSizeListArray.from_arrays(pa.array(vectors[here].ravel()), vectors.shape[1])
        else:
            columns |= {"phash": hashes[here], "entropy": entropy[here].astype(np.float32)}
        parts.append(dataset.write_part(name(method), "k", part_name(number), pa.table(columns), {}))
    for table in (name(method), "pairs"):
        dataset.write_table(Table(table, "k", tuple(parts)))


def name(method: str) -> str:
    return "embeddings_clip" if method == "semantic" else "image"


def grouped(method: str, how: str, folder: Path, threads: int) -> dict[str, Any]:
    """One run of the stage, measured."""
    from types import SimpleNamespace

    from vlmdata.dataset import Dataset
    from vlmdata.dedup import perceptual
    from vlmdata.pipelines import dedup, hamming, joined, runner
    from vlmdata.recipe import PerceptualDedup, Runner, SemanticDedup

    dataset = Dataset(str(folder / "it"))
    tables = {table: dataset.read_table(table, "k") for table in (name(method), "pairs")}
    options: Any = SemanticDedup(kind="semantic", similarity=SIMILARITY)
    if method == "perceptual":
        options = PerceptualDedup(kind="perceptual", distance=DISTANCE)
    direct = Runner(workers=threads)
    asked = direct
    if how == "workers":
        dedup.IN_MEMORY = perceptual.BRUTE_FORCE = 0
        if method == "perceptual":  # which leaves the in-process runner to one process
            asked = Runner(kind="dask", workers=threads)
            shuffle = runner.shuffle
            hamming.shuffle = joined.shuffle = lambda *told: shuffle(*told[:-1], direct)
    plan: Any = SimpleNamespace(recipe=SimpleNamespace(dedup=[options], runner=asked), tables={"duplicates": "d"})
    runner.at_once(direct)  # Beam is imported
    before, peak, ended = anonymous(), [0], threading.Event()

    def watch() -> None:
        while not ended.wait(0.02):
            peak[0] = max(peak[0], anonymous())

    threading.Thread(target=watch, daemon=True).start()
    start, used = time.monotonic(), resource.getrusage(resource.RUSAGE_SELF)
    (part,) = dedup.run(plan, dataset, tables).parts
    seconds, after = time.monotonic() - start, resource.getrusage(resource.RUSAGE_SELF)
    ended.set()
    return {
        "seconds": round(seconds, 1),
        "CPU seconds": round(after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime, 1),
        "more MB": (peak[0] - before) >> 10,
        "rows in groups": part.rows,
        "digests": [part.sha256, *(file.sha256 for file in part.also)],
    }


def anonymous() -> int:
    """kB of this process."""
    status = Path("/proc/self/status").read_text()
    return int(status.partition("RssAnon:")[2].split()[0])


if __name__ == "__main__":
    main()
