"""What is exported is read by the readers that it is for, and holds every sample."""

import csv
import re
from collections import Counter

import numpy as np
import pytest
from conftest import here
from made_dataset import pair, picture, publish

from vlmdata import sources
from vlmdata.errors import DataError, InputError
from vlmdata.export import export
from vlmdata.recipe import TableSource

HOSTILE = 'a "house", in\nthe street; número 1 =HYPERLINK("x")'


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """Twelve pairs of a DataComp pool in 20 samples."""
    made = [pair(f"a house number {n}" if n else HOSTILE, picture(n), source_id=f"{n * 7919:x}".rjust(32, "f"[:1])
                 if n % 2 else f"{n:032x}") for n in range(12)]  # fmt: skip
    select = {"sample": {"count": 20, "replacement": True}, "rules": {"chars": "chars < 1000"}}
    shards = {"samples": 6, "splits": {"train": 0.6, "test": 0.4}}
    return publish(tmp_path_factory.mktemp("export"), made, {"signals": ["text"], "dedup": [], "select": select,
                                                             "shards": shards, "jobs": []}, part_rows=12)  # fmt: skip


@pytest.fixture(scope="module")
def samples(published):
    dataset, manifest = published
    return [row for part in manifest["samples"] for row in dataset.read_part(part["path"]).to_pylist()]


def test_a_datacomp_subset_is_what_its_resharder_reads(published, samples, tmp_path):
    out = export(*published, "datacomp", str(tmp_path / "subset.npy"))
    ids = np.load(out, allow_pickle=False)
    assert ids.dtype == np.dtype("u8,u8")
    assert ids.shape == (20,)
    assert np.array_equal(ids, np.sort(ids))
    # how the resharder asks: as often as the id stands there, the sample is written
    for row in samples:
        key = np.array([divmod(int(row["source_id"], 16), 2**64)], ids.dtype)[0]
        assert np.searchsorted(ids, key, "right") - np.searchsorted(ids, key, "left") == row["copies"]
    assert np.load(out, mmap_mode="r").dtype == ids.dtype


def test_pairs_of_other_sources_are_refused_with_their_count(tmp_path):
    made = [pair("a house", picture(0), source_id="0" * 32), pair("a horse", picture(1), source_id="17")]
    made += [pair("a cat", picture(2)), pair("a dog", picture(3), source_id="g" * 32)]
    dataset, manifest = publish(tmp_path, made, {"signals": [], "dedup": [], "select": {}, "jobs": []})
    with pytest.raises(DataError, match="3 of the kept pairs have no DataComp id"):
        export(dataset, manifest, "datacomp", str(tmp_path / "subset.npy"))
    assert not list(tmp_path.glob("*subset*")), "nothing is left behind"


def test_a_csv_holds_every_kept_pair(published, samples, tmp_path):
    out = export(*published, "csv", str(tmp_path / "a folder" / "pairs.csv"))
    with open(out, newline="", encoding="utf-8") as file:
        rows = {row["uid"]: row for row in csv.DictReader(file)}
    kept = {row["uid"]: row for row in samples if row["kept"]}
    assert rows.keys() == kept.keys()
    assert all(rows[uid]["caption"] == kept[uid]["caption"] for uid in kept)
    assert all(int(rows[uid]["copies"]) == kept[uid]["copies"] for uid in kept)
    assert all(rows[uid]["license"] == "" for uid in kept)
    again = TableSource(kind="table", path=out, source_id="source_id")
    found = [row for batch in sources.read(again, ".") for row in batch.to_pylist()]
    assert {row["url"]: row["source_id"] for row in found} == {row["url"]: row["source_id"] for row in kept.values()}


@pytest.mark.parametrize("form", ["parquet", "webdataset"])
def test_datasets_loads_the_folder_with_its_images(published, samples, tmp_path, monkeypatch, form):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    import datasets

    dataset, manifest = published
    only = {**manifest, "shards": [shard for shard in manifest["shards"] if shard["format"] == form]}
    out = export(dataset, only, "hf", str(tmp_path / "out"))
    loaded = datasets.load_dataset(out, cache_dir=str(tmp_path / "cache"))
    assert {split: len(loaded[split]) for split in loaded} == {s: n for s, n in manifest["splits"].items() if n}
    wanted = Counter({row["uid"]: row["copies"] for row in samples if row["copies"]})
    assert Counter(uid for split in loaded for uid in loaded[split]["uid"]) == wanted
    texts = {row["uid"]: row["caption"] for row in samples}
    for split in loaded:
        for row in loaded[split]:
            assert row["image"].size == (96, 64)
            assert row["caption"] == texts[row["uid"]]
            assert row["captions"] == [row["caption"]]
            assert isinstance(row["chars"], int)


def test_without_the_package_mds_is_refused_with_what_to_install(published, tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "streaming", None)
    with pytest.raises(InputError, match=re.escape("pip install 'vlmdata[mds]'")):
        export(*published, "mds", str(tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_what_is_there_stays(published, tmp_path):
    (tmp_path / "out").write_text("mine")
    with pytest.raises(InputError, match="is there already"):
        export(*published, "csv", str(tmp_path / "out"))
    assert (tmp_path / "out").read_text() == "mine"


def test_the_command_prints_where_it_wrote(published, tmp_path):
    run = here(tmp_path, "export", published[0].root, "--to", "datacomp", "subset.npy")
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == str(tmp_path / "subset.npy")
    assert len(np.load(tmp_path / "subset.npy")) == 20
    run = here(tmp_path, "export", published[0].root, "--to", "datacomp", "subset.npy")
    assert run.returncode == 2
