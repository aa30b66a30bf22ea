"""A dataset on S3 over its life: refreshed, tagged, compared, collected, and one image of it forgotten."""

import hashlib
import io
import json
import re
import tarfile
from dataclasses import dataclass, field
from pathlib import Path
from subprocess import CompletedProcess

import pyarrow as pa
import pytest
import yaml
from conftest import here
from s3_server import FAILED, Store, quick_s3
from test_refresh import add

from vlmdata import catalog, report
from vlmdata.dataset import Dataset
from vlmdata.flows import curate

URL = "s3://pool/it"
RECIPE = {
    "dataset": URL,
    "sources": [{"kind": "folder", "name": "photos", "path": "photos"}],
    "download": {"size": 64},
    "signals": ["text"],
    "dedup": ["exact"],
    "select": {"rules": {"words": "words >= 3"}},
    "shards": {"samples": 6, "formats": ["webdataset"]},
    "parts": {"rows": 20},
}
LEFT = ("tables/text/0123456789abcdef/000001-0000000.parquet", "snapshots/000001/shards/train-0000099.tar")
BYTES = b"what a killed run has left"
GONE, CAPTION = "photos:/03.jpg", "a photo of the thing with number 3"


@dataclass
class Story:
    """What each command answered, and every object of the bucket (key -> bytes) when it had ended."""

    folder: Path
    store: Store
    said: dict[str, CompletedProcess[str]] = field(default_factory=dict)
    objects: dict[str, dict[str, bytes]] = field(default_factory=dict)

    def do(self, name: str, *arguments: str, code: int = 0) -> None:
        self.said[name] = here(self.folder, *arguments)
        assert self.said[name].returncode == code, self.said[name].stderr
        self.objects[name] = self.now()

    def now(self) -> dict[str, bytes]:
        listed = self.store.client.list_objects_v2(Bucket="pool", Prefix="it/", MaxKeys=1000)
        assert not listed["IsTruncated"]
        return {
            entry["Key"].removeprefix("it/"): self.store.client.get_object(Bucket="pool", Key=entry["Key"])[
                "Body"
            ].read()
            for entry in listed["Contents"]
        }


@pytest.fixture(scope="module")
def story(tmp_path_factory):
    folder = tmp_path_factory.mktemp("keeping")
    (folder / "photos").mkdir()
    for number in range(10):
        add(folder, number, f"a photo of the thing with number {number}")
    add(folder, 10, "two words")
    (folder / "recipe.yaml").write_text(yaml.safe_dump(RECIPE, sort_keys=False))
    with quick_s3("pool", folder / "cache") as store, pytest.MonkeyPatch.context() as patch:
        for place in (report, curate):  # one reads every table many times; test_storage_s3 has one of a bucket
            patch.setattr(place, "write_report", short_report)
        told = Story(folder, store)
        told.do("run", "run", "recipe.yaml")
        told.do("tag", "tag", URL, "paper")
        for number in (20, 21):
            add(folder, number, f"a photo of the new thing with number {number}")
        add(folder, 22, "a much longer caption for a picture that was published long ago", looks_like=5)
        told.do("refresh", "refresh", "recipe.yaml")
        told.do("diff", "diff", f"{URL}", "paper", "2", "--format", "json")
        for path in LEFT:
            Dataset(URL).write_bytes(path, BYTES)
        told.do("kept by its tag", "gc", URL, "--keep", "1")
        told.do("untag", "tag", URL, "paper", "--remove")
        told.do("gc", "gc", URL, "--keep", "1", "--yes")
        moved: list[str] = []

        def outage(request):
            if request.method != "PUT" or not request.path.startswith(("/pool/it/tables/", "/pool/it/images/")):
                return None
            moved.append(request.path)
            return FAILED if len(moved) > 4 else None

        store.refuse = outage
        (uid,) = uids(GONE)
        told.do("outage", "forget", URL, "--uid", uid, code=4)
        store.open()
        told.do("forget", "forget", URL)
        told.do("verify", "verify", URL)
        told.do("again", "refresh", "recipe.yaml")
        yield told


def short_report(dataset, manifest):
    dataset.write_bytes(f"snapshots/{manifest['number']:06d}/report.html", b"a page\n")


def pages(content):
    """A file's bytes, and what the Zstandard frames in it hold, to the last byte."""
    found = [content]
    for match in re.finditer(re.escape(b"\x28\xb5\x2f\xfd"), content):
        stream = pa.CompressedInputStream(pa.BufferReader(content[match.start() :]), "zstd")
        try:
            while chunk := stream.read(32):  # what follows the frame is an error
                found.append(chunk)
        except (OSError, pa.ArrowInvalid):
            continue
    return b"".join(found)


def uids(url):
    return [uid for (uid,) in sql(f"SELECT uid FROM samples WHERE url = '{url}'")]


def sql(query):
    return catalog.query(catalog.connect(Dataset(URL)), query).fetchall()


def manifest(objects, number):
    return json.loads(objects[f"snapshots/{number:06d}/manifest.json"])


def test_a_refresh_appends_a_snapshot_and_every_object_that_is_out_keeps_its_bytes(story):
    before, after = story.objects["tag"], story.objects["refresh"]
    changed = {path for path in before if after.get(path) != before[path]}
    apart = ("tables/jobs/", "tables/seen/")
    assert all(path in ("latest.json", "status.json") or path.endswith("/manifest.json") for path in changed
               if not path.startswith(apart))  # fmt: skip
    assert not any(path.startswith("snapshots/000001/") for path in changed)
    assert story.said["refresh"].stdout == f"{URL}/snapshots/000002\n"
    new, old = manifest(after, 2), manifest(after, 1)
    assert new["shards"][: len(old["shards"])] == old["shards"]
    assert {path: hashlib.sha256(after[path]).hexdigest() for path in after if "/shards/" in path} == {
        shard["path"]: shard["sha256"] for shard in new["shards"]
    }
    assert [new["funnel"][0]["left"], new["funnel"][-1]["left"]] == [14, 12]
    assert "lock.json" not in after


def test_a_tag_and_a_number_mean_snapshots_of_a_bucket(story):
    assert story.said["tag"].stdout == "paper\t1\n"
    found = json.loads(story.said["diff"].stdout)
    assert [found[name] for name in ("before", "after")] == [
        {"number": 1, "pairs": 11, "kept": 10}, {"number": 2, "pairs": 14, "kept": 12},
    ]  # fmt: skip
    assert found["changes"]["new"]["verdicts"] == [
        {"from": "absent", "to": None, "pairs": 2}, {"from": "absent", "to": "duplicate: exact", "pairs": 1},
    ]  # fmt: skip
    assert found["shards"]["stayed"] == len(manifest(story.objects["refresh"], 1)["shards"])
    assert found["shards"]["went"] == 0


def test_what_a_tag_keeps_is_collected_without_it_and_nothing_else(story):
    listed = story.said["kept by its tag"].stdout.splitlines()
    assert "stays: snapshots 1 (paper), 2" in listed
    assert listed[-1].startswith(f"{len(LEFT)} files, ")
    assert story.objects["kept by its tag"] == story.objects["diff"] | dict.fromkeys(
        LEFT, b"what a killed run has left"
    )
    before, after = story.objects["untag"], story.objects["gc"]
    gone = {path for path in before if path not in after} - {"tags.json"}
    own = {f"snapshots/000001/{name}" for name in ("manifest.json", "report.html", "README.md", "croissant.json",
                                                   "grouped.parquet", "samples/manifest.json")}  # fmt: skip
    own |= {part["path"] for part in manifest(before, 1)["tables"]["duplicates"]["parts"]}
    assert gone == {*own, *LEFT}
    needed = manifest(after, 2)
    assert any(shard["path"].startswith("snapshots/000001/shards/") for shard in needed["shards"])
    assert {file["path"] for file in [*needed["shards"], *needed["samples"]]} <= set(after)


def test_an_outage_amid_a_forgetting_is_told_and_the_same_command_finishes_it(story):
    assert "error: s3://pool/it/" in story.said["outage"].stderr
    assert "The part could not be taken" in story.said["outage"].stderr
    assert "forgetting.json" in story.objects["outage"]
    assert any(path.startswith("forgetting/tables/") for path in story.objects["outage"])
    assert "the forgetting that was interrupted is finished" in story.said["forget"].stderr
    assert not any(path.startswith("forgetting") for path in story.objects["forget"])


def test_nothing_of_what_is_forgotten_is_in_any_object_or_in_the_cache(story):
    before = story.objects["gc"]
    (shard,) = (content for path, content in before.items() if path.endswith(".tar") and "/shards/" in path
                and CAPTION.encode() in content)  # fmt: skip
    with tarfile.open(fileobj=io.BytesIO(shard)) as tar:
        texts = {name: tar.extractfile(name).read() for name in tar.getnames()}
    uid = next(name for name, text in texts.items() if text == CAPTION.encode()).removesuffix(".txt")
    needles = {
        "caption": CAPTION.encode(),
        "url": GONE.encode(),
        "sha256": hashlib.sha256((story.folder / "photos/03.jpg").read_bytes()).hexdigest().encode(),
        "the image": texts[f"{uid}.jpg"][-120:-60],
    }
    whole = [pages(content) for content in before.values()]
    for what, needle in needles.items():
        assert any(needle in content for content in whole), what
    versions = story.store.client.list_object_versions(Bucket="pool")
    assert {entry["VersionId"] for entry in versions["Versions"]} == {"null"}
    assert "DeleteMarkers" not in versions
    assert "Uploads" not in story.store.client.list_multipart_uploads(Bucket="pool")
    left = dict(story.objects["forget"])
    left |= {str(path): path.read_bytes() for path in (story.folder / "cache").rglob("*") if path.is_file()}
    for path, content in left.items():
        whole_file = pages(content)
        assert [what for what, needle in needles.items() if needle in whole_file] == [], path
    assert sql(f"SELECT kept, reason, url FROM samples WHERE uid = '{uid}'") == [(False, "forgotten", None)]


def test_after_a_forgetting_verify_is_clean_and_a_refresh_has_nothing_to_do(story):
    assert story.said["verify"].stdout == ""
    assert "nothing forgotten is left" in story.said["verify"].stderr
    assert "nothing is new: snapshot 2 stays in force" in story.said["again"].stderr
    now = manifest(story.now(), 2)
    assert now["revision"] == 2
    assert now["funnel"][1] == {"reason": "forgotten", "rejected": 1, "left": 13}
    assert now["funnel"][-1]["left"] == 11
