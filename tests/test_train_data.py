"""Shards read by position: what is indexed, how it is shuffled, decoded and cut, and what is refused."""

import io
import json
import logging
import os
import struct
import tarfile
import tracemalloc
from pathlib import Path

import cv2
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from vlmdata import ask
from vlmdata.errors import DataError, InputError
from vlmdata.evaluate import labelled
from vlmdata.recipe import Evaluation
from vlmdata.train import data, order, source


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
    epochs = [np.concatenate([order.positions(20, 5, 3, epoch * 4 + i) for i in range(4)]) for epoch in range(3)]
    assert all(sorted(epoch) == list(range(20)) for epoch in epochs)
    assert not (epochs[0] == epochs[1]).all()
    assert (order.positions(20, 5, 3, 6) == epochs[1][10:15]).all()
    assert not (order.positions(20, 5, 4, 6) == epochs[1][10:15]).all()


def test_a_batch_larger_than_the_data_is_refused() -> None:
    with pytest.raises(InputError, match="smaller"):
        order.positions(4, 5, 0, 0)


def test_sources_that_are_mixed_share_every_batch_by_weight_and_run_through_epochs_of_their_own() -> None:
    own, other = np.arange(10), np.arange(10, 14)
    batches = [order.mixed_positions([own, other], [1.0, 0.5], 6, 7, number) for number in range(10)]
    assert all((batch < 10).sum() == 4 for batch in batches)
    drawn = np.concatenate(batches)
    for places, n in ((own, 10), (other, 4)):
        mine = drawn[np.isin(drawn, places)]
        epochs = [mine[start : start + n] for start in range(0, len(mine) - n + 1, n)]
        assert all(sorted(epoch) == list(places) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 1
    assert (order.mixed_positions([own, other], [1.0, 0.5], 6, 7, 3) == batches[3]).all(), "by number alone"
    assert (order.mixed_positions([own], [1.0], 5, 7, 1) == order.positions(10, 5, 7, 1)).all()


def test_shares_that_are_no_whole_numbers_are_kept_over_the_batches() -> None:
    sources = [np.arange(50), np.arange(50, 90), np.arange(90, 100)]
    drawn = np.concatenate([order.mixed_positions(sources, [3, 2, 0.9], 8, 0, number) for number in range(40)])
    assert len(drawn) == 320
    for places, weight in zip(sources, [3, 2, 0.9], strict=True):
        assert np.isin(drawn, places).sum() == pytest.approx(320 * weight / 5.9, abs=1)


@pytest.mark.parametrize("weights", [[1.0, 0.01], [0.01, 1.0]])
def test_a_source_too_small_for_its_share_of_a_batch_is_refused(weights: list[float]) -> None:
    with pytest.raises(InputError, match="mix: of a batch of 8"):
        order.mixed_positions([np.arange(100), np.arange(100, 104)], weights, 8, 0, 0)


def test_a_sample_has_its_seed_whichever_process_draws_it() -> None:
    whole = order.seeds(3, 11, range(8))
    assert len(set(whole.tolist())) == 8
    assert (np.concatenate([order.seeds(3, 11, range(4)), order.seeds(3, 11, range(4, 8))]) == whole).all()
    assert not np.isin(order.seeds(3, 12, range(8)), whole).any()
    numbers = order.uniform(np.concatenate([order.seeds(0, number, range(64)) for number in range(200)]), 2)
    assert numbers.min() >= 0
    assert numbers.max() < 1
    np.testing.assert_allclose(np.histogram(numbers, 10, (0, 1))[0], 2560, rtol=0.1)
    assert abs(np.corrcoef(numbers.T)[0, 1]) < 0.03
    assert (order.uniform(whole, 3)[:, :2] == order.uniform(whole, 2)).all()


def test_a_parquet_shard_is_read_as_its_samples_are(tmp_path: Path) -> None:
    pictures = [jpeg((20 * i, 10, 10)) for i in range(5)]
    uids = [f"{i:032x}" for i in range(3)] + ["../../etc/x", "f_2"]
    rows = {"uid": uids, "jpg": pictures, "txt": [f"caption {i}" for i in range(4)] + [None], "n": range(5)}
    path = tmp_path / "train-0000000.parquet"
    pq.write_table(pa.table({name: list(values) for name, values in rows.items()}), path)
    shards = data.index([str(path)], tmp_path / "out")
    assert shards.uids == (*uids[:3], "000000003", "f_2"), "what is no uid of ours gets into no file's name"
    assert [data.caption(shards, i) for i in range(5)] == [f"caption {i}" for i in range(4)] + [""]
    assert data.meta(shards, 3)["n"] == 3
    spooled = list((tmp_path / "out" / "spool").iterdir())
    assert len(spooled) == 1
    before = spooled[0].stat().st_mtime_ns
    data.index([str(path)], tmp_path / "out")
    assert spooled[0].stat().st_mtime_ns == before, "made once"


@pytest.mark.parametrize("content", [b"PAR1 no table PAR1", b""])
def test_a_parquet_shard_that_is_damaged_is_named(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "bad.parquet"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"bad\.parquet"):
        data.index([str(path)], tmp_path)


def test_the_next_picture_stands_in_for_one_that_cannot_be_decoded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "a.tar"
    path.write_bytes(tar({"a.jpg": jpeg((1, 2, 3))[:80], "a.txt": b"a", "b.jpg": jpeg((1, 2, 3)), "b.txt": b"b"}))
    shards = data.index([str(path)], tmp_path)
    broken: set[str] = set()
    with caplog.at_level(logging.WARNING):
        assert [data.decodable(shards, place, 0, broken)[0] for place in (0, 1, 0)] == [1, 1, 1]
    assert broken == {"a"}
    assert caplog.text.count("a cannot be decoded") == 1
    assert "a.tar" in caplog.text


def test_several_indexes_are_one(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    first, second = data.index([write(tmp_path, 3)], tmp_path), data.index([write(tmp_path / "one", 2)], tmp_path)
    both = data.joined([first, second])
    assert both.uids == (*first.uids, *second.uids)
    assert [data.caption(both, i) for i in (2, 3, 4)] == ["caption 2 é", "caption 0 é", "caption 1 é"]


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


def test_a_small_file_that_says_it_is_a_huge_picture_takes_no_memory(tmp_path: Path) -> None:
    huge = b"\x89PNG\r\n\x1a\n" + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 20_000, 20_000, 8, 2, 0, 0, 0)
    tracemalloc.start()
    assert data.decoded(huge + b"\0" * 1000) is None
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()
    assert data.decoded(b"BM" + b"\0" * 1000) is None


def test_json_that_cannot_be_read_is_skipped_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    members = {"a.jpg": jpeg((1, 2, 3)), "a.txt": b"a", "a.json": b"[" * 100_000}
    members |= {"b.jpg": jpeg((1, 2, 3)), "b.txt": b"b", "b.json": b"[1]"}
    path = tmp_path / "a.tar"
    path.write_bytes(tar(members))
    shards = data.index([str(path)], tmp_path)
    with caplog.at_level(logging.WARNING):
        assert [data.meta(shards, place) for place in (0, 1, 0)] == [{}, {}, {}]
    assert caplog.text.count("a.json is no JSON object") == 1
    assert "a.tar" in caplog.text


def test_of_a_folder_only_shards_are_taken_and_a_tar_before_its_parquet(tmp_path: Path) -> None:
    for name in ("00000.tar", "00000.parquet", "00000_stats.json", "00001.parquet"):
        (tmp_path / name).write_bytes(b"")
    found = source.shards(str(tmp_path))
    assert [Path(path).name for path in found["train"]] == ["00000.tar", "00001.parquet"]


def test_files_that_changed_have_another_identity(tmp_path: Path) -> None:
    one = data.index([write(tmp_path)], tmp_path)
    first = data.identity(one)
    assert data.identity(data.index(one.tars, tmp_path)) == first
    os.utime(one.tars[0], (1, 1))
    assert data.identity(data.index(one.tars, tmp_path)) != first


def test_none_is_paired_with_itself() -> None:
    for n in (2, 3, 50):
        other = order.derangement(n, 7)
        assert sorted(other) == list(range(n))
        assert (other != np.arange(n)).all()
    assert list(order.derangement(1, 0)) == [0]


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_a_picture_is_turned_as_its_exif_says(tmp_path: Path, kind: str) -> None:
    """In shards, in the files that `ask` and `caption` read, and among pictures with classes."""
    shown = np.zeros((40, 60, 3), np.uint8)
    shown[:, 40:] = 250  # bright on the right
    for turn, lying in {1: shown, 3: shown[::-1, ::-1], 6: np.rot90(shown), 8: np.rot90(shown, -1)}.items():
        exif = Image.Exif()
        exif[0x0112] = turn
        out = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(lying)).save(out, kind, exif=exif)
        (tmp_path / "red").mkdir(exist_ok=True)
        (tmp_path / "blue").mkdir(exist_ok=True)
        for name in ("red", "blue"):
            (tmp_path / name / "x.jpg").write_bytes(out.getvalue())
        found = [
            data.decoded(out.getvalue(), 30),
            ask.picture(tmp_path / "red" / "x.jpg"),
            labelled.from_folder(tmp_path, Evaluation()).read(0, 0),
        ]
        for picture in found:
            assert picture is not None
            height, width = picture.shape[:2]
            assert width * 40 == height * 60, turn
            assert picture[:, width * 3 // 4 :].mean() > 200 > 50 > picture[:, : width // 2].mean(), turn


def test_every_kind_that_the_download_takes_is_read_and_what_is_clear_is_white() -> None:
    red = Image.new("RGB", (30, 20), (250, 0, 0))
    for kind in ("GIF", "BMP", "TIFF", "AVIF"):
        out = io.BytesIO()
        red.save(out, kind)
        picture = data.decoded(out.getvalue())
        assert picture is not None, kind
        assert np.abs(picture.mean((0, 1)) - (250, 0, 0)).max() < 8, kind
    for kind, image in {"JPEG": red.convert("CMYK"), "PNG": Image.new("RGBA", (30, 20), (0, 0, 0, 0))}.items():
        out = io.BytesIO()
        image.save(out, kind)
        picture = data.decoded(out.getvalue())
        assert picture is not None, kind
        assert picture[..., 0].mean() > 240, kind
