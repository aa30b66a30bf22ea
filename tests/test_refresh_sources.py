"""Refreshes end to end of what other tests read alone: archives of a crawl, films, and a balanced selection."""

import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pyarrow as pa
import pytest
import yaml
from conftest import content, here
from made_videos import video
from made_warc import pack, response, write

from vlmdata import catalog, snapshot
from vlmdata.dataset import Dataset
from vlmdata.select import balance

RECIPE = {
    "dataset": "runs/it",
    "download": {"size": 64},
    "signals": ["text"],
    "dedup": ["exact"],
    "select": {"rules": {"words": "words >= 3"}},
    "shards": {"samples": 4, "formats": ["webdataset"]},
    "parts": {"rows": 8},
}


def done(folder, *command, code=0):
    """(manifest of the snapshot in force, what the command said)."""
    said = here(folder, *command, "recipe.yaml")
    assert said.returncode == code, said.stderr
    return Dataset(str(folder / "runs/it")).latest(), said.stderr


def write_recipe(folder, **changes):
    (folder / "recipe.yaml").write_text(yaml.safe_dump({**RECIPE, **changes}, sort_keys=False))


def sql(folder, query):
    return catalog.query(catalog.connect(Dataset(str(folder / "runs/it"))), query).fetchall()


def out(folder):
    """What a refresh must leave as it is: the first snapshot, and the first layer's parts."""
    files = content(folder / "runs/it")
    return {
        name: files[name]
        for name in files
        if (name.startswith("snapshots/000001/") or "/000001-" in name) and "tables/seen" not in name
    }


def appended(folder, before, manifest):
    """Whether a second snapshot stands beside the first, of which not a byte has changed."""
    assert (manifest["number"], manifest["parent"], manifest["base"]) == (2, 1, 1)
    now = out(folder)
    assert [name for name in before if now.get(name) != before[name]] == []
    first = Dataset(str(folder / "runs/it")).snapshot(1)
    assert manifest["shards"][: len(first["shards"])] == first["shards"]
    assert len(manifest["shards"]) > len(first["shards"])
    assert list(snapshot.verify(Dataset(str(folder / "runs/it")))) == []


def picture(number):
    small = np.random.default_rng(number).integers(0, 255, (6, 8, 3), dtype=np.uint8)
    return cv2.imencode(".jpg", cv2.resize(small, (96, 72), interpolation=cv2.INTER_CUBIC))[1].tobytes()


@pytest.fixture
def site(tmp_path):
    """A web server over tmp_path/site: its URL, and the paths that were asked for."""
    asked = []

    class Handler(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            asked.append(self.path)

    for number in range(20):
        write(tmp_path / f"site/i/{number}.jpg", picture(number))
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=tmp_path / "site")) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def test_new_files_of_a_crawl_are_read_and_those_on_the_web_that_were_read_are_not_asked_for(tmp_path, site):
    url, asked = site

    def archive(path, pages):
        """pages: of each the numbers of its images."""
        records = [
            response(
                f"{url}/{path}/{n}.html", "".join(f"<img src=/i/{i}.jpg alt='a photo of thing {i}'>" for i in page)
            )
            for n, page in enumerate(pages)
        ]
        write(tmp_path / path, pack(records))

    archive("site/crawl/a.warc.gz", [[0, 1], [2, 3]])
    archive("near/x.warc.gz", [[4, 5]])
    (tmp_path / "warc.paths").write_text("crawl/a.warc.gz\n")
    source = {"kind": "commoncrawl", "name": "cc", "format": "warc", "paths": ["warc.paths", "near/*.warc.gz"]}
    allowed = {**RECIPE["download"], "allow_hosts": [url.removeprefix("http://")]}
    write_recipe(tmp_path, sources=[{**source, "base": url}], download=allowed)
    done(tmp_path, "run")
    before = out(tmp_path)
    assert sql(tmp_path, "SELECT count(*) FROM samples WHERE kept") == [(6,)]

    archive("site/crawl/a.warc.gz", [[19]])  # what is out there does not change, so nobody looks
    archive("site/crawl/b.warc.gz", [[0, 6], [7]])
    archive("near/x.warc.gz", [[4, 5], [8]])
    archive("near/y.warc.gz", [[9]])
    (tmp_path / "warc.paths").write_text("crawl/a.warc.gz\ncrawl/b.warc.gz\n")
    asked.clear()
    manifest, _ = done(tmp_path, "refresh")
    appended(tmp_path, before, manifest)
    assert "/crawl/b.warc.gz" in asked
    assert "/crawl/a.warc.gz" not in asked
    assert sorted(path for path in set(asked) if path.startswith("/i/")) == [f"/i/{n}.jpg" for n in (6, 7, 8, 9)]
    assert sorted(sql(tmp_path, "SELECT caption, kept FROM samples")) == [
        (f"a photo of thing {n}", True) for n in range(10)
    ]

    asked.clear()
    manifest, said = done(tmp_path, "refresh")
    assert "nothing is new: snapshot 2 stays in force" in said
    assert asked == []


def film(folder, name, words, **options):
    video(folder / f"films/{name}.mp4", **options)
    (folder / f"films/{name}.txt").write_text(words)


def test_a_new_film_brings_its_frames_and_a_film_that_is_known_a_new_caption_alone(tmp_path):
    film(tmp_path, "a", "a film of a house")
    film(tmp_path, "b", "a film of a garden", size=(64, 96))
    source = {"kind": "video", "name": "films", "path": "films", "frames": "every", "seconds": 1}
    write_recipe(tmp_path, sources=[source])
    done(tmp_path, "run")
    before = out(tmp_path)
    frames = "SELECT source_video, source_time, caption, reason FROM samples ORDER BY ALL"
    old = [(f"{name}.mp4", float(n), words, None) for name, words in
           (("a", "a film of a house"), ("b", "a film of a garden")) for n in range(3)]  # fmt: skip
    assert sql(tmp_path, frames) == old

    film(tmp_path, "c", "a film of the sea", size=(128, 64))
    (tmp_path / "films/b.txt").write_text("the same film under another title")
    (tmp_path / "films/broken.mp4").write_bytes(b"no film at all")
    (tmp_path / "films/broken.txt").write_text("words beside what is no film")
    manifest, said = done(tmp_path, "refresh")
    appended(tmp_path, before, manifest)
    again = [("b.mp4", float(n), "the same film under another title", "duplicate: exact") for n in range(3)]
    assert sql(tmp_path, frames) == sorted(
        [*old, *again, *(("c.mp4", float(n), "a film of the sea", None) for n in range(3))]
    )
    assert "'broken.mp4' gives no frame" in said
    assert "films: 3 of 4 files are new or have changed" in said
    assert "films: 6 frames of 3 videos" in said

    video(tmp_path / "films/a.mp4", scene_frames=20)  # another film under the name and words of one that is known
    manifest, said = done(tmp_path, "refresh")
    assert "nothing is new: snapshot 2 stays in force" in said
    assert "films: 1 of 4 files are new or have changed" in said


def photo(folder, number, caption, looks_like=None):
    write(folder / f"photos/{number:02d}.jpg", picture(number if looks_like is None else looks_like))
    (folder / f"photos/{number:02d}.txt").write_text(caption)


def entries(folder, number):
    """entry -> (matches, kept, probability), as a snapshot records it."""
    rows = Dataset(str(folder / "runs/it")).read_part(f"snapshots/{number:06d}/balance.parquet").to_pylist()
    return {row["entry"]: (row["matches"], row["kept"], row["probability"]) for row in rows}


def test_a_balancing_judges_new_pairs_by_the_probabilities_of_the_last_full_selection(tmp_path):
    for number in range(7):
        photo(tmp_path, number, f"cat w{number} sleeps")
    for number in (7, 8):
        photo(tmp_path, number, f"dog w{number} runs")
    photo(tmp_path, 9, "bird w9 flies")
    (tmp_path / "entries.txt").write_text("cat\ndog\n")
    asked = {"kind": "metaclip", "limit": 3, "entries": ["entries.txt", "unigrams"], "min_count": 5, "seed": 1}
    source = {"kind": "folder", "name": "photos", "path": "photos"}
    write_recipe(tmp_path, sources=[source], select={**RECIPE["select"], "balance": asked})
    done(tmp_path, "run")
    before, first = out(tmp_path), entries(tmp_path, 1)
    judged = "SELECT uid, caption, reason FROM samples WHERE caption {} LIKE 'new %' ORDER BY uid"
    old = sql(tmp_path, judged.format("NOT"))
    assert {entry: (matches, chance) for entry, (matches, _, chance) in first.items()} == {
        "cat": (7, 3 / 7), "dog": (2, 1.0), "sleeps": (7, 3 / 7),
    }  # fmt: skip

    for number in (20, 21, 22):  # no more than the limit, so that among themselves all would stay
        photo(tmp_path, number, f"new cat w{number} sits")
    for number in (23, 24):  # with the others more than the limit, but an entry that drew all goes on to
        photo(tmp_path, number, f"new dog w{number} runs")
    for number in range(25, 29):  # a word that is frequent now
        photo(tmp_path, number, f"new bird w{number} flies")
    photo(tmp_path, 29, "new dog w29 has been seen before", looks_like=7)
    manifest, _ = done(tmp_path, "refresh")
    appended(tmp_path, before, manifest)
    assert sql(tmp_path, judged.format("NOT")) == old
    new = sql(tmp_path, judged.format(""))
    left = [(uid, caption) for uid, caption, _ in new if "w29" not in caption]
    uids, captions = ([*column] for column in zip(*left, strict=True))
    matches = balance.match(balance.automaton(list(first)), pa.array(captions))
    chances = np.array([chance for *_, chance in first.values()])
    drawn = balance.draw(matches, balance.keys(uids), balance.keys(list(first)), chances, 1)
    kept = dict(zip(captions, balance.keep(matches, drawn, len(uids), "drop").tolist(), strict=True))
    reasons = {caption: reason for _, caption, reason in new}
    assert reasons.pop("new dog w29 has been seen before") == "duplicate: exact"
    assert reasons == {caption: None if stays else "balance" for caption, stays in kept.items()}
    cats = [kept[f"new cat w{number} sits"] for number in (20, 21, 22)]
    assert 0 < sum(cats) < 3
    assert all(kept[f"new dog w{number} runs"] for number in (23, 24))
    second = entries(tmp_path, 2)
    assert second == {
        "cat": (10, first["cat"][1] + sum(cats), 3 / 7), "dog": (4, 4, 1.0), "sleeps": (7, first["sleeps"][1], 3 / 7),
    }  # fmt: skip
    mass = manifest["balance"]["mass"]
    assert (mass["pairs"], mass["unmatched"], mass["kept"]) == (19, 5, manifest["funnel"][-1]["left"])

    photo(tmp_path, 30, "new dog w30 runs")
    done(tmp_path, "refresh")
    assert {entry: chance for entry, (*_, chance) in entries(tmp_path, 3).items()} == {
        entry: chance for entry, (*_, chance) in first.items()
    }
    assert entries(tmp_path, 3)["dog"] == (5, 5, 1.0)

    (tmp_path / "entries.txt").write_text("cat\ndog\nbird\n")
    _, said = done(tmp_path, "refresh", code=5)
    assert "another 'select'" in said
    manifest, _ = done(tmp_path, "run")
    assert "base" not in manifest
    assert {entry: (matches, chance) for entry, (matches, _, chance) in entries(tmp_path, 4).items()}.items() >= {
        "bird": (5, 3 / 5), "dog": (5, 3 / 5),
    }.items()  # fmt: skip
