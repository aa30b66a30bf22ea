"""Ingest of 10 thousand to a million rows by the whole command: CPU time a row, and peak memory.

python benchmarks/bench_scale.py [--rows 10000 100000 1000000]

A list in Parquet with a URL, a caption and a score that is kept as a signal; every tenth pair stands in it twice.
Imports and the start of Prefect are apart: a run of 1,000 rows is taken off. How grouping, balancing and funnel grow
is what bench_dedup.py, bench_balance.py and bench_funnel.py measure.
"""

import argparse
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import yaml

LEAST = 1000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 100_000, 1_000_000])
    base, _ = ingest(LEAST)
    print("| rows | CPU seconds | microseconds a row | peak memory |\n|---|---|---|---|")
    for rows in parser.parse_args().rows:
        seconds, peak = ingest(rows)
        each = (seconds - base) / (rows - LEAST) * 1e6
        print(f"| {rows:,} | {seconds - base:.1f} | {each:.0f} | {peak / 1e6:.0f} MB |", flush=True)


def ingest(rows: int) -> tuple[float, float]:
    """CPU seconds of the command and what it started, and the peak of its resident memory in bytes."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        numbers = np.where(np.arange(rows) % 10 == 9, np.arange(rows) - 1, np.arange(rows))
        table = pa.table(
            {
                "URL": [f"https://host{n % 997}.example/pictures/{n}.jpg" for n in numbers.tolist()],
                "TEXT": [f"a photo of thing number {n} on a table in the garden" for n in numbers.tolist()],
                "score": (numbers % 1000) / 1000,
            }
        )
        pq.write_table(table, folder / "list.parquet")
        source = {"kind": "table", "name": "list", "path": "list.parquet", "url": "URL", "caption": "TEXT"}
        recipe = {"dataset": "runs/it", "sources": [source | {"keep": ["score"]}], "select": {"rules": {}}}
        (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe))
        command = [sys.executable, "-m", "vlmdata.cli", "run", "recipe.yaml", "--stages", "ingest"]
        run = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
        assert run.stderr is not None
        told = run.stderr.read()
        _, status, usage = os.wait4(run.pid, 0)
        if status:
            raise SystemExit(told)
        return usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024


if __name__ == "__main__":
    main()
