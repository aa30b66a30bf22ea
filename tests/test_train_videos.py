"""Frames of videos as samples: what a clip is, which of its frames are drawn, and that pooled frames are learnt."""

import io
import json
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from test_train_contrastive import job

from vlmdata.errors import DataError
from vlmdata.train import data, order, videos
from vlmdata.train.contrastive import build
from vlmdata.train.loop import train

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


def test_what_only_several_frames_tell_is_learnt_from_several_frames(tmp_path: Path) -> None:
    """Every video shows two colours, one after the other; each colour is in several videos."""
    pairs = [(a, b) for number, a in enumerate(COLOURS) for b in list(COLOURS)[number + 1 :]]
    samples = [
        (jpeg(COLOURS[colour]), f"{a} and {b}", f"v:/{a}{b}.mp4#t={t}.000")
        for a, b in pairs
        for t, colour in enumerate((a, a, b, b))
    ]
    shards = [tar(tmp_path / "a.tar", samples)]
    final = train(job(frames=2, batch=6, steps=40), {"train": shards, "test": shards}, str(tmp_path / "out"))
    assert final["train/samples"] == final["retrieval/n"] == 6
    assert final["retrieval/image_to_text/R@1"] == 1
