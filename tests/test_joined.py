"""Groups joined on workers, from edges that stand in many files."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from vlmdata.dataset import Dataset
from vlmdata.dedup.components import Edges, unite
from vlmdata.pipelines import joined
from vlmdata.recipe import Runner


def chains(draw: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Edges of paths through n rows in no order, some hundred rows each, and a row that many of the first know."""
    way = draw.permutation(n)
    i, j = way[:-1], way[1:]
    kept = draw.random(n - 1) > 0.01
    hub = way[:100][draw.random(100) < 0.5]
    i, j = np.concatenate([i[kept], np.full(len(hub), way[0])]), np.concatenate([j[kept], hub])
    return np.minimum(i, j)[i != j], np.maximum(i, j)[i != j]


@pytest.mark.parametrize(("files", "buckets"), [(12, 5), (1, 1)])
def test_long_chains_over_many_files_are_one_group_each(tmp_path: Path, files: int, buckets: int) -> None:
    draw, n = np.random.default_rng(files), 600
    uids = np.array([hashlib.md5(b"%d" % row).hexdigest() for row in range(n)], "S32")
    i, j = chains(draw, n)
    similarity = draw.random(len(i)).astype(np.float32)
    label, best = unite(n, [Edges(i, j, similarity)])
    dataset = Dataset(str(tmp_path))
    of = draw.integers(0, files, len(i))
    paths = []
    for number in range(files):
        rows, places = np.unique(np.concatenate([i[of == number], j[of == number]]), return_inverse=True)
        one, two = np.split(places, 2)
        edges = Edges(np.minimum(one, two), np.maximum(one, two), similarity[of == number])
        written = joined.write(
            dataset, str(number), pa.table({"uid": joined.binary(uids[rows])}), iter([edges]), buckets
        )
        assert written.pairs is None
        paths.append(written.joined)
    joined.write_central(dataset, "all", uids, np.arange(n, dtype=np.float32), buckets)
    found = joined.groups(dataset, Runner(workers=2), "semantic", paths, buckets, [joined.central("all")])
    member = np.flatnonzero(np.bincount(label, minlength=n)[label] > 1)
    want = {
        uids[row].decode(): (min(uids[label == label[row]]).decode(), best[row], float(row)) for row in member.tolist()
    }
    columns = ("dup_group", "similarity", "centroid_similarity")
    rows = zip(*(found[name].to_pylist() for name in columns), strict=True)
    assert dict(zip(found["uid"].to_pylist(), rows, strict=True)) == want
    assert len({group for group, *_ in want.values()}) > 1
    order = list(zip(found["dup_group"].to_pylist(), found["uid"].to_pylist(), strict=True))
    assert order == sorted(order)
    assert not list(tmp_path.glob("work*/*"))


def test_of_no_edges_there_are_no_groups(tmp_path: Path) -> None:
    dataset = Dataset(str(tmp_path))
    assert not joined.groups(dataset, Runner(), "perceptual", [], 3).num_rows
    nothing = Edges(np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros(0, np.float32))
    written = joined.write(dataset, "0", pa.table({"uid": joined.binary(np.zeros(0, "S32"))}), iter([nothing]), 3)
    assert not joined.groups(dataset, Runner(), "perceptual", [written.joined], 3).num_rows
