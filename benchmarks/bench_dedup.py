"""Grouping duplicates: seconds, and the peak memory at 10 times the rows, each measured in a process of its own.

python benchmarks/bench_dedup.py [--rows 50000] [--dim 64] [--methods exact perceptual semantic] [--package FOLDER]
--package: a folder with another version of vlmdata, for a comparison. The last column is a hash of what was written.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa

from vlmdata.dataset import Dataset, Table, part_name

PART = 10_000
TABLES = {"pairs": "p", "images": "i", "image": "m", "embeddings_clip": "e"}
GROUP = """
import hashlib, json, re, sys, threading, time
from pathlib import Path
from types import SimpleNamespace
from vlmdata.dataset import Dataset
from vlmdata.pipelines import dedup
from vlmdata.recipe import Recipe
folder, methods, keys = sys.argv[1], json.loads(sys.argv[2]), json.loads(sys.argv[3])
dataset = Dataset(folder)
source = {"kind": "table", "name": "web", "path": "list.csv"}
recipe = Recipe.model_validate({"dataset": folder, "sources": [source], "signals": ["clip"], "dedup": methods})
plan = SimpleNamespace(recipe=recipe, tables={"duplicates": "d"})
tables = {name: dataset.read_table(name, key) for name, key in keys.items()}
own, ended = [0], threading.Event()
def watch():
    while not ended.wait(0.02):
        said = Path("/proc/self/status").read_text()
        own[0] = max(own[0], int(re.search(r"RssAnon:\\s+(\\d+)", said)[1]))
threading.Thread(target=watch, daemon=True).start()
start = time.monotonic()
table = dedup.run(plan, dataset, tables)
seconds = time.monotonic() - start
ended.set()
whole = int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
print(json.dumps({"seconds": seconds, "own": own[0] / 1024, "whole": whole / 1024, "sha256": table.sha256[:16]}))
"""


def write(dataset: Dataset, rows: int, dim: int) -> None:
    """Made rows, of which one in ten has another's hashes and nearly its vector."""
    draw = np.random.default_rng(0)
    hashes = draw.integers(0, 2**63, rows, np.uint64)
    parts: dict[str, list[object]] = {name: [] for name in TABLES}
    for start in range(0, rows, PART):
        count = min(PART, rows - start)
        uid = pa.array([f"{start + n:032x}" for n in range(count)])
        vectors = draw.standard_normal((count, dim)).astype(np.float32)
        hashed = hashes[start : start + count].copy()
        twin = np.arange(0, count - 1, 10)
        hashed[twin] = hashed[twin + 1]
        vectors[twin] = vectors[twin + 1] + 1e-3
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
        vector = pa.FixedSizeListArray.from_arrays(pa.array(vectors.astype(np.float16).ravel()), dim)
        columns = {
            "pairs": {"uid": uid},
            "images": {"uid": uid, "sha256": pa.array([f"{value:064x}" for value in hashed])},
            "image": {"uid": uid, "phash": hashed, "entropy": pa.array(np.full(count, 7, np.float32))},
            "embeddings_clip": {"uid": uid, "vector": vector},
        }
        for name, values in columns.items():
            parts[name].append(dataset.write_part(name, TABLES[name], part_name(start // PART), pa.table(values), {}))
    for name, key in TABLES.items():
        dataset.write_table(Table(name, key, tuple(parts[name])))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--methods", nargs="+", default=["exact", "perceptual", "semantic"])
    parser.add_argument("--package", default="")
    given = parser.parse_args()
    environment = {**os.environ, **({"PYTHONPATH": given.package} if given.package else {})}
    print("method            rows   seconds  own memory MB  with mapped files MB  sha256")
    with tempfile.TemporaryDirectory() as folder:
        for rows in (given.rows, 10 * given.rows):
            place = Path(folder, str(rows))
            write(Dataset(str(place)), rows, given.dim)
            for method in given.methods:
                command = [sys.executable, "-c", GROUP, str(place), json.dumps([method]), json.dumps(TABLES)]
                run = subprocess.run(command, env=environment, capture_output=True, text=True)
                if run.returncode:
                    sys.exit(run.stderr)
                found = json.loads(run.stdout.splitlines()[-1])
                print(
                    f"{method:12} {rows:9,} {found['seconds']:9.1f} {found['own']:14.0f} {found['whole']:21.0f}"
                    f"  {found['sha256']}"
                )


if __name__ == "__main__":
    main()
