"""What stands beside the shards is true, is read by its readers without a network, and is the same in every run."""

import json
import os
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from made_dataset import pair, pairs, picture, publish

from vlmdata import snapshot
from vlmdata.card import code, write_documents
from vlmdata.dataset import Dataset

pytestmark = pytest.mark.xdist_group("card")

HOSTILE = "CC0 | `x` <script>alert(1)</script>\n# heading"


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    made = [*pairs(), pair("a photograph with a licence of its own kind", picture(90), license=HOSTILE)]
    return publish(tmp_path_factory.mktemp("card"), made)


@pytest.fixture(scope="module")
def card(published):
    text = published[0].read_bytes("snapshots/000001/README.md").decode()
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def offline(tmp_path, *command):
    """Run Python where no host can be reached and every cache is new; its standard output."""
    nowhere = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:9")
    environment = {
        **os.environ,
        **nowhere,
        "CROISSANT_CACHE": str(tmp_path / "croissant"),
        "HF_HOME": str(tmp_path / "hf"),
    }
    run = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    return run.stdout


# Its readers end here and now: a thread that one of their libraries leaves running can abort Python's own ending.
END = """
import os, sys
sys.stdout.flush()
os._exit(0)
"""

READ = """
import json, sys
import mlcroissant
dataset = mlcroissant.Dataset(sys.argv[1])
found = {}
for records in dataset.metadata.record_sets:
    rows = list(dataset.records(records.id))
    found[records.id] = [
        {name: list(v.size) if hasattr(v, "size") else str(v, "utf-8") if isinstance(v, bytes) else repr(v)
         for name, v in row.items()} for row in rows]
print(json.dumps(found))
"""


def test_mlcroissant_validates_it_and_reads_every_sample(published, tmp_path):
    dataset, manifest = published
    path = dataset.path("snapshots/000001/croissant.json")
    offline(tmp_path, "-c", "from mlcroissant.scripts.validate import main; from absl import app; app.run(main)",
            f"--jsonld={path}")  # fmt: skip
    found = json.loads(offline(tmp_path, "-c", READ + END, path))
    assert list(found) == ["samples"]
    kept = dataset.read_part(manifest["samples"][0]["path"], ["uid", "kept"]).to_pylist()
    kept += [
        row for part in manifest["samples"][1:] for row in dataset.read_part(part["path"], ["uid", "kept"]).to_pylist()
    ]
    assert sorted(row["samples/uid"] for row in found["samples"]) == sorted(row["uid"] for row in kept if row["kept"])
    assert all(row["samples/jpg"] == [96, 64] for row in found["samples"])


def test_mlcroissant_reads_the_tars_where_there_is_no_parquet(published, tmp_path):
    dataset = Dataset(str(tmp_path / "copy"))
    shutil.copytree(published[0].root, dataset.root)
    manifest = {**published[1], "shards": [s for s in published[1]["shards"] if s["format"] == "webdataset"]}
    write_documents(dataset, manifest)
    found = json.loads(offline(tmp_path, "-c", READ + END, dataset.path("snapshots/000001/croissant.json")))
    assert set(found) == {"jpg_members", "txt_members"}
    assert len(found["jpg_members"]) == len(found["txt_members"]) == sum(manifest["splits"].values())
    assert all(re.fullmatch(r"[0-9a-f]{32}", row["jpg_members/uid"]) for row in found["jpg_members"])


def test_every_shard_stands_in_it_with_its_hash(published):
    dataset, manifest = published
    described = dataset.read_json("snapshots/000001/croissant.json")
    objects = {f"snapshots/000001/{entry['@id']}": entry for entry in described["distribution"] if "sha256" in entry}
    assert {path: entry["sha256"] for path, entry in objects.items()} == {
        s["path"]: s["sha256"] for s in manifest["shards"]
    }


def test_load_dataset_reads_the_folder(published, tmp_path):
    script = """
import sys, json, datasets
splits = datasets.load_dataset(sys.argv[1])
print(json.dumps({name: [row["uid"] for row in split] for name, split in splits.items()}))
print(splits["train"][0]["jpg"].size)
"""
    out = offline(tmp_path, "-c", script + END, published[0].path("snapshots/000001")).splitlines()
    assert {name: len(uids) for name, uids in json.loads(out[0]).items()} == published[1]["splits"]
    assert out[1] == "(96, 64)"


def test_the_documents_are_the_same_wherever_the_dataset_lies(published, tmp_path):
    dataset = Dataset(str(tmp_path / "another name"))
    shutil.copytree(published[0].root, dataset.root)
    for name in ("README.md", "croissant.json"):
        dataset.remove(f"snapshots/000001/{name}")
    written = write_documents(dataset, {**published[1], "created": "another time"})
    assert written == published[1]["documents"]
    for file in written:
        content = dataset.read_bytes(file["path"])
        assert content == published[0].read_bytes(file["path"])
        assert b"another name" not in content
        assert published[0].root.encode() not in content
    assert list(snapshot.verify(published[0])) == []


def test_the_card_says_what_the_manifest_says(published, card):
    _, manifest = published
    front, body = card
    for step in manifest["funnel"][1:]:
        assert re.search(rf"^\| {step['reason']} \|.*\| {step['rejected']} \| {step['left']} \|$", body, re.M)
    assert "| `english`" not in body
    assert "`lang = 'en'`" in body
    assert front["language"] == ["en"]
    assert front["size_categories"] == ["n<1K"]
    assert {split["split"] for split in front["configs"][0]["data_files"]} == {"train", "test"}
    assert "| noai | respected | 1 | 0 | 1 |" in body


def test_a_licence_of_others_is_text_in_the_card(published, card):
    _, body = card
    (line,) = [line for line in body.splitlines() if "CC0" in line]
    assert line == "| ``CC0 \\| `x` <script>alert(1)</script> # heading`` | 1 |"
    described = published[0].read_json("snapshots/000001/croissant.json")
    assert described["license"] == [HOSTILE]


@pytest.mark.parametrize("text", ["`", "``", "a ``` b ` c", "|", "a\nb", "x" * 1000, " `edge` ", "\u202e\0"])
def test_a_code_span_holds_whatever_is_put_in(text):
    span = code(text)
    assert "\n" not in span
    assert len(span) <= 1000
    if not span:
        return
    fence = re.match(r"`+", span)[0]
    inner = span[len(fence) : -len(fence)]
    assert span.endswith(fence)
    assert fence not in re.findall(r"`+", inner)
    assert not inner.endswith("`")
    assert not re.search(r"(?<!\\)\|", inner)


def test_a_snapshot_without_shards_has_documents_too(tmp_path):
    changes = {"signals": ["text"], "dedup": [], "select": {"rules": {"long": "words > 1000"}}, "jobs": []}
    dataset, _ = publish(tmp_path, [pair("a few words", picture(1))], changes)
    front = yaml.safe_load(dataset.read_bytes("snapshots/000001/README.md").decode().split("---\n")[1])
    assert "configs" not in front
    path = dataset.path("snapshots/000001/croissant.json")
    assert json.loads(offline(tmp_path, "-c", READ + END, path)) == {}
