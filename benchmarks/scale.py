"""What 1 billion and 10 billion pairs would cost, stage by stage: the tables of docs/scale.md, by constants that were
measured (in the file named beside each) or, where it says so, assumed or taken from others.

Use: python benchmarks/scale.py [PAIRS …]
"""

import sys
from dataclasses import dataclass

# Assumed: what comes of a pair, and prices in US dollars. Put in your own.
STORED = 0.6  # share of the pairs whose image is downloaded
KEPT = 0.3  # share of the pairs that the selection keeps
RECEIVED, IMAGE = 150_000, 40_000  # bytes of an image as received, and as stored (shorter side 256, quality 95)
CPU_HOUR, GPU_HOUR, TERABYTE_MONTH = 0.04, 0.40, 23.0
PART = 10_000  # rows


@dataclass(frozen=True)
class Stage:
    """cpu, gpu: seconds a row. moved: bytes a row that are read and written. worker: peak memory of a worker, in MB.
    driver: bytes a row that are held in the run's own process. rows: share of the pairs. source: of the constants."""

    name: str
    cpu: float
    moved: float
    worker: float
    source: str
    rows: float = 1.0
    gpu: float = 0.0
    driver: float = 0.0


STAGES = [
    # 61,931 pairs a CPU-second; 30 MB of them uncompressed, a third of it compressed
    Stage("extract (WAT)", 1 / 61_931, 30e6 / 61_931 / 3 + 300, 171, "docs/sources.md"),
    Stage("download", 0.00248, RECEIVED + IMAGE, 795, "docs/download.md", rows=STORED),
    Stage("signals: text, pii, language", 0.0002, 400, 400, "docs/signals.md, vlmdata/plan.py"),
    Stage("signals: image", 0.006, IMAGE, 500, "docs/signals.md", rows=STORED),
    # 1,500 a second on an RTX 3080: clip-retrieval's README (ViT-B/32), not measured here; decoding for it is above
    Stage("signals: clip, ViT-B/32", 0.0005, 1_100, 3_000, "clip-retrieval's README", rows=STORED, gpu=1 / 1500),
    Stage("dedup: exact", 0.0000015, 200, 150, "benchmarks/bench_dedup.py", rows=STORED),
    # by workers; the driver holds the rows in groups, one in eight or ten, at 100 bytes
    Stage("dedup: perceptual", 19e-6, 12 * 41 + 400, 200, "docs/engines.md", rows=STORED, driver=13),
    # both grow with the rows (see `growth`), semantic beyond 8 million
    Stage("dedup: semantic", 0.000133, 1_100 * 8, 450, "docs/engines.md", rows=STORED, driver=10),
    Stage("select", 0.00002, 1_500, 2_500, "benchmarks/bench_scale.py"),
    Stage("shards", 0.0003, 4 * IMAGE, 1_300, "assumed", rows=KEPT),
]


def growth(stage: Stage, pairs: float) -> float:
    """How many times as much a row costs among so many pairs.

    Semantic: k-means has a million centroids' worth of rows at most, 32 a centroid, so partitions hold more rows.
    Perceptual: of three bands of 64 / 3 bits, one of which may differ, a row meets so many others, at some 30 ns each.
    """
    rows = pairs * stage.rows
    if stage.name == "dedup: semantic":
        return max(1.0, rows / ((1 << 20) / 32) / 256)
    if stage.name == "dedup: perceptual":
        return 1 + 30e-9 * 3 * 22 * rows / 2 ** (64 / 3) / stage.cpu
    return 1.0


def table(pairs: float) -> list[str]:
    lines = [
        f"**{pairs:,.0f} pairs**",
        "",
        "| stage | CPU-hours | GPU-hours | moved, TB | a worker, GB | the driver, GB | $ |",
        "|---|---|---|---|---|---|---|",
    ]
    whole = [0.0, 0.0, 0.0, 0.0]
    for stage in STAGES:
        rows = pairs * stage.rows
        cpu, gpu = rows * stage.cpu * growth(stage, pairs) / 3600, rows * stage.gpu / 3600
        moved, driver = rows * stage.moved / 1e12, rows * stage.driver / 1e9
        price = cpu * CPU_HOUR + gpu * GPU_HOUR
        figures = [cpu, gpu, moved, price]
        whole = [sum(both) for both in zip(whole, figures, strict=True)]
        lines.append(
            f"| {stage.name} | {cpu:,.0f} | {gpu:,.0f} | {moved:,.1f} | {stage.worker / 1000:.1f} | {driver:,.0f} "
            f"| {price:,.0f} |"
        )
    lines.append(f"| together | {whole[0]:,.0f} | {whole[1]:,.0f} | {whole[2]:,.1f} | | | {whole[3]:,.0f} |")
    stored = pairs * (STORED * IMAGE + KEPT * IMAGE) / 1e12
    opens = pairs / PART * max(1, pairs * KEPT * IMAGE / 1e9)
    lines += [
        "",
        f"Stored: {stored:,.0f} TB of images and shards, ${stored * TERABYTE_MONTH:,.0f} a month. Parts of "
        f"{PART:,} rows: {pairs / PART:,.0f}. Files opened by the shards' second pass: {opens:,.0f}.",
        "",
    ]
    return lines


if __name__ == "__main__":
    for asked in sys.argv[1:] or ["1e9", "1e10"]:
        print("\n".join(table(float(asked))))
