"""Frames of videos as samples: what a clip is, which of its frames are drawn, and that pooled frames are learnt."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import test_train_projector
import torch
from made_videos import video
from test_train_contrastive import job

from vlmdata import ask
from vlmdata.cli import app
from vlmdata.errors import DataError, InputError
from vlmdata.evaluate import material, run
from vlmdata.recipe import ProjectorJob
from vlmdata.train import checkpoint, data, order, projector, videos
from vlmdata.train.contrastive import build
from vlmdata.train.loop import train

models = test_train_projector.models  # a fixture
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "white": (255, 255, 255)}


def tar(path: Path, samples: list[tuple[bytes, str, str]]) -> str:
    """Samples of a picture's bytes, a caption and a url."""
    with tarfile.open(path, "w") as out:
        for number, (picture, caption, url) in enumerate(samples):
            members = {"jpg": picture, "txt": caption.encode(), "json": json.dumps({"url": url}).encode()}
            for extension, member in members.items():
                info = tarfile.TarInfo(f"{number:03d}.{extension}")
                info.size = len(member)
                out.addfile(info, io.BytesIO(member))
    return str(path)


def jpeg(colour: tuple[int, int, int]) -> bytes:
    return cv2.imencode(".jpg", np.full((40, 40, 3), colour[::-1], np.uint8))[1].tobytes()


GREY = jpeg((90, 90, 90))


def test_a_clip_is_the_frames_of_a_video_with_one_caption_in_the_order_of_time(tmp_path: Path) -> None:
    samples = [
        (GREY, "a", "v:/one.mp4#t=10.500"),
        (GREY, "a", "v:/two.mp4#t=0.000"),
        (GREY, "a", "v:/one.mp4#t=9.000"),
        (GREY, "b", "v:/one.mp4#t=11.000"),
        (GREY, "a", "https://example.org/picture.jpg"),
        (GREY, "a", "https://example.org/picture.jpg#t=now"),
        (GREY, "a", "v:/one.mp4#t=0.040"),
    ]
    made = videos.clips(data.index([tar(tmp_path / "a.tar", samples)], tmp_path))
    assert [clip.tolist() for clip in made] == [[6, 2, 0], [1], [3], [4], [5]]


def test_frames_are_drawn_from_equal_parts_of_a_clip() -> None:
    assert videos.drawn(12, 3, None).tolist() == [2, 6, 10]
    assert videos.drawn(12, 3, np.array([0.0, 0.99, 0.5])).tolist() == [0, 7, 10]
    assert videos.drawn(2, 4, None).tolist() == [0, 0, 1, 1]
    assert videos.drawn(1, 3, np.array([0.9, 0.9, 0.999])).tolist() == [0, 0, 0]


def test_a_batch_draws_frames_by_seed_and_cuts_them_alike(tmp_path: Path) -> None:
    gradient = np.tile(np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None], (64, 1, 3))
    same = cv2.imencode(".png", gradient)[1].tobytes()  # bytes decide what it is, not the member's name
    samples = [(same, "film", f"v:/a.mp4#t={t}.000") for t in range(8)]
    index = data.index([tar(tmp_path / "a.tar", samples)], tmp_path)
    found = build(job(frames=4, crop=0.5)).samples(index, tmp_path)
    assert len(found.uids) == 1
    assert found.uids[0].count("+") == 7
    one = found.batch(np.array([0]), order.seeds(0, 0, range(1)))["image"]
    assert one.shape == (1, 4, 32, 32, 3)
    assert (one[0] == one[0, :1]).all()  # one cut for all frames
    assert (one == found.batch(np.array([0]), order.seeds(0, 0, range(1)))["image"]).all()
    assert (one != found.batch(np.array([0]), order.seeds(0, 1, range(1)))["image"]).any()


def test_frames_that_cannot_be_decoded_are_replaced_from_the_same_clip(tmp_path: Path) -> None:
    samples = [
        (GREY[:80], "grey", "v:/a.mp4#t=0.000"),
        (GREY, "grey", "v:/a.mp4#t=1.000"),
        (GREY[:80], "lost", "v:/b.mp4#t=0.000"),
        (jpeg((255, 0, 0)), "red", "v:/c.mp4#t=0.000"),
    ]
    index = data.index([tar(tmp_path / "a.tar", samples)], tmp_path)
    made, broken = videos.clips(index), set[str]()
    place, pictures = videos.decoded(index, made, 0, 2, None, 0, broken)
    assert place == 0
    assert [int(p.mean()) for p in pictures] == [90, 90]
    place, pictures = videos.decoded(index, made, 1, 2, None, 0, broken)
    assert data.caption(index, place) == "red"  # the next clip, with its own caption
    assert broken == {"000", "002"}
    with pytest.raises(DataError, match="from 002 on"):
        videos.decoded(index, made[1:2], 0, 2, None, 0, broken)


def test_clips_without_a_frame_that_can_be_decoded_are_left_out_of_what_is_measured(tmp_path: Path) -> None:
    samples = [
        (GREY[:80], "lost", "v:/a.mp4#t=0.000"),
        (GREY[:80], "half", "v:/b.mp4#t=0.000"),
        (GREY, "half", "v:/b.mp4#t=1.000"),
        (GREY, "grey", "v:/c.mp4#t=0.000"),
    ]
    objective = build(job(frames=2))
    found = objective.samples(data.index([tar(tmp_path / "a.tar", samples)], tmp_path), tmp_path)
    assert found.whole.tolist() == [1, 2]
    assert found.broken == {"000", "001"}
    assert objective.evaluate(found, 8)["retrieval/n"] == 2


def test_the_vector_of_a_clip_is_the_mean_of_its_frames_vectors() -> None:
    model = build(job(frames=3)).model.eval()
    frames = torch.randint(0, 255, (2, 3, 32, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        apart = torch.stack([model.encode_image(frames[:, i]) for i in range(3)]).mean(0)
        torch.testing.assert_close(model.encode_image(frames), apart / apart.norm(dim=-1, keepdim=True))


def films(path: Path, broken: bool = False) -> str:
    """Every video shows two colours, one after the other; each colour is in several videos."""
    pairs = [(a, b) for number, a in enumerate(COLOURS) for b in list(COLOURS)[number + 1 :]]
    samples = [
        (jpeg(COLOURS[colour]), f"{a} and {b}", f"v:/{a}{b}.mp4#t={t}.000")
        for a, b in pairs
        for t, colour in enumerate((a, a, b, b))
    ]
    return tar(path, samples + ([(GREY[:80], "lost", "v:/lost.mp4#t=0.000")] if broken else []))


def test_what_only_several_frames_tell_is_learnt_from_several_frames(tmp_path: Path) -> None:
    shards = {"train": [films(tmp_path / "a.tar")], "test": [films(tmp_path / "b.tar", broken=True)]}
    final = train(job(frames=2, batch=6, steps=40), shards, str(tmp_path / "out"))
    assert final["train/samples"] == final["retrieval/n"] == 6
    assert final["retrieval/image_to_text/R@1"] == 1
    for captions in ("first", "all"):
        options = run.options(captions=captions, resamples=0, batch=4, tasks=("retrieval",))
        found = run.evaluate(str(tmp_path / "out"), shards["test"][0], options)
        assert (found["n"], found["broken"]) == (6, 1)
        assert found["retrieval"]["image_to_text"]["R@1"] == found["retrieval"]["text_to_image"]["R@1"] == 1


def test_a_limit_counts_whole_clips(tmp_path: Path) -> None:
    found = material.find(films(tmp_path / "a.tar"), run.options(limit=3), tmp_path, frames=2)
    assert [len(clip) for clip in videos.clips(found.pairs)] == [4, 4, 4]


def films_job(models: dict[str, str], **options: Any) -> ProjectorJob:
    return test_train_projector.job(models, **{"stage": 2, "language": "full", "batch": 6, "frames": 2, **options})


def test_a_projector_learns_what_only_several_frames_tell(
    models: dict[str, str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shards = {"train": [films(tmp_path / "a.tar")], "test": [films(tmp_path / "b.tar", broken=True)]}
    final = train(films_job(models, steps=80, lr=5e-3), shards, str(tmp_path / "out"))
    assert (final["train/samples"], final["projector/n"], final["test/broken"]) == (6, 6, 1)
    assert final["projector/preferred"] == 1
    assert final["projector/gap"] > 0.5
    trained = checkpoint.load(tmp_path / "out")
    shown = {name: np.full((40, 40, 3), colour, np.uint8) for name, colour in COLOURS.items()}
    assert trained.caption([[shown["red"], shown["blue"]], [shown["green"], shown["white"]]]) == [
        "red and blue",
        "green and white",
    ]
    found = run.evaluate(str(tmp_path / "out"), shards["test"][0], run.options(tasks=("captions",), resamples=0))
    assert (found["n"], found["broken"]) == (6, 1)
    assert found["captions"]["chrF"] > 90 > found["captions"]["chrF/shuffled"]
    film = video(tmp_path / "film.mp4", frames=60)  # a reddish second, then a dark green one
    two = ask.video(film, 2)
    assert [frame[50, 50].tolist()[0] > 100 for frame in two] == [True, False]
    short = video(tmp_path / "short.mp4", times=[0, 1000])
    assert [frame[50, 50].tolist() for frame in ask.video(short, 4)] == [
        frame[50, 50].tolist() for frame in ask.video(short, 2) for _ in range(2)
    ]
    app(["caption", str(tmp_path / "out"), str(film)], standalone_mode=False)
    assert capsys.readouterr().out.split() == trained.caption([two])[0].split()
    assert ask.answer(tmp_path / "out", film, "What is it?") == trained.answer(two, "What is it?")


def test_a_video_is_refused_by_a_model_of_single_pictures(models: dict[str, str], tmp_path: Path) -> None:
    train(films_job(models, frames=1, steps=1), {"train": [films(tmp_path / "a.tar")]}, str(tmp_path / "out"))
    film = video(tmp_path / "film.mp4", frames=3)
    with pytest.raises(InputError, match=r"film.mp4: .*out has learnt from single pictures"):
        ask.captions(tmp_path / "out", [film])
    (tmp_path / "no.mp4").write_bytes(b"just words")
    with pytest.raises(InputError, match=r"no.mp4: "):
        ask.video(tmp_path / "no.mp4", 2)


def test_the_tokens_of_a_clip_are_the_mean_of_its_drawn_frames(models: dict[str, str], tmp_path: Path) -> None:
    index = data.index([films(tmp_path / "a.tar", broken=True)], tmp_path)
    objective = projector.build(films_job(models))
    samples = objective.samples(index, tmp_path)
    assert len(samples.uids) == 6
    features = samples.features.astype(np.float32)
    seeds = order.seeds(0, 0, range(6))
    drawn = samples.batch(np.arange(6), seeds)["image"].numpy()
    for clip in range(6):
        first, second = (4 * clip + videos.drawn(4, 2, draw) for draw in (None, order.uniform(seeds, 2)[clip]))
        np.testing.assert_array_equal(samples.image(np.array([clip]))[0], features[first].mean(0))
        np.testing.assert_array_equal(drawn[clip], features[second].mean(0))
    alone = projector.build(films_job(models, frames=1)).samples(index, tmp_path)
    assert len(alone.uids) == 24
    assert len(list((tmp_path / "features").glob("*-values.npy"))) == 1  # frames are read once, however they are used


def test_a_killed_training_on_videos_ends_with_the_same_bits(models: dict[str, str], tmp_path: Path) -> None:
    shards = {"train": [films(tmp_path / "a.tar")], "test": [films(tmp_path / "b.tar")]}
    options = films_job(models, steps=4, save_every=2, batch=3)
    whole = train(options, shards, str(tmp_path / "whole"))

    def kill(step: int, metrics: dict[str, float]) -> None:
        if step == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(options, shards, str(tmp_path / "killed"), on_step=kill)
    assert train(options, shards, str(tmp_path / "killed"), resume=True) == whole
    one, other = (tmp_path / name / "checkpoints" / "4" / "model.safetensors" for name in ("whole", "killed"))
    assert one.read_bytes() == other.read_bytes()
