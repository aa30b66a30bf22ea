"""Write a snapshot's pairs as LLaVA reads them, then become another command.

    python llava.py OUT SHARD.parquet … -- COMMAND …

OUT/images/<uid>.jpg and OUT/train.json: a list of {id, image, conversations}, a question and the caption as its answer.
What is there already is kept, so that a retry only runs the command.
"""

import json
import os
import sys
from pathlib import Path

import pyarrow.parquet as pq

QUESTION = "<image>\nDescribe the image concisely."


def write(out: Path, shards: list[str]) -> None:
    """train.json comes last and in one step: where it is there, all is."""
    if (out / "train.json").exists():
        return
    (out / "images").mkdir(parents=True, exist_ok=True)
    entries = []
    for shard in shards:
        for batch in pq.ParquetFile(shard).iter_batches(256, columns=["uid", "jpg", "txt"]):
            for row in batch.to_pylist():
                image = f"{row['uid']}.jpg"
                (out / "images" / image).write_bytes(row["jpg"])
                turns = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": row["txt"]}]
                entries.append({"id": row["uid"], "image": image, "conversations": turns})
    aside = out / "train.json.partial"
    aside.write_text(json.dumps(entries, ensure_ascii=False), "utf-8")
    os.replace(aside, out / "train.json")


if __name__ == "__main__":
    place = sys.argv.index("--")
    write(Path(sys.argv[1]), sys.argv[2:place])
    command = sys.argv[place + 1 :]
    os.execvp(command[0], command)  # noqa: S606 - a list of arguments, which no shell sees
