"""`vlmdata funnel`: seconds from a changed threshold to its funnel, on a snapshot of 5 million made-up pairs.

python benchmarks/bench_funnel.py [--rows 5000000] [--keep FOLDER]
The samples are in parts of 10,000 rows with all columns that text, language, image and clip give; 15 % of the pairs
are in duplicate groups, mostly of 2 to 6; most captions, scores and sizes differ. Best of three, on the
wall and of CPU, in a process that has imported what it needs, and the whole command.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

from vlmdata.catalog import parquet_sql
from vlmdata.dataset import Dataset
from vlmdata.dedup import groups
from vlmdata.parts import part_name
from vlmdata.recipe import ExactDedup
from vlmdata.rules import Expression, Order
from vlmdata.select import Choice
from vlmdata.select.duplicates import rank, write
from vlmdata.select.funnel import funnel as funnel_of
from vlmdata.select.reconsider import reconsider

PART = 10_000
RULES = {
    "size": "least(original_width, original_height) >= 200",
    "words": "words between 3 and 200 and chars > 5",
    "english": "lang = 'en'",
    "clip": "clip_score > 0.28",
}
CHANGES = {
    "no change": [],
    "the last rule": ["select.rules.clip=clip_score > 0.3"],
    "all rules": ["select.rules.size=least(original_width, original_height) >= 256", "select.rules.words=words > 4"],
    "looser: twice the pairs": ["select.rules.clip=clip_score > 0.2"],
    "and the top 30 %": ["select.rules.clip=clip_score > 0.2", "select.top={by: clip_score, fraction: 0.3}"],
    "and the top 30 % of the pool": [
        "select.rules.clip=clip_score > -1",
        "select.top={by: clip_score, fraction: 0.3, of: pool}",
    ],
    "datacomp-clip, 30 %": ["select.rules={}", "select.preset=[{kind: datacomp-clip, fraction: 0.3}]"],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=5_000_000)
    parser.add_argument("--keep", help="make the dataset here and leave it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dataset = Dataset(arguments.keep or folder)
        if dataset.latest() is None:
            make(dataset, arguments.rows)
        print(f"| change | kept of {arguments.rows:,} | seconds | of CPU |\n|---|---|---|---|")
        for name, settings in CHANGES.items():
            kept = reconsider(dataset, settings)[1][-1]["left"]
            print(f"| {name} | {kept:,} | {best(reconsider, dataset, settings)} |", flush=True)
        for name, settings in CHANGES.items():
            command = [sys.executable, "-m", "vlmdata.cli", "funnel", dataset.url]
            command += [word for setting in settings for word in ("--set", setting)]
            print(f"| the whole command, {name} | | {best(subprocess.check_output, command)} |", flush=True)


def best(work: Callable[..., object], *arguments: object) -> str:
    """Of three, seconds on the wall, and of CPU in this process and the ones that it waited for."""
    seconds = []
    for _ in range(3):
        start, before = time.perf_counter(), os.times()
        work(*arguments)
        seconds.append((time.perf_counter() - start, sum(os.times()[:4]) - sum(before[:4])))
    wall, cpu = map(min, zip(*seconds, strict=True))
    return f"{wall:.2f} | {cpu:.2f}"


def make(dataset: Dataset, rows: int) -> None:
    """A snapshot with what `funnel` reads: samples, duplicates, recipe."""
    draw = np.random.default_rng(0)
    samples, uids, counts = [], [], {}
    for number in range(rows // PART):
        table = part(draw, number)
        samples.append(dataset.write_part("samples", "1", f"part-{number:07d}", table, {}))
        for reason, count in zip(*np.unique(table["reason"].fill_null("").to_numpy(), return_counts=True), strict=True):
            counts[reason or None] = counts.get(reason or None, 0) + int(count)
        uids.append(np.asarray(table["uid"]).astype("S32"))
    found = dataset.write_part("duplicates", "d", part_name(0), duplicates(draw, np.concatenate(uids)), {})
    columns = [name for name in table.column_names if name not in ("kept", "reason")]
    recipe = {
        "sources": [{"kind": "table", "path": "list.csv"}],
        "signals": ["text", "language", "image", "clip"],
        "dedup": ["exact"],
        "select": {"rules": RULES},
    }
    path = Path(__file__)
    choice = type("Choice", (), {"rules": RULES, "methods": ("exact",), "top": None, "balanced": False, "sample": None})
    entry = [{"path": part.path} for part in samples]
    dataset.publish(
        {
            "number": 1,
            "about": path.name,
            "recipe": recipe,
            "columns": dict.fromkeys(columns, ""),
            "samples": entry,
            "tables": {"duplicates": {"parts": [asdict(found)]}},
            "grouped": grouped(dataset, entry, asdict(found)),
            "funnel": funnel_of(counts, choice),
        }
    )


def part(draw: np.random.Generator, number: int) -> pa.Table:
    """The samples of one part, judged by the rules in NumPy."""
    digits = draw.bytes(16 * PART).hex()
    uid = [digits[start : start + 32] for start in range(0, 32 * PART, 32)]
    width, height = (np.exp(draw.normal(6.3, 0.7, PART)).astype(np.int32) + 16 for _ in range(2))
    words = draw.poisson(8, PART).astype(np.int32)
    lang = draw.choice(["en", "de", "fr", "ru", "ja", "es"], PART, p=[0.5, 0.1, 0.1, 0.1, 0.1, 0.1])
    score = draw.normal(0.24, 0.06, PART).astype(np.float32)
    failed = draw.random(PART) < 0.1
    reason = np.full(PART, None, object)
    passes = [np.minimum(width, height) >= 200, words >= 3, lang == "en", score > np.float32(0.28)]
    for name, passed in reversed(list(zip(RULES, passes, strict=True))):
        reason[~passed] = name
    reason[failed] = "download: 4xx"
    captions = [f"a made-up caption of pair {number} {place} {uid[place]}" for place in range(PART)]
    columns = {
        "uid": uid,
        "url": [f"https://h{place % 997}.example/{uid[place]}.jpg" for place in range(PART)],
        "caption": captions,
        "source": ["web"] * PART,
        "download_status": np.where(failed, "4xx", "success"),
        "sha256": [digits[place : place + 64] for place in range(PART)],
        "original_width": width,
        "original_height": height,
        "chars": words * 6,
        "words": words,
        "profanity": draw.random(PART).astype(np.float32),
        "lang": lang,
        "lang_score": draw.random(PART).astype(np.float32),
        "aspect_ratio": (np.maximum(width, height) / np.minimum(width, height)).astype(np.float32),
        "phash": draw.integers(0, 2**64, PART, np.uint64),
        "entropy": draw.normal(6, 1, PART).astype(np.float32),
        "clip_score": score,
        "kept": pa.array([each is None for each in reason]),
        "reason": pa.array(reason, pa.string()),
    }
    return pa.table(columns)


def duplicates(draw: np.random.Generator, uid: np.ndarray) -> pa.Table:
    """Groups over 15 % of all pairs, wherever they stand: 16 % have a digest that a few may share."""
    chosen = uid[draw.permutation(len(uid))[: len(uid) * 16 // 100]]
    digest = draw.integers(0, len(chosen) // 3, len(chosen)).astype("S64")
    return groups(ExactDedup(kind="exact"), chosen, {"sha256": digest})


def grouped(dataset: Dataset, samples: list[dict], found: dict) -> dict:
    """The file of the groups' members that a run writes, in the default order."""
    with duckdb.connect() as connection, dataset.spool() as folder:
        for name, parts in (("samples", samples), ("duplicates", [found])):
            read = parquet_sql(dataset, [part["path"] for part in parts])
            connection.execute(f"CREATE VIEW {name} AS SELECT * FROM {read}")
        connection.execute(
            "CREATE TABLE verdict AS SELECT row_number() OVER () AS place, uid, "
            "original_width * original_height AS term_0, length(caption) AS term_1 FROM samples"
        )
        larger = Order(Expression("", ()), "desc")
        rank(connection, Choice({}, frozenset(), ("exact",), (larger, larger)))
        write(connection, [PART] * len(samples), folder / "grouped.parquet")
        return asdict(dataset.commit(folder / "grouped.parquet", "snapshots/000001/grouped.parquet"))


if __name__ == "__main__":
    main()
