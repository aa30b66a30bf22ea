"""Reading tables: rows a second, and the peak memory at 10 times the rows, each measured in a process of its own.

python benchmarks/bench_table.py [--rows 200000] [--forms parquet csv jsonl] [--package FOLDER]
--package: a folder with another version of vlmdata, for a comparison.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

BATCH = 50_000
READ = """
import json, re, sys, time
from pathlib import Path
from vlmdata import sources
from vlmdata.recipe import TableSource
source = TableSource.model_validate({"kind": "table", "path": sys.argv[1], "url": "URL", "caption": "TEXT"})
list(zip(range(1), sources.read(source, ".")))  # imports and first use apart
start, cpu, rows = time.monotonic(), time.process_time(), 0
for batch in sources.read(source, "."):
    rows += batch.num_rows
print(json.dumps({
    "rows": rows, "seconds": time.monotonic() - start, "cpu": time.process_time() - cpu,
    "peak": 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]),
}))
"""


def batches(rows: int) -> Iterator[pa.Table]:
    """A list as the web gives it: a third of the URLs with a query, a tenth signed; a quarter of the captions not
    ASCII, some with loose blanks and line ends."""
    draw = np.random.default_rng(0)
    words = np.array(["photo", "of", "the", "old", "house", "in", "a", "garden", "Straße", "山水画", "été", "blue"])
    for start in range(0, rows, BATCH):
        count = min(BATCH, rows - start)
        numbers = np.arange(start, start + count)
        tails = np.array(["", "", "", "", "", "", "?w=640&h=480", "?v=1479962684", "?id=7", "?X-Amz-Signature=5ecret"])
        tail = tails[draw.integers(0, len(tails), count)]
        urls = [
            f"https://images{n % 997}.example.org/2021/07/{n:012d}/picture.jpg{t}"
            for n, t in zip(numbers, tail, strict=True)
        ]
        chosen = words[draw.integers(0, len(words), (count, 9))]
        joints = np.array([" "] * 30 + ["  ", "\n"])[draw.integers(0, 32, count)]
        captions = [" ".join(row[:5]) + joint + " ".join(row[5:]) for row, joint in zip(chosen, joints, strict=True)]
        columns = {"URL": urls, "TEXT": captions, "WIDTH": draw.integers(100, 2000, count)}
        yield pa.table({**columns, "similarity": draw.random(count)})


def write(form: str, rows: int, path: Path) -> None:
    if form == "parquet":
        with pq.ParquetWriter(path, next(batches(1)).schema, compression="snappy") as writer:
            for table in batches(rows):
                writer.write_table(table, row_group_size=BATCH)
    elif form == "csv":
        with pacsv.CSVWriter(path, next(batches(1)).schema) as writer:
            for table in batches(rows):
                writer.write_table(table)
    else:
        with path.open("w", encoding="utf-8") as file:
            for table in batches(rows):
                file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in table.to_pylist())


def measure(path: Path, package: str | None) -> dict[str, float]:
    # VmHWM and not ru_maxrss, which a child inherits from the process that started it
    environment = {**os.environ, **({"PYTHONPATH": package} if package else {})}
    command = [sys.executable, "-c", READ, str(path)]
    answer = subprocess.run(
        command, env=environment, cwd=path.parent, check=True, capture_output=True, text=True, timeout=600
    )
    return json.loads(answer.stdout)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--forms", nargs="+", default=["parquet", "csv", "jsonl"])
    parser.add_argument("--package")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for form in options.forms:
            peaks = []
            for rows in (options.rows, 10 * options.rows):
                path = Path(folder) / f"pairs.{form}"
                write(form, rows, path)
                told = measure(path, options.package)
                path.unlink()
                assert told["rows"] == rows, told
                peaks.append(told["peak"])
                print(
                    f"{form:<8}{rows:>10,} rows  {told['rows'] / told['cpu']:>11,.0f} rows a CPU-second"
                    f"  {told['seconds']:>6.1f} s  peak {told['peak'] / 1e6:>6.0f} MB",
                    flush=True,
                )
            print(f"{form:<8}peak at 10 times the rows: {peaks[1] / peaks[0]:.3f} times")


if __name__ == "__main__":
    main()
