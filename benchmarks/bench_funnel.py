"""`vlmdata funnel`: seconds from a changed threshold to its funnel, on a snapshot of 5 million made-up pairs.

python benchmarks/bench_funnel.py [--rows 5000000] [--keep FOLDER]
The samples are in parts of 10,000 rows with all columns that text, language, image and clip give; 15 % of the pairs
are in duplicate groups of 2 to 6; most captions, scores and sizes differ. Best of three, in a process that has imported
what it needs, and the whole command once.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from vlmdata.dataset import Dataset, part_name
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
        print(f"| change | kept of {arguments.rows:,} | seconds |\n|---|---|---|")
        for name, settings in CHANGES.items():
            seconds = []
            for _ in range(3):
                start = time.perf_counter()
                _, steps, _ = reconsider(dataset, settings)
                seconds.append(time.perf_counter() - start)
            print(f"| {name} | {steps[-1]['left']:,} | {min(seconds):.2f} |", flush=True)
        start = time.perf_counter()
        setting = ["--set", CHANGES["the last rule"][0]]
        command = [sys.executable, "-m", "vlmdata.cli", "funnel", dataset.url, *setting]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        print(f"| the whole command, the last rule | | {time.perf_counter() - start:.2f} |")


def make(dataset: Dataset, rows: int) -> None:
    """A snapshot with what `funnel` reads: samples, duplicates, recipe."""
    draw = np.random.default_rng(0)
    samples, groups, counts = [], [], {}
    for number in range(rows // PART):
        table = part(draw, number)
        samples.append(dataset.write_part("samples", "1", f"part-{number:07d}", table, {}))
        for reason, count in zip(*np.unique(table["reason"].fill_null("").to_numpy(), return_counts=True), strict=True):
            counts[reason or None] = counts.get(reason or None, 0) + int(count)
        groups.append(dataset.write_part("duplicates", "d", part_name(number), duplicates(draw, table["uid"]), {}))
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
            "tables": {"duplicates": {"parts": [{"path": part.path} for part in groups]}},
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


def duplicates(draw: np.random.Generator, uid: pa.ChunkedArray) -> pa.Table:
    """Groups over 15 % of a part's pairs."""
    chosen = draw.permutation(PART)[: PART * 15 // 100]
    group = np.sort(draw.integers(0, len(chosen) // 3, len(chosen)))
    names = uid.to_numpy(zero_copy_only=False)
    return pa.table(
        {
            "uid": names[chosen],
            "dup_method": ["exact"] * len(chosen),
            "dup_group": names[chosen[group]],
            "similarity": np.ones(len(chosen), np.float32),
        }
    )


if __name__ == "__main__":
    main()
