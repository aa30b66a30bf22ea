"""An MDS folder is read by MosaicML's streaming itself."""

from collections import Counter

from made_dataset import pair, picture, publish
from peer import PEERS

from vlmdata.export import export


def test_streaming_reads_the_folder(tmp_path):
    import streaming

    assert streaming.__file__.startswith(str(PEERS))
    changes = {
        "signals": ["text"],
        "dedup": [],
        "select": {"sample": {"count": 20, "replacement": True}},
        "shards": {"samples": 6, "splits": {"train": 0.6, "test": 0.4}},
        "jobs": [],
    }
    dataset, manifest = publish(tmp_path, [pair(f"a house number {n}", picture(n)) for n in range(12)], changes)
    out = export(dataset, manifest, "mds", str(tmp_path / "out"))
    found = Counter()
    for split, count in manifest["splits"].items():
        loaded = streaming.LocalDataset(f"{out}/{split}")
        assert len(loaded) == count
        for row in (loaded[n] for n in range(count)):
            assert row["jpg"][:2] == b"\xff\xd8"
            assert row["json"]["captions"] == [row["txt"]]
            found[row["json"]["uid"]] += 1
    samples = [row for part in manifest["samples"] for row in dataset.read_part(part["path"]).to_pylist()]
    assert found == Counter({row["uid"]: row["copies"] for row in samples if row["copies"]})
