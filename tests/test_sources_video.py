"""Videos as sources: which frames become rows, with which words, and what is told of videos that give none."""

import json
import logging
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from made_videos import video

from vlmdata import ingest, snapshot, sources
from vlmdata.catalog import connect, query
from vlmdata.dataset import Dataset
from vlmdata.errors import DataError, InputError
from vlmdata.pipelines import download, select, shards, signals
from vlmdata.plan import make_plan
from vlmdata.recipe import Recipe, VideoSource
from vlmdata.sources.scenes import Scenes, every, thin


def rows(path: Path, **options: object) -> list[dict]:
    source = VideoSource.model_validate({"kind": "video", "name": "films", "path": str(path), **options})
    sources.check(source)
    schema = pa.schema([*sources.ROWS, *sources.signals(source)])
    found = pa.Table.from_batches(list(sources.read(source, str(path))), schema).to_pylist()
    for row in found:
        assert row["url"].endswith(f"#t={row['source_time']:.3f}")
        assert (row["source"], row["source_id"], row["page_url"]) == ("films", row["source_video"], None)
    return found


def times(found: list[dict]) -> list[float]:
    return [row["source_time"] for row in found]


def with_text(path: Path, text: str = "a film of some things", **options: object) -> Path:
    video(path, **options).with_suffix(".txt").write_text(text, "utf-8")
    return path


def test_every_so_many_seconds_a_frame(tmp_path: Path) -> None:
    with_text(tmp_path / "v.mp4")
    assert times(rows(tmp_path, frames="every", seconds=1)) == [0.0, 1.0, 2.0]
    assert times(rows(tmp_path, frames="every", seconds=0.4)) == [0.0, 0.4, 0.8, 1.2, 1.6, 2.0, 2.4, 2.8]
    assert times(rows(tmp_path, frames="every", seconds=0.4, max_frames=3)) == [0.4, 1.6, 2.4]
    with_text(tmp_path / "v.mp4", times=[0, 700, 1900, 2100, 2200, 9300])
    assert times(rows(tmp_path, frames="every", seconds=1)) == [0.0, 1.9, 2.1, 9.3]


@pytest.mark.parametrize("name", ["v.mp4", "v.webm", "v.avi"])
def test_the_middle_frame_of_each_scene(tmp_path: Path, name: str) -> None:
    codec = {"v.mp4": "libx264", "v.webm": "libvpx-vp9", "v.avi": "mpeg4"}[name]
    with_text(tmp_path / name, codec=codec, scene_frames=45, frames=180)
    assert times(rows(tmp_path)) == pytest.approx([0.75, 2.25, 3.75, 5.25], abs=0.1)


def test_a_pan_and_a_flash_are_no_scenes() -> None:
    wide = np.random.default_rng(0).integers(0, 256, (36, 64 * 5), np.uint8)  # each step changes a third of the range
    pan = Scenes(10.0)
    for number in range(60):
        pan.show(number * 40, np.ascontiguousarray(wide[:, number * 4 : number * 4 + 64]))
    assert pan.chosen() == [1200]
    flash = Scenes(10.0)
    for number in range(60):
        flash.show(number * 40, np.full((36, 64), 250 if number == 5 else 20, np.uint8))
    assert len(flash.chosen()) == 1  # a scene of less than half a second is none


def test_frames_are_chosen_by_time_alone() -> None:
    assert list(every([40, 0, 2100, 1999, 2000, -30, 9000], 2)) == [0, 2000, 9000]
    assert list(every(range(0, 100, 10), 0.001)) == list(range(0, 100, 10))
    assert not every([-1], 2)
    assert thin(list(range(10)), 3) == [1, 5, 8]
    assert thin([1, 2], 3) == thin([1, 2], None) == [1, 2]


def test_a_thousand_frames_a_second_are_not_held_to_choose_of_them() -> None:
    code = """
import tracemalloc
from vlmdata.sources.scenes import every
backwards = (time - time % 1000 + 999 - time % 1000 for time in range(400_000))
tracemalloc.start()
assert list(every(backwards, 1)) == list(range(0, 400_000, 1000))
print(tracemalloc.get_traced_memory()[1])
"""  # in a process of its own, where no other thread needs memory
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(told.stdout) < 100_000  # bytes


def test_words_are_those_beside_the_video(tmp_path: Path) -> None:
    with_text(tmp_path / "a/text film.mp4", "From a  text")
    about = {"title": "A boat", "keywords": ["sea", "sail"], "license": "CC0"}
    video(tmp_path / "b.mkv").with_suffix(".json").write_text(json.dumps(about))
    (tmp_path / "b.vtt").write_text("WEBVTT\n\n00:01.000 --> 00:02.000\nthe boat <i>sinks</i>\n")
    video(tmp_path / "c.mp4").with_suffix(".srt").write_text("1\n00:00:00,000 --> 00:00:00,900\nHello\n")
    video(tmp_path / "silent.mp4")
    found = rows(tmp_path, frames="every", seconds=1)
    assert [(row["url"], row["caption"], row["caption_from"], row["context"], row["license"]) for row in found] == [
        *((f"films:/a/text%20film.mp4#t={n}.000", "From a text", "file:txt", None, None) for n in range(3)),
        ("films:/b.mkv#t=0.000", "A boat", "title", "sea, sail", "CC0"),
        ("films:/b.mkv#t=1.000", "the boat sinks", "subtitle", "A boat", "CC0"),
        ("films:/b.mkv#t=2.000", "A boat", "title", "sea, sail", "CC0"),
        ("films:/c.mp4#t=0.000", "Hello", "subtitle", None, None),
    ]
    assert found[0]["source_video"] == "a/text film.mp4"


@pytest.mark.parametrize("ending", ["txt", "json", "vtt", "srt"])
def test_words_beside_a_video_are_no_links_out_of_the_folder(
    tmp_path: Path, ending: str, caplog: pytest.LogCaptureFixture
) -> None:
    timed = "00:00:00.000 --> 00:00:09.000\na secret\n"
    (tmp_path / "secret").write_text(timed if ending in ("vtt", "srt") else '{"caption": "a secret"}')
    with_text(tmp_path / "films/b.mp4", "its own words")
    video(tmp_path / "films/a.mp4").with_suffix(f".{ending}").symlink_to(tmp_path / "secret")
    assert {row["caption"] for row in rows(tmp_path / "films", frames="every")} == {"its own words"}
    assert "films: 1 files with captions are not read: the path leads out of the source's folder" in caplog.messages


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl"])
def test_a_list_names_files_in_its_own_folder(tmp_path: Path, form: str) -> None:
    video(tmp_path / "in/v 1.mp4")
    video(tmp_path / "in/v2.mp4")
    (tmp_path / "in/v2.vtt").write_text("WEBVTT\n\n00:00.000 --> 00:09.000\nnot of the list\n")
    listed = [
        ("v 1.mp4", "one"),
        ("v 1.mp4", "two"),
        ("v 1.mp4", "one"),
        ("v2.mp4", "three"),
        ("", "x"),
        ("v2.mp4", ""),
    ]
    if form == "jsonl":
        text = "".join(json.dumps({"file": path, "text": caption}) + "\n" for path, caption in listed)
    else:
        mark = {"csv": ",", "tsv": "\t"}[form]
        text = "".join(f"{path}{mark}{caption}\n" for path, caption in [("file", "text"), *listed])
    (tmp_path / f"in/list.{form}").write_text(text)
    found = rows(tmp_path / f"in/list.{form}", column="file", caption="text", frames="every", seconds=60)
    assert [(row["url"], row["caption"], row["caption_from"]) for row in found] == [
        ("films:/v%201.mp4#t=0.000", "one", "text"),
        ("films:/v%201.mp4#t=0.000", "two", "text"),
        ("films:/v2.mp4#t=0.000", "three", "text"),
    ]


def test_videos_that_give_no_frame_are_named_with_the_reason_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    video(tmp_path / "secret.mp4")
    root = tmp_path / "root"
    good = video(root / "good.mp4").read_bytes()
    video(root / "long.mp4", frames=40, fps=1)
    video(root / "large.avi", codec="mpeg4", size=(256, 256), frames=3)
    (root / "heavy.mp4").write_bytes(good + bytes(100_000))
    video(root / "codec.mkv", codec="ffv1", frames=3)
    (root / "cut.mp4").write_bytes(good[:-500])
    (root / "text.mp4").write_text("#EXTM3U\n#EXTINF:1,\n../secret.mp4\n")
    (root / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    os.mkfifo(root / "pipe.mp4")
    (root / "empty.mp4").touch()
    wrong = {
        "long.mp4": "longer than 30 s",
        "large.avi": "256 x 256 pixels; the limit is 10000",
        "heavy.mp4": "more than 100000 bytes",
        "codec.mkv": "its codec is not decoded here",
        "cut.mp4": "end of file",
        "text.mp4": "invalid data",
        "link.mp4": "leads out of the source's folder",
        "../secret.mp4": "leads out of the source's folder",
        str(tmp_path / "secret.mp4"): "leads out of the source's folder",
        "pipe.mp4": "not a plain file",
        "missing.mp4": "no such file",
        "empty.mp4": "it is empty",
        "\ud83d.mp4": "no such file",
    }
    lines = [json.dumps({"path": path, "caption": "words"}) for path in ("good.mp4", *wrong)]
    (root / "list.jsonl").write_text("\n".join(lines))
    limits = {"max_seconds": 30, "max_pixels": 10_000, "max_bytes": 100_000}
    with caplog.at_level(logging.INFO):
        found = rows(root / "list.jsonl", frames="every", seconds=2, **limits)
    assert times(found) == [0.0, 2.0]
    told = [record.getMessage() for record in caplog.records]
    for path, reason in wrong.items():
        name = repr(path.replace("\ud83d", "\ufffd"))
        assert any(f"{name} gives no frame: " in line and reason in line for line in told), (path, told)
    assert f"films: {len(wrong)} of {len(wrong) + 1} videos give no frame" in told
    assert "films: 2 frames of 14 videos" in told
    (root / "list.jsonl").write_text("\n".join(lines[1:]))
    with pytest.raises(DataError, match="none of the videos gives a frame"):
        rows(root / "list.jsonl", **limits)


def test_the_rows_are_the_same_with_one_worker_and_with_several(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(12):
        with_text(tmp_path / "films" / f"{number}.mp4", f"film number {number}", scene_frames=20 + number)
    source = VideoSource(kind="video", path=str(tmp_path / "films"))
    hashes = set()
    for workers in (1, 4):
        monkeypatch.setattr(os, "cpu_count", lambda workers=workers: workers)
        found = ingest.read_source(Dataset(str(tmp_path / f"data{workers}")), source, "key")
        assert found.rows > 30
        hashes.add(found.sha256)
    assert len(hashes) == 1


def test_a_file_that_lies_about_its_length_is_found_out(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with_text(tmp_path / "v.ts", times=None, frames=60, fps=2)
    with_text(tmp_path / "w.ts")
    for mode in ("scene", "every"):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("vlmdata.frames.Video.seconds", None)
            assert {row["source_video"] for row in rows(tmp_path, frames=mode, max_seconds=10)} == {"w.ts"}


def test_what_is_refused_before_anything_runs(tmp_path: Path) -> None:
    for path, reason in (
        (tmp_path / "none", "no folder or list"),
        (tmp_path, "holds no video"),
    ):
        with pytest.raises(InputError, match=reason):
            rows(path)
    video(tmp_path / "v.mp4")
    with pytest.raises(InputError, match=r"none of the 1 videos .* has words"):
        rows(tmp_path)
    (tmp_path / "list.csv").write_text("file,caption\nv.mp4,words\n")
    with pytest.raises(InputError, match=r"sources\.films\.column: .* has no column 'path'"):
        rows(tmp_path / "list.csv")


def test_frames_pass_the_same_stages_as_images_and_know_their_video_in_the_shards(tmp_path: Path) -> None:
    with_text(tmp_path / "films/a film.mp4", "a film of a house and a garden")
    with_text(tmp_path / "films/b.webm", "another film of other things", codec="libvpx-vp9", size=(64, 96))
    (tmp_path / "films/b.vtt").write_text("WEBVTT\n\n00:02.000 --> 00:03.000\na boat on the sea\n")
    recipe = Recipe.model_validate(
        {
            "dataset": str(tmp_path / "data"),
            "sources": [{"kind": "video", "name": "films", "path": str(tmp_path / "films"), "threshold": 8}],
            "download": {"size": 48},
            "signals": ["image"],
            "select": {"rules": {"later": "source_time >= 1"}},
            "shards": {"samples": 10, "columns": ["source_video", "source_time", "sharpness"]},
            "parts": {"rows": 3},
        }
    )
    rows, documents = publish(recipe)
    samples = {(row["source_video"], row["source_time"]): row for row in rows}
    assert list(samples) == [(name, time) for name in ("a film.mp4", "b.webm") for time in (0.5, 1.5, 2.5)]
    assert {row["download_status"] for row in rows} == {"success"}
    assert samples["b.webm", 2.5]["caption"] == "a boat on the sea"
    assert [samples["b.webm", time]["reason"] for time in (0.5, 1.5)] == ["later", None]
    assert (samples["b.webm", 1.5]["width"], samples["b.webm", 1.5]["height"]) == (48, 72)
    assert len(documents) == 4
    for document in documents:
        assert document["url"].endswith(f"#t={document['source_time']:.3f}")
        assert isinstance(document["source_time"], float)
        assert document["source_video"] in ("a film.mp4", "b.webm")


def publish(recipe: Recipe) -> tuple[list[dict], list[dict]]:
    """All stages to a snapshot: (what SQL says of the samples, the JSON of the shards' samples)."""
    plan, dataset = make_plan(recipe), Dataset(recipe.dataset)
    (source,) = recipe.sources
    found = ingest.read_source(dataset, source, plan.found[source.name])
    pairs = ingest.unite(dataset, [found], plan.pairs, recipe.parts.rows, None, sources.signals(source))
    tables = {"pairs": pairs, "source_signals": dataset.read_table("source_signals", plan.pairs)}
    tables["images"] = download.run(plan, dataset, pairs)
    tables |= signals.run(plan, dataset, tables)
    selection = select.run(plan, dataset, tables, 1)
    written = shards.run(plan, dataset, tables, selection, 1)
    dataset.publish(snapshot.manifest(plan, 1, tables, selection.samples, written, []))
    samples = query(connect(dataset), "SELECT * FROM samples ORDER BY source_video, source_time").to_arrow_table()
    (tar,) = [shard["path"] for shard in dataset.latest()["shards"] if shard["path"].endswith(".tar")]
    with dataset.open(tar) as file, tarfile.open(fileobj=file) as shard:
        documents = [json.load(shard.extractfile(name)) for name in shard.getnames() if name.endswith(".json")]
    return samples.to_pylist(), documents
