"""Shards read by position: what is indexed, how it is shuffled, decoded and cut, and what is refused."""

import io
import json
import logging
import tarfile
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pytest

from vlmdata.errors import DataError, InputError
from vlmdata.train import data


def jpeg(colour: tuple[int, int, int], height: int = 60, width: int = 80) -> bytes:
    """A JPEG of one colour, RGB."""
    return cv2.imencode(".jpg", np.full((height, width, 3), colour[::-1], np.uint8))[1].tobytes()


def tar(members: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as out:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            out.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def write(folder: Path, n: int = 10) -> str:
    members: dict[str, bytes] = {}
    for i in range(n):
        members[f"u{i}.jpg"] = jpeg((10 * i, 200, 30))
        members[f"u{i}.txt"] = f"caption {i} é".encode()
        members[f"u{i}.json"] = json.dumps({"n": i}).encode()
    path = folder / "train-0000000.tar"
    path.write_bytes(tar(members))
    return str(path)


def test_every_sample_is_found_and_read_by_its_position(tmp_path: Path) -> None:
    shards = data.index([write(tmp_path)], tmp_path)
    assert shards.uids == tuple(f"u{i}" for i in range(10))
    for i in (7, 0, 9):
        assert data.caption(shards, i) == f"caption {i} é"
        assert data.meta(shards, i) == {"n": i}
        picture = data.image(shards, i)
        assert picture is not None
        assert picture.shape == (60, 80, 3)
        assert np.abs(picture[30, 40].astype(int) - [10 * i, 200, 30]).max() <= 3  # RGB, not BGR


def test_shards_are_read_through_fsspec() -> None:
    with fsspec.open("memory://shards/a.tar", "wb") as file:
        file.write(
            tar({"x.png": cv2.imencode(".png", np.full((5, 4, 3), 7, np.uint8))[1].tobytes(), "x.txt": b"seven"})
        )
    shards = data.index(["memory://shards/a.tar"], Path())
    assert data.caption(shards, 0) == "seven"
    picture = data.image(shards, 0)
    assert picture is not None
    assert (picture == 7).all()


def test_samples_without_image_or_caption_are_left_out_and_counted(
    caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tar({"a.jpg": jpeg((1, 2, 3)), "b.jpg": jpeg((1, 2, 3)), "b.txt": b"b", "c.txt": b"c"}))
    with caplog.at_level(logging.WARNING):
        assert data.index([str(path)], tmp_path).uids == ("b",)
    assert "2 samples" in caplog.text
    assert ": a" in caplog.text


def test_a_tar_that_is_cut_off_is_named(tmp_path: Path) -> None:
    whole = Path(write(tmp_path))
    cut = tmp_path / "cut.tar"
    cut.write_bytes(whole.read_bytes()[:-11_000])
    with pytest.raises(DataError, match=r"cut\.tar"):
        data.index([str(cut)], tmp_path)


def test_every_epoch_holds_every_sample_once_in_another_order() -> None:
    epochs = [np.concatenate([data.positions(20, 5, 3, epoch * 4 + i) for i in range(4)]) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert not (epochs[0] == epochs[1]).all()
    assert (data.positions(20, 5, 3, 6) == epochs[1][10:15]).all()
    assert not (data.positions(20, 5, 4, 6) == epochs[1][10:15]).all()


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(InputError, match="smaller"):
        data.positions(4, 5, 0, 0)


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_reading_ahead_keeps_the_order(workers: int) -> None:
    assert list(data.ahead(lambda n: n * n, range(5, 30), workers)) == [n * n for n in range(5, 30)]


def test_an_error_while_reading_ahead_reaches_the_reader() -> None:
    def work(number: int) -> int:
        if number == 3:
            raise DataError("here")
        return number

    with pytest.raises(DataError, match="here"):
        list(data.ahead(work, range(9), 2))


def test_a_square_is_the_centre_or_a_crop_that_the_seed_determines() -> None:
    picture = np.zeros((40, 80, 3), np.uint8)
    picture[:, 20:60] = 255
    assert (data.square(picture, 16) == 255).all()
    crops = [data.square(picture, 16, np.random.default_rng(seed).random(3), 0.5) for seed in (1, 1, 2)]
    assert (crops[0] == crops[1]).all()
    assert (crops[0] != crops[2]).any()


def test_bytes_that_are_no_picture_give_none(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tar({"a.jpg": jpeg((1, 2, 3))[:80], "a.txt": b"a", "b.png": b"<svg/>", "b.txt": b"b"}))
    shards = data.index([str(path)], tmp_path)
    assert data.image(shards, 0) is None
    assert data.image(shards, 1) is None


def test_a_jpeg_comes_at_reduced_scale_but_never_below_what_is_asked(tmp_path: Path) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tar({"a.jpg": jpeg((9, 9, 9), 512, 1024), "a.txt": b"a"}))
    shards = data.index([str(path)], tmp_path)
    picture = data.image(shards, 0, shorter=96)
    assert picture is not None
    assert 96 <= picture.shape[0] < 256
