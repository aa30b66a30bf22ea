"""`vlmdata forget`: seconds to find what one uid means among made-up pairs, whose rows are in `pairs` and in `images`.

python benchmarks/bench_forget.py [--rows 1000000] [--keep FOLDER]
Parts of 10,000 rows, 50,000 hosts, every tenth URL under two captions, every hundredth image twice. Best of three, on
the wall and of CPU; nothing is written.
"""

import argparse
import hashlib
import json
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from vlmdata.dataset import Dataset
from vlmdata.forget import meant
from vlmdata.forget.request import request
from vlmdata.parts import Table, part_name
from vlmdata.schemas import table_schema

PART = 10_000
HOSTS = 50_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--keep", help="make the dataset here and leave it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        dataset = Dataset(arguments.keep or folder)
        if not Path(dataset.path("tables")).exists():
            make(dataset, arguments.rows)
        print(json.dumps(measure(dataset, uid_of(arguments.rows // 2)), indent=1))


def measure(dataset: Dataset, uid: str) -> dict[str, object]:
    """What one uid means, with the best of three times."""
    times = []
    for _ in range(3):
        wall, cpu = time.perf_counter(), time.process_time()
        found = meant(dataset, request([("uid", uid)]))
        times.append((time.perf_counter() - wall, time.process_time() - cpu))
    return {"found": found, "wall_s": min(times)[0], "cpu_s": min(cpu for _, cpu in times)}


def make(dataset: Dataset, rows: int) -> None:
    """Write the tables `pairs` and `images`."""
    tables: dict[str, list] = {"pairs": [], "images": []}
    for number, start in enumerate(range(0, rows, PART)):
        places = np.arange(start, min(start + PART, rows))
        for table, columns in (("pairs", _pairs(places)), ("images", _images(places))):
            schema = table_schema(table)
            nothing = {name: pa.nulls(len(places), schema.field(name).type) for name in schema.names}
            content = pa.table(nothing | columns).select(schema.names).cast(schema)
            tables[table].append(dataset.write_part(table, "made", part_name(number), content, {}))
    for table, parts in tables.items():
        dataset.write_table(Table(table, "made", tuple(parts)))


def uid_of(place: int) -> str:
    return hashlib.blake2b(b"%d" % place, digest_size=16).hexdigest()


def _pairs(places: np.ndarray) -> dict[str, pa.Array]:
    named = [place - (place % 10 == 1) for place in places.tolist()]
    urls = [f"https://www.host{place % HOSTS}.example.org/images/2024/{place:09d}.jpg?w=640" for place in named]
    captions = [f"a picture of the thing with number {place} as it stands in the park" for place in places.tolist()]
    pages = [f"https://www.host{place % HOSTS}.example.org/page/{place // 7}.html" for place in named]
    return {
        "uid": pa.array(map(uid_of, places.tolist())),
        "url": pa.array(urls),
        "caption": pa.array(captions),
        "captions": pa.array([[caption] for caption in captions]),
        "page_url": pa.array(pages),
    }


def _images(places: np.ndarray) -> dict[str, pa.Array]:
    seen = [hashlib.sha256(b"%d" % (place - (place % 100 == 50) * 50)).hexdigest() for place in places.tolist()]
    return {
        "uid": pa.array(map(uid_of, places.tolist())),
        "download_status": pa.array(["success"] * len(places)),
        "sha256": pa.array(seen),
        "stored_key": pa.array(map(uid_of, places.tolist())),
    }


if __name__ == "__main__":
    main()
