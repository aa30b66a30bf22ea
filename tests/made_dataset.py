"""A small published dataset whose pairs and images are written by hand; everything after them is done by the stages."""

import hashlib
import io
import json
import tarfile

import cv2
import numpy as np
import pyarrow as pa

from vlmdata import card, snapshot
from vlmdata.catalog import append
from vlmdata.dataset import Dataset
from vlmdata.parts import Table, part_name
from vlmdata.pipelines import dedup, select, shards, signals
from vlmdata.plan import GROUPED, make_plan
from vlmdata.recipe import Recipe
from vlmdata.schemas import table_schema

RECIPE = {
    "signals": ["text", "language", "image"],
    "dedup": ["exact", {"kind": "perceptual", "distance": 4}],
    "select": {
        "rules": {
            "size": "least(original_width, original_height) >= 48",
            "words": "words between 4 and 5000 and chars >= 2",
            "english": "lang = 'en'",
            "busy": "entropy > 0.5",
        }
    },
    "shards": {"samples": 10, "splits": {"train": 0.7, "test": 0.3}},
    "jobs": [{"kind": "train", "steps": 20, "batch": 4}],
}


def picture(seed, width=96, height=64):
    """A JPEG that looks like no other seed's."""
    random = np.random.default_rng(seed)
    small = random.integers(0, 256, (6, 6, 3), np.uint8)
    return cv2.imencode(".jpg", cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC))[1].tobytes()


def pair(caption, image=None, **more):
    """A pair as `publish` takes it: `image` is a JPEG, and `more` goes into the columns of pairs and images."""
    return {"caption": caption, "image": image, **more}


def pairs():
    """Pairs of every kind of end: kept, rejected by each rule, refused, failed, and duplicates."""
    made = [pair(f"a photograph of the house number {n} in the street", picture(n)) for n in range(14)]
    made += [
        pair("another photograph of that same first house", picture(0)),
        pair("a third photograph of it", picture(0)),
    ]
    made += [pair("the picture is much too small for this", picture(50, 40, 40))]
    made += [pair("ein Bild von einem Haus in der Stadt und nichts anderes", picture(n)) for n in range(60, 63)]
    made += [pair("only three words", picture(70)), pair("four words are enough", picture(71))]
    made += [pair("a grey wall and nothing else at all", picture_of(np.full((64, 64, 3), 128, np.uint8)))]
    made += [
        pair("a file that is not there", download_status="4xx", error="404 <Not Found> & gone"),
        pair("a slow host", download_status="timeout", error="no answer in 10 s"),
        pair("a page that said no", download_status="noai", page_consent={"noai": "deny", "robots": "allow"}),
        pair("a host that said no", download_status="tdm", consent={"tdm": "deny"}),
    ]
    return made


def picture_of(pixels):
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def publish(folder, made, changes=None, part_rows=20):
    """Publish a snapshot of these pairs in `folder`; returns the dataset and the manifest."""
    (folder / "list.csv").write_text("url,caption\nhttp://example.org/a.jpg,a\n")
    source = {"kind": "table", "name": "web", "path": str(folder / "list.csv")}
    recipe = Recipe.model_validate(
        {
            "dataset": str(folder / "data"),
            "sources": [source],
            "parts": {"rows": part_rows},
            **RECIPE,
            **(changes or {}),
        }
    )
    plan, dataset = make_plan(recipe), Dataset(recipe.dataset)
    rows = sorted((_row(place, entry) for place, entry in enumerate(made)), key=lambda row: row["uid"])
    tables = _tables(plan, dataset, [rows[start : start + part_rows] for start in range(0, len(rows), part_rows)])
    tables |= signals.run(plan, dataset, tables)
    if plan.duplicates:
        dedup.run(plan, dataset, tables)
        tables |= {name: dataset.read_table(name, plan.tables[name]) for name in GROUPED if name in plan.tables}
    selection = select.run(plan, dataset, tables, 1)
    written = shards.run(plan, dataset, tables, selection, 1)
    documents = card.write_documents(dataset, snapshot.manifest(plan, 1, tables, selection.samples, written, []))
    manifest = snapshot.manifest(plan, 1, tables, selection.samples, written, documents)
    dataset.publish(manifest)
    return dataset, json.loads(json.dumps(manifest))


def record_training(dataset, losses):
    """Write what a training job leaves behind, and the time of two stages."""
    lines = [{"step": n + 1, "loss": loss, "samples_per_second": 100.0 + n} for n, loss in enumerate(losses)]
    lines += [{"step": step, "retrieval/image_to_text/R@10": step / 100} for step in (10, 20)]
    dataset.write_bytes("jobs/000001/train-x/metrics.jsonl", "".join(json.dumps(x) + "\n" for x in lines).encode())
    common = {"snapshot": 1, "key": None, "state": "done", "exit_code": 0, "output": None}
    append(
        dataset,
        "jobs",
        [
            {**common, "job": "download", "kind": "stage", "started_at": 0, "seconds": 3.5},
            {**common, "job": "signals", "kind": "stage", "started_at": 4000, "seconds": 75.0},
            {
                **common,
                "job": "train",
                "kind": "train",
                "started_at": 9000,
                "seconds": 30.0,
                "output": "jobs/000001/train-x",
            },
        ],
    )
    values = {"retrieval/image_to_text/R@10": 0.4, "retrieval/image_to_text/R@10/chance": 0.1, "retrieval/n": 100.0}
    append(
        dataset,
        "metrics",
        [{"snapshot": 1, "job": "train", "step": None, "name": name, "value": value} for name, value in values.items()],
    )


def _row(place, entry):
    url = entry.get("url", f"https://example.org/pictures/{place}.jpg")
    uid = hashlib.blake2b(f"{url}\0{entry['caption']}".encode(), digest_size=16).hexdigest()
    row = {"uid": uid, "url": url, "captions": [entry["caption"]], "source": "web", "occurrences": 1,
           "caption_from": "alt", "download_status": "success"}  # fmt: skip
    content = entry["image"]
    if content is not None:
        height, width = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR).shape[:2]
        row |= {"sha256": hashlib.sha256(content).hexdigest(), "mime": "image/jpeg", "received_bytes": len(content),
                "width": width, "height": height, "original_width": width, "original_height": height}  # fmt: skip
    return row | entry


def _tables(plan, dataset, parts):
    written = {"pairs": [], "images": []}
    for number, rows in enumerate(parts):
        name = part_name(number)
        with dataset.spool() as folder:
            with tarfile.open(folder / "images.tar", "w") as tar:
                for row in rows:
                    if row["image"] is not None:
                        member = tarfile.TarInfo(f"{row['uid']}.jpg")
                        member.size = len(row["image"])
                        tar.addfile(member, io.BytesIO(row["image"]))
            with tarfile.open(folder / "images.tar") as tar:
                places = {member.name: member.offset_data for member in tar}
            file = dataset.commit(folder / "images.tar", f"images/{plan.images}/{name}.tar")
        for row in rows:
            if row["image"] is not None:
                row |= {"stored_tar": file.path, "stored_key": row["uid"], "offset": places[f"{row['uid']}.jpg"],
                        "length": len(row["image"])}  # fmt: skip
        for table, also in (("pairs", ()), ("images", (file,))):
            schema = table_schema(table)
            chosen = [{column: row.get(column) for column in schema.names} for row in rows]
            key = getattr(plan, table)
            content = pa.Table.from_pylist(chosen, schema)
            written[table].append(dataset.write_part(table, key, name, content, {}, also))
    tables = {name: Table(name, getattr(plan, name), tuple(found)) for name, found in written.items()}
    for table in tables.values():
        dataset.write_table(table)
    return tables
