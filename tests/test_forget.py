"""Forgetting: nothing is left in any byte, all else stays, nothing is computed again, and kills are harmless."""

import base64
import hashlib
import io
import json
import os
import re
import shutil
import tarfile
from dataclasses import replace
from itertools import pairwise

import fsspec
import made_dataset as make
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from vlmdata import catalog, disk, forget, ingest, refresh, snapshot, tags
from vlmdata.dataset import Dataset
from vlmdata.download import forgotten
from vlmdata.errors import DataError, InputError
from vlmdata.forget import journal
from vlmdata.forget.request import request
from vlmdata.parts import Table, noted, part_from, part_name
from vlmdata.plan import done_already, make_plan
from vlmdata.recipe import Recipe
from vlmdata.report import write_report
from vlmdata.report.sheets import thumbnail

URL = "https://example.org/pictures/3.jpg"
CAPTION = "a photograph of the house number 3 in the street"
MERGED = "the same house by somebody else"
ELSEWHERE = "https://pictures.example.net/other/copy.jpg"
CHANGES = {
    "dedup": [{"kind": "exact", "merge": "captions"}, {"kind": "perceptual", "distance": 4, "merge": "captions"}]
}


def made_pairs():
    """Pair 3 with another caption, its bytes elsewhere, and a survivor with captions of one that is alike."""
    same = [
        make.pair("the same address under another caption again", make.picture(3), url=URL),
        make.pair("the same picture from somewhere else on the web", make.picture(3), url=ELSEWHERE),
    ]
    alike = make.pair(MERGED, make.picture_of(make.cv2.imdecode(make.np.frombuffer(make.picture(5), "u1"), 1)))
    return [*make.pairs(), *same, alike]


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    folder = tmp_path_factory.mktemp("forget")
    dataset, manifest = make.publish(folder, made_pairs(), CHANGES)
    write_report(dataset, manifest)
    shutil.rmtree(folder / "data/work_shards")
    assert list(snapshot.verify(dataset)) == []
    return folder


@pytest.fixture
def dataset(published, tmp_path):
    shutil.copytree(published, tmp_path / "copy")
    return Dataset(str(tmp_path / "copy/data"))


def ask(dataset, **kinds):
    return forget.forget(dataset, request(list(kinds.items())))


def uid(url, caption):
    return hashlib.blake2b(f"{url}\0{caption}".encode(), digest_size=16).hexdigest()


def everything(dataset):
    """Every file's bytes, and of Parquet files every page as it is before compression."""
    whole = {}
    for path in dataset.files(""):
        content = dataset.read_bytes(path)
        whole[path] = content + b"".join(frames(content))
    return whole


def frames(content):
    """What Zstandard frames hold, wherever they stand."""
    codec = pa.Codec("zstd")
    for match in re.finditer(re.escape(b"\x28\xb5\x2f\xfd"), content):
        for size in (1 << 14, 1 << 20):
            try:
                stream = pa.CompressedInputStream(pa.BufferReader(content[match.start() :]), codec.name)
                yield stream.read(size)
                break
            except (OSError, pa.ArrowInvalid):
                continue


def samples(dataset):
    connection = catalog.connect(dataset)
    rows = connection.sql("SELECT * FROM samples ORDER BY uid").to_arrow_table().to_pylist()
    connection.close()
    return {row["uid"]: row for row in rows}


def test_nothing_of_it_is_in_any_byte(dataset):
    jpeg = make.picture(3)
    picture = thumbnail(jpeg).partition(",")[2].encode()
    needles = {
        "caption": CAPTION.encode(),
        "other caption": b"the same address under another",
        "url": URL.encode(),
        "where its bytes are too": ELSEWHERE.encode(),
        "sha256": hashlib.sha256(jpeg).hexdigest().encode(),
        "the image": jpeg[-120:-60],
        "the picture in the report": picture[40:120],
    }
    before = everything(dataset)
    for what, needle in needles.items():
        assert any(needle in content for content in before.values()), what
    assert {path.rpartition(".")[2] for path, content in before.items() if needles["the image"] in content} == {
        "tar",
        "parquet",
    }
    found = ask(dataset, url="http://EXAMPLE.org/pictures/3.jpg")
    assert sorted(found.values()) == ["the same bytes", "url", "url"]
    for path, content in everything(dataset).items():
        for what, needle in needles.items():
            assert needle not in content, f"{what} in {path}"
    assert list(snapshot.verify(dataset)) == []


def test_the_others_stay_as_they_are(dataset):
    before, manifest = samples(dataset), dataset.latest()
    gone = set(ask(dataset, sha256=hashlib.sha256(make.picture(3)).hexdigest()))
    after, now = samples(dataset), dataset.latest()
    assert len(gone) == 3
    assert list(before) == list(after)
    for each, row in after.items():
        if each not in gone:
            assert row == before[each]
            continue
        row = dict(row)
        assert row.pop("uid") == each
        assert (row.pop("kept"), row.pop("reason"), row.pop("copies")) == (
            False,
            "forgotten",
            0,
        )
        assert set(row.values()) == {None}
    for path in (part["path"] for part in now["tables"]["images"]["parts"]):
        for row in dataset.read_part(path).to_pylist():
            if row["offset"] is not None:
                with dataset.open(row["stored_tar"]) as tar:
                    tar.seek(row["offset"])
                    assert hashlib.sha256(tar.read(row["length"])).hexdigest() == row["sha256"]
    kept = {each for each, row in after.items() if row["kept"]}
    assert {each for each, row in before.items() if row["kept"]} - gone == kept
    assert shard_uids(dataset, now) == {"webdataset": kept, "parquet": kept}
    assert now["splits"] == {s["split"]: s["rows"] for s in now["shards"] if s["format"] == "parquet"}
    assert now["revision"] == 2
    assert now["funnel"][1] == {"reason": "forgotten", "rejected": 3, "left": len(after) - 3}
    assert now["funnel"][-1]["left"] == len(kept)
    assert all(a["left"] - b["rejected"] == b["left"] for a, b in pairwise(now["funnel"]))
    changed = {s["path"] for s in now["shards"]} - {s["path"] for s in manifest["shards"]}
    assert changed
    assert all(re.fullmatch(r".*-\d{7}\.r2\.(tar|parquet)", path) for path in changed)
    assert not any(dataset.exists(s["path"]) for s in manifest["shards"] if s not in now["shards"])


def shard_uids(dataset, manifest):
    found = {}
    for shard in manifest["shards"]:
        content = io.BytesIO(dataset.read_bytes(shard["path"]))
        if shard["format"] == "parquet":
            uids = set(pq.read_table(content, columns=["uid"])["uid"].to_pylist())
        else:
            with tarfile.open(fileobj=content) as tar:
                uids = {name.partition(".")[0] for name in tar.getnames()}
        assert len(uids) == shard["rows"]
        found.setdefault(shard["format"], set()).update(uids)
    return found


def test_nothing_is_computed_again(dataset):
    manifest = dataset.latest()
    ask(dataset, url=URL)
    now = dataset.latest()
    assert now["keys"] == manifest["keys"]
    for name, table in now["tables"].items():
        there = dataset.read_table(name, table["key"])
        assert [part.sha256 for part in there.parts] == [part["sha256"] for part in table["parts"]]
        inputs = [dataset.read_table(other, now["tables"][other]["key"]) for other in now["tables"] if other != name]
        assert dataset.current_table(name, table["key"], inputs), name
        for part in map(part_from, table["parts"]):
            for path, sha256 in dataset.inputs(part).items():
                assert dataset.sha256(path)[0] == sha256
            assert dataset.current_part(name, table["key"], part.name, dataset.inputs(part)) == part
    # a footer that was stale before stays stale
    old = now["tables"]["pairs"]["parts"][0]
    assert not dataset.current_part("pairs", now["tables"]["pairs"]["key"], old["name"], {"x": "y"})


def test_what_a_refresh_has_not_taken_yet_is_still_told_from_what_it_has(dataset):
    pairs = dataset.tables_named("pairs")[0]
    row = {"uid": uid(URL, CAPTION), "url": URL, "caption": CAPTION}
    rows = [pa.Table.from_pylist([row]), pa.Table.from_pylist([row | {"uid": "f" * 32}])]
    parts = tuple(dataset.write_part("found", "f", part_name(0, 1 + n), each, {}) for n, each in enumerate(rows))
    dataset.write_table(Table("found", "f", parts))
    dataset.write_table(replace(pairs, inputs=noted([Table("found", "f", parts[:1])])))
    ask(dataset, url=URL)
    found = dataset.read_table("found", "f")
    assert [part.sha256 for part in found.parts] != [part.sha256 for part in parts]
    assert refresh.pending(dataset.read_table("pairs", pairs.key), found) == [found.parts[1]]


def test_a_merged_caption_goes_from_the_survivor(dataset):
    survivor = next(row for row in samples(dataset).values() if MERGED in (row["captions"] or [])[1:])
    gone = uid(next(row["url"] for row in samples(dataset).values() if row["caption"] == MERGED), MERGED)
    other = hashlib.sha256(make.picture(5)).hexdigest()
    assert survivor["sha256"] == other != samples(dataset)[gone]["sha256"]
    assert list(ask(dataset, uid=gone)) == [gone]
    now = samples(dataset)[survivor["uid"]]
    assert now == survivor | {"captions": survivor["captions"][:1]}
    assert all(MERGED.encode() not in content for content in everything(dataset).values())
    manifest = dataset.latest()
    for shard in (s for s in manifest["shards"] if s["format"] == "webdataset"):
        with tarfile.open(fileobj=io.BytesIO(dataset.read_bytes(shard["path"]))) as tar:
            if f"{survivor['uid']}.json" in tar.getnames():
                assert json.load(tar.extractfile(f"{survivor['uid']}.json"))["captions"] == survivor["captions"][:1]
                return
    raise AssertionError("the survivor is in no shard")


class Killed(BaseException):
    pass


def test_a_kill_at_any_moment_is_finished_by_the_next(dataset, tmp_path, monkeypatch):
    asked = request([("url", URL)])
    steps = []
    for name in ("commit", "move", "remove"):
        original = getattr(Dataset, name)

        def step(self, *arguments, original=original):
            steps.append(arguments)
            if len(steps) == steps_left[0]:
                raise Killed
            return original(self, *arguments)

        monkeypatch.setattr(Dataset, name, step)
    steps_left = [0]
    forgotten.make_key(dataset)
    dataset.remove("snapshots/000001/report.html")  # it takes most of the time, and another test looks at it
    steps.clear()
    pristine = tmp_path / "pristine"
    shutil.copytree(dataset.root, pristine)
    forget.forget(dataset, asked)
    whole, expected = len(steps), comparable(dataset)
    commit = next(n for n, arguments in enumerate(steps, 1) if arguments[-1] == journal.JOURNAL)
    last = max(n for n, arguments in enumerate(steps, 1) if arguments[0] == "forgetting/forgotten.parquet")
    committed = (last, last + 8, last + 24)
    assert commit + 20 < last - 1
    assert last + 24 < whole - 6
    for kill in (1, commit + 1, commit + 20, *committed, whole - 1):
        target = tmp_path / f"killed {kill}"
        shutil.copytree(pristine, target)
        again = Dataset(str(target))
        steps.clear()
        steps_left[0] = kill
        with pytest.raises(Killed):
            forget.forget(again, asked)
        steps_left[0] = 0
        if not again.exists(journal.JOURNAL):  # nothing was begun, or all was done
            assert kill <= commit
            continue
        assert any(path == journal.JOURNAL for path, *_ in snapshot.verify(again))
        for row in samples(again).values():  # a reader never meets half of a file
            assert row["reason"] == "forgotten" or row["url"]
        assert forget.finish(again)
        assert not forget.finish(again)
        assert list(snapshot.verify(again)) == []
        assert comparable(again) == expected, kill
        shutil.rmtree(target)


def comparable(dataset):
    """All files, without the times and the ids of a request."""
    found = {path: dataset.read_bytes(path) for path in dataset.files("")}
    lines = [json.loads(line) for line in found.pop("forgotten.jsonl").splitlines()]
    found = {path: content for path, content in found.items() if "report.html" not in path and ".spool" not in path}
    return found, [{k: v for k, v in line.items() if k not in ("id", "at", "check")} for line in lines]


def test_verify_names_the_file_of_any_corrupted_byte(dataset):
    ask(dataset, url=URL)
    tags.tag(dataset, "paper", "1")
    dataset.write_sealed("removed.json", {"snapshots": []})
    whole = {path: dataset.read_bytes(path) for path in dataset.files("") if not path.startswith(".spool")}
    assert list(snapshot.verify(dataset)) == []
    read_first = [path for path in whole if path.endswith((".json", ".jsonl", ".key")) and "croissant" not in path]
    together = [path for path in whole if path not in read_first]
    for paths in [together, *([path] for path in read_first)]:
        for share in (0, 0.5, 1):
            for path in paths:
                flipped = bytearray(whole[path])
                flipped[int(share * (len(flipped) - 1))] ^= 1
                dataset.write_bytes(path, bytes(flipped))
            found = {difference[0] for difference in snapshot.verify(dataset)}
            assert ({"forgotten.parquet"} if paths == ["forgotten.key"] else set(paths)) <= found, (paths, share)
        for path in paths:
            dataset.write_bytes(path, whole[path])
    assert len(together) > 20
    assert len(read_first) > 8


def test_a_byte_of_when_a_snapshot_was_made_is_missed_too(dataset):
    path = "snapshots/000001/manifest.json"
    content = dataset.read_bytes(path)
    place = content.index(b'"created": "') + 14
    dataset.write_bytes(path, content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
    assert [difference[0] for difference in snapshot.verify(dataset)] == [path]


def test_verify_finds_what_came_back(dataset):
    ask(dataset, url=URL)
    key = dataset.latest()["tables"]["pairs"]["key"]
    gone, stray = uid(URL, CAPTION), f"tables/pairs/{key}/stray.parquet"

    def differences(table=None, **more):
        out = io.BytesIO()
        pq.write_table(table, out, **more)
        dataset.write_bytes(stray, out.getvalue())
        return [(path, found) for path, _, found in snapshot.verify(dataset)]

    assert differences(pa.table({"uid": [gone], "caption": ["x"]})) == [(stray, "1 rows that are not tombstones")]
    assert differences(pa.table({"uid": [gone], "caption": pa.nulls(1, pa.string())})) == []
    assert differences(pa.table({"uid": ["0" * 32], "url": [f"{URL}?X-Amz-Signature=1"]}))[0][0] == stray
    words = pa.DictionaryArray.from_arrays(pa.array([0, 0], pa.int32()), [ELSEWHERE.replace("copy", "none"), ELSEWHERE])
    unused = differences(pa.table({"uid": ["0" * 32] * 2, "url": words}), write_statistics=False)
    assert unused == [(stray, "a dictionary of url")]
    dataset.remove(stray)
    with tarfile.open(dataset.path("images/stray.tar"), "w") as tar:
        tar.addfile(tarfile.TarInfo(f"{gone}.jpg"))
    assert [(path, found) for path, _, found in snapshot.verify(dataset)] == [("images/stray.tar", "1 members")]


def test_a_files_name_goes_out_of_what_a_source_consists_of_and_stays_out(dataset):
    source = Recipe.model_validate(
        {"dataset": "x", "sources": [{"kind": "folder", "name": "photos", "path": "photos"}]}
    ).sources[0]
    page = "https://www.example.net/album.html"
    states = {"a secret name.jpg": "1 2", "another.jpg": "1 2", page: "{}"}
    ingest.note_seen(dataset, source, "k", states)
    asked = {"url": "photos:/a%20secret%20name.jpg", "domain": "example.net"}
    ask(dataset, **asked)
    assert list(snapshot.verify(dataset)) == []
    assert ingest.seen(dataset, "k") == {"another.jpg": "1 2"}
    assert [part.rows for part in dataset.read_table("seen", "k").parts] == [1]
    assert not any(b"a secret name" in content or b"album" in content for content in everything(dataset).values())
    ingest.note_seen(dataset, source, "k", states)
    assert ingest.seen(dataset, "k") == {"another.jpg": "1 2"}
    name, rows = "000009-0000000", pa.table({"file": list(states), "state": list(states.values())})
    path = dataset.write_part("seen", "k", name, rows, {}).path
    assert list(snapshot.verify(dataset)) == [(path, "nothing forgotten", "2 files or pages")]


def test_what_would_not_fit_beside_the_old_files_is_not_begun(dataset, monkeypatch):
    needed = []
    monkeypatch.setattr(disk, "check", lambda dataset, size, *_: needed.append(size))
    tar = next(dataset.path(path) for path in dataset.files("images") if path.endswith(".tar"))
    ask(dataset, uid=uid(URL, CAPTION))
    assert needed[0] > os.path.getsize(tar)
    ask(dataset, url="https://nowhere.example/none.jpg")
    assert needed[1] == 0


def test_what_is_refused_is_told_by_its_key_alone(dataset):
    ask(dataset, url=URL, domain="pictures.example.net")
    refused = forgotten.load(dataset)
    assert refused.has("url", "//example.org/pictures/3.jpg")
    assert not refused.has("url", URL + "x")
    assert refused.below("https://a.pictures.example.net/x")
    assert not refused.below("https://example.net/x")
    line = json.loads(dataset.read_bytes("forgotten.jsonl"))
    assert line["by"] == {"url": 2, "domain": 1}
    assert uid(URL, CAPTION) in line["uids"]
    dataset.remove("forgotten.key")
    with pytest.raises(DataError, match=r"forgotten\.key is gone"):
        forgotten.load(dataset)


def test_forgetting_again_finds_no_tombstones_and_another_goes_under_a_third_name(dataset):
    first = ask(dataset, url=URL)
    assert ask(dataset, url=URL, uid=next(iter(first))) == {}
    assert dataset.latest()["revision"] == 2
    kept = sorted(each for each, row in samples(dataset).items() if row["kept"])
    everyone = request([("uid", each) for each in kept])
    forget.forget(dataset, everyone)
    manifest = dataset.latest()
    assert manifest["revision"] == 3
    assert manifest["shards"] == []
    assert manifest["funnel"][-1]["left"] == 0
    assert not any("shards" in path for path in dataset.files("snapshots"))
    assert list(snapshot.verify(dataset)) == []


@pytest.mark.parametrize("measured", [True, False])
def test_what_looks_like_a_picture_goes(dataset, tmp_path, measured):
    pixels = make.cv2.imdecode(make.np.frombuffer(make.picture(7), "u1"), 1)
    pixels = make.cv2.resize(pixels, (180, 120))
    make.cv2.imwrite(str(tmp_path / "like.png"), pixels)
    if not measured:
        dataset.remove("tables/image")
    found = forget.meant(dataset, request([], like=[tmp_path / "like.png"]))
    assert found == {
        uid("https://example.org/pictures/7.jpg", "a photograph of the house number 7 in the street"): "like"
    }
    make.cv2.imwrite(str(tmp_path / "flat.png"), make.np.full((64, 64, 3), 128, "u1"))
    with pytest.raises(InputError, match="too flat"):
        request([], like=[tmp_path / "flat.png"])
    (tmp_path / "no.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="no image that can be read"):
        request([], like=[tmp_path / "no.png"])


def test_lists_are_read_whole_or_not_at_all(tmp_path):
    sha256 = "a" * 64
    (tmp_path / "lines.txt").write_text(f"# so\nexample.org\nhttps://a.example/x,y.jpg\nsha256:{sha256}\n{'B' * 32}\n")
    asked = request([], lists=[str(tmp_path / "lines.txt")])
    assert (asked.domain, asked.url, asked.sha256, asked.uid) == (
        {"example.org"}, {"a.example/x,y.jpg"}, {sha256}, {"b" * 32},
    )  # fmt: skip
    (tmp_path / "table.csv").write_text(f'note,url,sha256\n"a, b",https://a.example/x.jpg,\n,,{sha256}\n')
    asked = request([], lists=[str(tmp_path / "table.csv")])
    assert (asked.url, asked.sha256, asked.domain) == ({"a.example/x.jpg"}, {sha256}, set())
    (tmp_path / "bad.txt").write_text("example.org\nwhat is this\n")
    with pytest.raises(InputError, match=r"bad\.txt, line 2"):
        request([], lists=[str(tmp_path / "bad.txt")])
    (tmp_path / "bad.csv").write_text("uid\n123\n")
    with pytest.raises(InputError, match=r"bad\.csv, line 2"):
        request([], lists=[str(tmp_path / "bad.csv")])
    with pytest.raises(InputError, match="--sha256 12"):
        request([("sha256", "12")])


def test_an_object_store_is_forgotten_in_as_well(published):
    memory = fsspec.filesystem("memory")
    memory.put(f"{published}/data/", "/forgetting-test/", recursive=True)
    dataset = Dataset("memory://forgetting-test")
    assert len(ask(dataset, url=URL)) == 3
    assert list(snapshot.verify(dataset)) == []
    jpeg = make.picture(3)[-120:-60]
    assert all(jpeg not in content for content in everything(dataset).values())
    assert base64.b64encode(jpeg[:30]) not in dataset.read_bytes("snapshots/000001/report.html")
    memory.rm("/forgetting-test", recursive=True)


def test_plans_find_all_done(published):
    """Of what `test_nothing_is_computed_again` looks at table by table, the whole: the plan of the same recipe."""
    source = {"kind": "table", "name": "web", "path": str(published / "list.csv")}
    recipe = {"dataset": str(published / "data"), "sources": [source], **make.RECIPE, **CHANGES, "parts": {"rows": 20}}
    dataset = Dataset(recipe["dataset"])
    plan = make_plan(Recipe.model_validate(recipe))
    assert done_already(plan, dataset)
    shutil.copytree(published / "data", published / "before")
    try:
        ask(dataset, url=URL)
        assert done_already(plan, dataset) == dataset.latest()
    finally:
        shutil.rmtree(published / "data")
        (published / "before").rename(published / "data")
