"""Small snapshots without a run: samples, a table of pairs, and a shard of a few bytes each."""

from dataclasses import asdict

import pyarrow as pa

from vlmdata.dataset import Dataset
from vlmdata.parts import Table, part_name
from vlmdata.schemas import table_schema

SAMPLES = pa.schema(
    [("uid", pa.string()), ("caption", pa.string()), ("kept", pa.bool_()), ("reason", pa.string()),
     ("lang", pa.string()), ("clip_score", pa.float32())]
)  # fmt: skip


def samples(rows):
    """Rows of (uid, reason) or (uid, reason, lang, clip_score)."""
    full = [(*row, "en", 0.5) if len(row) == 2 else row for row in rows]
    return pa.Table.from_pylist(
        [
            {"uid": u, "caption": f"caption of {u}", "kept": r is None, "reason": r, "lang": lang, "clip_score": score}
            for u, r, lang, score in full
        ],
        SAMPLES,
    )


def publish(dataset: Dataset, rows, key="pairs", parent=None):
    """Publish the next snapshot: `rows` in a part of its own, and with a parent its parts and shards before that."""
    numbers = dataset.numbers()
    number = numbers[-1] + 1 if numbers else 1
    layer = number if parent else 1
    pairs = pa.Table.from_pylist([{"uid": row[0]} for row in rows], table_schema("pairs"))
    old = dataset.read_table("pairs", key) if parent else None
    part = dataset.write_part("pairs", key, part_name(0, layer), pairs, {})
    table = Table("pairs", key, (*(old.parts if old else ()), part))
    dataset.write_table(table)
    written = dataset.write_part("samples", str(number), f"part-{number:07d}", samples(rows), {})
    shard = dataset.write_bytes(f"snapshots/{number:06d}/shards/train-{number:07d}.tar", b"shard %d" % number)
    kept, pairs_in_all = sum(row[1] is None for row in rows), len(rows)
    if parent:
        kept, pairs_in_all = kept + parent["funnel"][-1]["left"], pairs_in_all + parent["funnel"][0]["left"]
    manifest = {
        "number": number,
        "parent": number - 1 or None,
        "created": "2026-11-26T10:00:00+00:00",
        "tables": {"pairs": {"key": key, "rows": table.rows, "parts": [asdict(part) for part in table.parts]}},
        "samples": [*(parent["samples"] if parent else []), asdict(written)],
        "shards": [*(parent["shards"] if parent else []), asdict(shard)],
        "documents": [],
        "funnel": [{"reason": None, "left": pairs_in_all}, {"reason": "words", "left": kept}],
    }
    dataset.publish(manifest)
    dataset.write_bytes(f"snapshots/{number:06d}/report.html", b"report")
    return manifest
