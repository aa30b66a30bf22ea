"""A refresh appends what is new in the sources; what is out stays, byte for byte."""

import json
import shutil

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import yaml
from conftest import content, here

from vlmdata import catalog, diff, forget, snapshot
from vlmdata.dataset import Dataset
from vlmdata.forget.request import request

RECIPE = {
    "dataset": "runs/it",
    "sources": [{"kind": "folder", "name": "photos", "path": "photos"}],
    "download": {"size": 64},
    "signals": ["text", "image"],
    "dedup": ["exact", {"kind": "perceptual", "distance": 4}],
    "select": {"rules": {"words": "words >= 3"}},
    "shards": {"samples": 4, "splits": {"train": 0.7, "test": 0.3}},
    "parts": {"rows": 8},
}


def add(folder, number, caption, looks_like=None):
    """A picture that its number alone makes, or that of another number, with a caption beside it."""
    draw = np.random.default_rng(number if looks_like is None else looks_like)
    small = draw.integers(0, 255, (6, 8, 3), dtype=np.uint8)
    cv2.imwrite(str(folder / f"photos/{number:02d}.jpg"), cv2.resize(small, (160, 120), interpolation=cv2.INTER_CUBIC))
    (folder / f"photos/{number:02d}.txt").write_text(caption, "utf-8")


def ok(folder, *arguments):
    said = here(folder, *arguments)
    assert said.returncode == 0, said.stderr
    return said.stdout, said.stderr


def sql(folder, query):
    return catalog.query(catalog.connect(Dataset(str(folder / "runs/it"))), query).fetchall()


def in_shards(folder, manifest):
    """Every uid in the snapshot's Parquet and WebDataset shards, as often as it stands there."""
    paths = [folder / "runs/it" / shard["path"] for shard in manifest["shards"] if shard["format"] == "parquet"]
    return sorted(uid for path in paths for uid in pq.read_table(path)["uid"].to_pylist())


def write(folder, **changes):
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, **changes}, sort_keys=False))


@pytest.fixture(scope="module")
def first(tmp_path_factory):
    folder = tmp_path_factory.mktemp("first") / "it"
    (folder / "photos").mkdir(parents=True)
    for number in range(14):
        add(folder, number, f"a photo of the thing with number {number}")
    add(folder, 14, "two words")
    add(folder, 15, "the picture of number 14 under a better caption than that", looks_like=30)
    write(folder, shards={**RECIPE["shards"], "formats": ["webdataset", "parquet"]})
    ok(folder, "run", "recipe.yaml")
    return folder


@pytest.fixture(scope="module")
def refreshed(first, tmp_path_factory):
    """With three new pairs, a duplicate of a published one, one of a rejected one, and one that no rule lets pass."""
    folder = tmp_path_factory.mktemp("refreshed") / "it"
    shutil.copytree(first, folder)
    for number in range(20, 23):
        add(folder, number, f"a photo of the new thing with number {number}")
    add(folder, 23, "a much longer caption for a picture that was published long ago", looks_like=3)
    add(folder, 24, "the picture that was rejected under two words", looks_like=14)
    add(folder, 25, "too short")
    ok(folder, "refresh", "recipe.yaml")
    return folder


def manifest_of(folder):
    return Dataset(str(folder / "runs/it")).latest()


def test_new_pairs_become_the_next_snapshot_and_what_is_out_keeps_its_bytes(first, refreshed):
    before, after = content(first / "runs/it"), content(refreshed / "runs/it")
    changed = {name for name in before if before[name] != after[name]}
    assert all(name == "latest.json" or name.endswith("/manifest.json") for name in changed), changed
    assert not any(name.startswith("snapshots/000001/") for name in changed)
    manifest, parent = manifest_of(refreshed), manifest_of(first)
    assert (manifest["number"], manifest["parent"], manifest["base"]) == (2, 1, 1)
    assert manifest["shards"][: len(parent["shards"])] == parent["shards"]
    names = [shard["path"].rsplit("/", 1)[1] for shard in manifest["shards"]]
    assert len(set(names)) == len(names) > len(parent["shards"])
    assert list(snapshot.verify(Dataset(str(refreshed / "runs/it")))) == []


def test_only_the_new_layers_parts_are_computed(first, refreshed):
    for table in ("pairs", "images", "text", "image"):
        parts = {
            folder: {part["name"]: part["sha256"] for part in manifest_of(folder)["tables"][table]["parts"]}
            for folder in (first, refreshed)
        }
        new = set(parts[refreshed]) - set(parts[first])
        assert new == {"000002-0000000"}, table
        assert all(parts[refreshed][name] == sha256 for name, sha256 in parts[first].items())
    old = {path: path.stat().st_mtime_ns for path in (first / "runs/it").glob("[it]*/**/000001-*.parquet")}
    copied = [refreshed / path.relative_to(first) for path in old if "tables/seen" not in str(path)]
    assert copied
    assert all(path.stat().st_mtime_ns == old[first / path.relative_to(refreshed)] for path in copied)


def test_each_new_pair_is_judged_beside_what_was_published(first, refreshed):
    reasons = dict(sql(refreshed, "select url[-6:-5], reason from samples where url > 'photos:/2' order by url"))
    assert reasons == {
        "20": None, "21": None, "22": None, "23": "duplicate: exact", "24": None, "25": "words",
    }  # fmt: skip
    same = "select uid, kept, reason, shard, index, split from samples where url < 'photos:/2' order by uid"
    assert sql(refreshed, same) == sql(first, same)
    manifest = manifest_of(refreshed)
    kept = sorted(uid for (uid,) in sql(refreshed, "select uid from samples where kept"))
    assert in_shards(refreshed, manifest) == kept
    assert manifest["funnel"][0]["left"] == 22
    assert manifest["funnel"][-1]["left"] == sum(manifest["splits"].values()) == len(kept)
    places = sql(refreshed, "select shard, index, count(*) from samples where kept group by all having count(*) > 1")
    assert places == []


def test_with_nothing_new_nothing_is_published(refreshed):
    before = content(refreshed / "runs/it")
    out, err = ok(refreshed, "refresh", "recipe.yaml")
    assert "nothing is new: snapshot 2 stays in force" in err
    assert out.strip().endswith("runs/it/snapshots/000002")
    assert content(refreshed / "runs/it") == before


def test_a_changed_selection_is_refused_and_run_publishes_it(refreshed, tmp_path):
    folder = tmp_path / "it"
    shutil.copytree(refreshed, folder)
    said = here(folder, "refresh", "recipe.yaml", "--set", "select.rules.words=words >= 2")
    assert said.returncode == 5
    assert "another 'select'" in said.stderr
    ok(folder, "run", "recipe.yaml")
    manifest = manifest_of(folder)
    assert manifest["number"] == 3
    assert "base" not in manifest
    assert all(shard["path"].startswith("snapshots/000003/") for shard in manifest["shards"])
    _, err = ok(folder, "run", "recipe.yaml")
    assert "nothing to do" in err


def test_refreshes_follow_each_other_and_the_shards_of_all_are_in_force(refreshed, tmp_path):
    folder = tmp_path / "it"
    shutil.copytree(refreshed, folder)
    add(folder, 40, "one more thing that nobody has seen")
    (folder / "photos/20.txt").write_text("a new caption for a photo that is known")
    ok(folder, "refresh", "recipe.yaml")
    manifest = manifest_of(folder)
    assert (manifest["number"], manifest["parent"], manifest["base"]) == (3, 2, 1)
    assert {shard["path"].split("/")[1] for shard in manifest["shards"]} == {"000001", "000002", "000003"}
    assert [r for (r,) in sql(folder, "select reason from samples where url like '%/20.jpg' order by caption")] == [
        "duplicate: exact", None,
    ]  # fmt: skip
    assert in_shards(folder, manifest) == sorted(u for (u,) in sql(folder, "select uid from samples where kept"))
    assert list(snapshot.verify(Dataset(str(folder / "runs/it")))) == []


def test_a_shut_gate_publishes_nothing_and_the_layer_goes_on_when_it_is_opened(first, tmp_path):
    folder = tmp_path / "it"
    shutil.copytree(first, folder)
    for number in range(20, 24):
        add(folder, number, "too short")
    write(folder, gates={"kept_share": [0.2, 1.0]}, shards={**RECIPE["shards"], "formats": ["webdataset", "parquet"]})
    latest = (folder / "runs/it/latest.json").read_bytes()
    said = here(folder, "refresh", "recipe.yaml")
    assert (said.returncode, said.stdout) == (5, "")
    assert "gates.kept_share: 0 of 4 new pairs are kept (0.000), allowed are 0.2 to 1" in said.stderr
    assert (folder / "runs/it/latest.json").read_bytes() == latest
    dropped = tmp_path / "dropped"
    shutil.copytree(folder, dropped)
    ok(folder, "refresh", "recipe.yaml", "--set", "gates.kept_share=null")
    assert manifest_of(folder)["funnel"][0]["left"] == 20
    for number in range(20, 24):
        add(dropped, number, f"a caption of more than two words, number {number}")
    ok(dropped, "refresh", "recipe.yaml", "--discard")
    assert manifest_of(dropped)["funnel"][-1]["left"] == manifest_of(first)["funnel"][-1]["left"] + 4
    assert json.loads((dropped / "runs/it/latest.json").read_bytes())["snapshot"] == 2


def counted(folder, manifest):
    """The funnel's and the splits' counts, from the rows of the snapshot in force."""
    left = sql(folder, "select count(*), count(*) filter (reason = 'forgotten'), count(*) filter (kept) from samples")[
        0
    ]
    assert (manifest["funnel"][0]["left"], manifest["funnel"][-1]["left"]) == (left[0], left[2])
    assert manifest["funnel"][1] == {"reason": "forgotten", "rejected": left[1], "left": left[0] - left[1]}
    steps = {step["reason"]: step["rejected"] for step in manifest["funnel"][1:]}
    reasons = dict(sql(folder, "select reason, count(*) from samples where not kept group by all"))
    assert {reason: count for reason, count in steps.items() if count} == reasons
    splits = dict(sql(folder, "select split, count(*) from samples where kept group by all"))
    assert {split: count for split, count in manifest["splits"].items() if count} == splits


def test_what_a_first_snapshot_brought_is_forgotten_in_its_children_also_when_it_is_gone(refreshed, tmp_path):
    folder = tmp_path / "it"
    shutil.copytree(refreshed, folder)
    dataset = Dataset(str(folder / "runs/it"))
    uids = sql(folder, "select uid from samples where kept and url < 'photos:/2' order by shard, uid limit 2")
    first, second = (uid for (uid,) in uids)
    forget.forget(dataset, request([("uid", first)]))
    assert list(snapshot.verify(dataset)) == []
    counted(folder, dataset.latest())
    assert diff.lines(diff.diff(dataset, dataset.snapshot(1), dataset.latest()))
    ok(folder, "gc", "runs/it", "--keep", "1", "--yes")
    assert dataset.numbers() == [2]
    forget.forget(dataset, request([("uid", second)]))
    assert list(snapshot.verify(dataset)) == []
    manifest = dataset.latest()
    counted(folder, manifest)
    assert in_shards(folder, manifest) == sorted(u for (u,) in sql(folder, "select uid from samples where kept"))
    of_the_first = [
        uid for (uid,) in sql(folder, "select uid from samples where split is not null and shard is not null")
    ]
    train = [shard for shard in manifest["shards"] if shard["split"] == "train" and shard["format"] == "webdataset"]
    assert of_the_first
    assert train
    card = dataset.read_bytes("snapshots/000002/README.md").decode()
    shown = card.partition("PATH/TO/THIS/FOLDER/../")[2].partition('"')[0]
    assert dataset.exists(f"snapshots/{shown}")
    forget.forget(dataset, request([("uid", uid) for uid in of_the_first]))
    assert list(snapshot.verify(dataset)) == []
    assert dataset.latest()["shards"] == []
    ok(folder, "refresh", "recipe.yaml")
    dataset.remove(f"tables/pairs/{manifest['tables']['pairs']['key']}/manifest.json")
    said = here(folder, "refresh", "recipe.yaml")
    assert said.returncode == 1
    assert "manifest.json is gone, and the snapshot in force was made of it" in said.stderr
