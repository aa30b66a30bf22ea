"""What no snapshot in force refers to is removed, and nothing else."""

import pytest
from made_snapshots import publish

from vlmdata import forget, gc, tags
from vlmdata.cli import keeping
from vlmdata.dataset import Dataset
from vlmdata.errors import InputError, RefusedError
from vlmdata.lock import lock
from vlmdata.parts import Table


@pytest.fixture
def dataset(tmp_path):
    return Dataset(str(tmp_path / "a dataset"))


def files(dataset):
    return {path[len(dataset.root) + 1 :] for path in dataset.fs.find(dataset.root)}


def collect(dataset, keep):
    with lock(dataset, "test"):
        found = gc.garbage(dataset, keep)
        gc.collect(dataset, found)
    return found


def test_what_the_newest_refers_to_stays_also_in_a_snapshot_that_goes(dataset):
    base = publish(dataset, [("a", None), ("b", "words")])
    publish(dataset, [("c", None)], parent=base)
    before = files(dataset)
    collect(dataset, keep=1)
    assert before - files(dataset) == {"snapshots/000001/manifest.json", "snapshots/000001/report.html"}
    latest = dataset.latest()
    assert all(dataset.exists(shard["path"]) for shard in latest["shards"])
    assert dataset.numbers() == [2]


def test_a_tag_keeps_a_snapshot_with_its_tables(dataset):
    for number in range(1, 5):
        publish(dataset, [("a", None)], key=f"key{number}")
    tags.tag(dataset, "paper", "2")
    found = gc.garbage(dataset, keep=1)
    assert (found.snapshots, found.stay) == ([1, 3], {2: "paper", 4: ""})
    collect(dataset, keep=1)
    left = files(dataset)
    assert {path.split("/")[2] for path in left if path.startswith("tables/")} == {"key2", "key4"}
    assert {path.split("/")[1] for path in left if path.startswith("snapshots/")} == {"000002", "000004"}
    with pytest.raises(InputError, match="has no snapshot 3 any more: `vlmdata gc` has removed it"):
        tags.number_of(dataset, "3")
    publish(dataset, [("a", None)], key="key5")
    assert dataset.numbers() == [2, 4, 5]
    assert gc.garbage(dataset, keep=2).files == {}


def test_what_is_not_a_snapshots_alone_stays_and_so_does_a_layer_that_waits(dataset):
    publish(dataset, [("a", None)])
    table = dataset.read_table("pairs", "pairs")
    waiting = dataset.write_part("pairs", "pairs", "000002-0000000", dataset.read_part(table.parts[0]), {})
    dataset.write_table(Table("pairs", "pairs", (*table.parts, waiting)))
    apart = ["tables/found/x/manifest.json", "tables/jobs/log/manifest.json", "tables/observations/x/manifest.json",
             "jobs/train/weights", "lock.json.other"]  # fmt: skip
    garbage = ["tables/text/old/000001-0000000.parquet", "images/old/000001-0000000.tar", "models/old/weights",
               "tables/pairs/pairs/000009-0000000.parquet", "snapshots/000001/shards/train-0000009.tar",
               "snapshots/000007/samples/part-0000000.parquet"]  # fmt: skip
    for path in apart + garbage:
        dataset.write_bytes(path, b"bytes")
    before = files(dataset)
    found = collect(dataset, keep=1)
    assert set(found.files) == set(garbage)
    assert found.bytes == 5 * len(garbage)
    assert before - files(dataset) - {"lock.json"} == set(garbage)
    assert dataset.numbers() == [1]


def test_listing_removes_nothing(dataset):
    publish(dataset, [("a", None)], key="one")
    publish(dataset, [("a", None)], key="two")
    before = files(dataset)
    lines = gc.lines(gc.garbage(dataset, keep=1))
    assert files(dataset) == before
    assert "goes:  snapshots 1" in lines
    assert any(line.startswith("goes:  tables/pairs/one: 2 files") for line in lines)


def test_nothing_is_listed_in_the_middle_of_a_forgetting_and_removing_finishes_it_first(dataset, monkeypatch):
    publish(dataset, [("a", None)])
    dataset.write_json("forgetting.json", {})
    with pytest.raises(RefusedError, match="a forgetting is not at its end"):
        keeping.gc(dataset.root)
    done = []
    monkeypatch.setattr(forget, "finish", lambda opened: done.append(opened.exists("lock.json")))
    keeping.gc(dataset.root, keep=1, yes=True)
    assert done == [True]
