"""Frames of local videos: the right one, the same one wherever decoding begins, and a status for what is none."""

import hashlib
import io
import os
import socket
from collections import Counter
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pytest
from hostile import send, serve
from made_videos import video
from PIL import Image
from test_download import fetch, statuses

from vlmdata.download.video import Frames, frame_of, in_order
from vlmdata.frames import Video

KINDS = {
    "b-frames.mp4": {},
    "one-keyframe.mkv": {"gop": 1000},
    "open-gop.mkv": {"x264-params": "open-gop=1:bframes=3:keyint=15:min-keyint=15:scenecut=0"},
    "vp9.webm": {"codec": "libvpx-vp9", "deadline": "realtime", "cpu-used": "8"},
    "hidden-frames.webm": {"codec": "libvpx", "auto-alt-ref": "1", "lag-in-frames": "16", "cpu-used": "4"},
    "no-pts.avi": {"codec": "mpeg4"},
    "late-start.ts": {},
    "no-seek-points.ts": {"codec": "mpeg2video"},
    "variable-rate.mov": {"times": [0, 33, 40, 500, 520, 2000, 2100, 2500, 9000, 9001, 9002, 12000]},
    "wmv2.wmv": {"codec": "wmv2"},
}


def brute_force(path: Path) -> dict[int, np.ndarray]:
    """Milliseconds -> RGB pixels, by nothing but decoding from the first frame to the last."""
    with av.open(str(path)) as file:
        start = file.start_time / 1e6
        return {
            round((float(frame.pts * frame.time_base) - start) * 1000): frame.to_ndarray(format="rgb24")
            for frame in file.decode(video=0)
        }


def pixels(body: bytes | None) -> np.ndarray:
    assert body is not None
    return np.asarray(Image.open(io.BytesIO(body)).convert("RGB")).astype(int)


@pytest.mark.parametrize("kind", KINDS)
def test_a_frame_is_the_one_of_its_time_in_whatever_order_frames_are_asked_for(tmp_path: Path, kind: str) -> None:
    expected = brute_force(video(tmp_path / kind, **KINDS[kind]))
    assert len(expected) == len(KINDS[kind].get("times", range(90)))
    times = sorted(expected)
    shuffled = np.random.default_rng(0).permutation(times).tolist()
    bodies: dict[int, set[str]] = {}
    for order in (times, times[::13], shuffled[:30]):
        frames = Frames(max_pixels=10_000)
        for time in order:
            answer = frames.read(os.fsencode(tmp_path), os.fsencode(kind), time)
            assert answer.status == "success", (time, answer.error)
            # PyAV's own conversion rounds otherwise; another frame would have its bar elsewhere
            difference = np.abs(pixels(answer.body) - expected[time])
            assert difference.mean() < 3, time
            bodies.setdefault(time, set()).add(hashlib.sha256(answer.body or b"").hexdigest())
        frames.close()
    assert all(len(hashes) == 1 for hashes in bodies.values())
    assert len(set().union(*bodies.values())) == len({expected[time].tobytes() for time in bodies})


def test_a_frame_is_shown_until_the_next_one(tmp_path: Path) -> None:
    video(tmp_path / "v.mp4", times=[0, 400, 1000, 1500])
    frames = Frames(10_000)
    read = {time: frames.read(os.fsencode(tmp_path), b"v.mp4", time) for time in (0, 399, 400, 999, 1500, 1501)}
    assert read[0].body == read[399].body != read[400].body == read[999].body
    assert read[1500].status == "success"
    assert read[1501].status == "decode"  # nothing tells how long the last frame is shown


@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_frames_are_upright(tmp_path: Path, degrees: int) -> None:
    video(tmp_path / "v.mp4", rotation=degrees)
    lying = brute_force(tmp_path / "v.mp4")[0].astype(int)
    answer = Frames(10_000).read(os.fsencode(tmp_path), b"v.mp4", 0)
    upright = np.rot90(lying, degrees // 90)  # a display matrix turns counter-clockwise
    assert pixels(answer.body).shape == upright.shape
    assert np.abs(pixels(answer.body) - upright).mean() < 3


def test_no_more_is_decoded_than_the_way_from_a_keyframe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One pass where frames are near to each other, jumps where they are far, and no jump back to where one is."""
    decoded = []
    original = Video.frames

    def counted(self):
        for found in original(self):
            decoded.append(found[0])
            yield found

    monkeypatch.setattr(Video, "frames", counted)
    for gop, times, most in (
        (10, range(0, 30_000, 1000), 310),
        (10, (0, 10_000, 29_000), 40),
        (1000, range(0, 30_000, 3000), 2 * 300),
    ):
        video(tmp_path / "v.mp4", frames=300, fps=10, gop=gop, scene_frames=1000, **{"sc_threshold": "0"})
        decoded.clear()
        frames = Frames(10_000)
        assert {frames.read(os.fsencode(tmp_path), b"v.mp4", time).status for time in times} == {"success"}
        assert len(decoded) <= most


def test_frames_come_through_the_download_as_images_do(tmp_path: Path) -> None:
    video(tmp_path / "root/a film #1.mp4", size=(192, 128))
    url = "films:/a%20film%20%231.mp4#t="
    times = [2000, 0, 1000, 2967]
    rows = [{"url": f"{url}{time // 1000}.{time % 1000:03d}", "source": "films"} for time in times]
    rows.append(rows[0] | {"caption": "another"})
    found, observed = fetch(tmp_path, rows, roots={"films": str(tmp_path / "root")}, size=64)
    assert statuses(found) == ["success"] * 5
    assert [(row["width"], row["height"], row["original_width"], row["original_height"]) for row in found] == [
        (96, 64, 192, 128)
    ] * 5
    assert {row["mime"] for row in found} == {"image/bmp"}
    assert len({row["sha256"] for row in found}) == 4
    assert found[0]["offset"] == found[4]["offset"] != found[1]["offset"]
    assert observed["fetched_at"].null_count == 0
    tar = (tmp_path / "part.tar").read_bytes()
    again, _ = fetch(tmp_path, rows, roots={"films": str(tmp_path / "root")}, size=64, concurrency=1)
    assert (again, (tmp_path / "part.tar").read_bytes()) == (found, tar)
    backwards, _ = fetch(tmp_path, rows[::-1], roots={"films": str(tmp_path / "root")}, size=64)
    assert [row["sha256"] for row in backwards] == [row["sha256"] for row in found[::-1]]


def test_each_video_of_a_part_is_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("a.mp4", "b.mp4"):
        video(tmp_path / name, frames=60)
    opened = []
    original = Video.__init__
    monkeypatch.setattr(Video, "__init__", lambda self, *given: opened.append(1) or original(self, *given))
    rows = [{"url": f"v:/{name}.mp4#t={time}.000", "source": "v"} for time in (1, 0) for name in "ab"]
    found, _ = fetch(tmp_path, rows, roots={"v": str(tmp_path)}, concurrency=1)
    assert statuses(found) == ["success"] * 4
    assert len(opened) == 2


def test_frames_of_a_part_are_decoded_in_one_pass_whatever_stands_between_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """20 frames of one video in any order, among images of another folder and of the web."""
    video(tmp_path / "v.mp4", frames=60)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    counts = Counter[str]()
    opened, sought, decoded = Video.__init__, Video.seek, Video.frames

    def frames(self):
        for found in decoded(self):
            counts["decoded"] += 1
            yield found

    monkeypatch.setattr(Video, "__init__", lambda self, *of: counts.update(["opened"]) or opened(self, *of))
    monkeypatch.setattr(Video, "seek", lambda self, time: counts.update(["sought"]) or sought(self, time))
    monkeypatch.setattr(Video, "frames", frames)
    times = np.random.default_rng(0).permutation(20).tolist()
    roots = {"v": str(tmp_path), "pics": str(tmp_path)}
    with serve({f"/{number}.png": send((tmp_path / "a.png").read_bytes()) for number in range(20)}) as site:
        rows = []
        for number in times:
            rows.append({"url": f"v:/v.mp4#t={number // 10}.{number % 10}00", "source": "v"})
            rows.append({"url": "pics:/a.png", "source": "pics", "caption": f"picture {number}"})
            rows.append({"url": site.url(f"/{number}.png"), "source": "web"})
        found, _ = fetch(tmp_path, rows, site, roots=roots)
    assert set(statuses(found)) == {"success"}
    assert len({row["sha256"] for row in found[::3]}) == 20
    assert (counts["opened"], counts["sought"]) == (1, 0)
    assert counts["decoded"] <= 60


def test_each_fault_is_a_status(tmp_path: Path) -> None:
    root = tmp_path / "root"
    whole = video(root / "good.mp4", muxer={"movflags": "faststart"}).read_bytes()
    video(tmp_path / "secret.mp4")
    (root / "link.mp4").symlink_to(tmp_path / "secret.mp4")
    os.mkfifo(root / "pipe.mp4")
    video(root / "large.mp4", size=(256, 256), frames=3)
    video(root / "large.avi", codec="mpeg4", size=(256, 256), frames=3)
    video(root / "other.mpg", codec="mpeg2video", frames=3)
    (root / "text.mp4").write_text("not a video")
    (root / "empty.mp4").touch()
    (root / "no-index.mp4").write_bytes((tmp_path / "secret.mp4").read_bytes()[:-500])
    (root / "short.mp4").write_bytes(whole[: -len(whole) // 3])
    wanted = {
        "good.mp4#t=1.000": "success",
        "good.mp4#t=7.000": "decode",
        "short.mp4#t=0.000": "success",
        "short.mp4#t=2.967": "decode",
        "large.mp4#t=0.000": "pixels",
        "large.avi#t=0.000": "pixels",
        "other.mpg#t=0.000": "type",
        "text.mp4#t=0.000": "decode",
        "empty.mp4#t=0.000": "decode",
        "no-index.mp4#t=0.000": "decode",
        "missing.mp4#t=0.000": "4xx",
        "link.mp4#t=0.000": "blocked",
        "pipe.mp4#t=0.000": "blocked",
        "../secret.mp4#t=0.000": "blocked",
        "%2E%2E/secret.mp4#t=0.000": "blocked",
        "good.mp4#t=1": "4xx",
        "good.mp4#t=0.000#t=0.000": "4xx",
    }
    rows = [{"url": f"v:/{name}", "source": "v"} for name in wanted]
    rows.append({"url": "v:/good.mp4#t=0.000", "source": "a_list_of_a_stranger"})
    found, _ = fetch(tmp_path, rows, roots={"v": str(root)}, max_pixels=60_000)
    assert found.pop()["download_status"] == "blocked"
    assert dict(zip(wanted, statuses(found), strict=True)) == wanted
    assert not any("/" in (row["error"] or "") for row in found)


def test_what_is_damaged_gives_its_own_frames_or_none(tmp_path: Path) -> None:
    """Junk over a third of the packets: never a frame of another time, and the frames far from the junk all there."""
    path = video(tmp_path / "v.ts", codec="mpeg2video", gop=6)
    expected = brute_force(path)
    content = bytearray(path.read_bytes())
    third = len(content) // 3 // 188 * 188
    for place in range(third, 2 * third, 188 * 5):
        content[place + 4 : place + 188] = bytes(184)
    path.write_bytes(content)
    frames = Frames(10_000)
    times = sorted(expected)
    answers = {time: frames.read(os.fsencode(tmp_path), b"v.ts", time) for time in times}
    assert {answer.status for answer in answers.values()} == {"success", "decode"}
    whole = [time for time in times if time < 700 or time > 2500]
    assert all(np.abs(pixels(answers[time].body) - expected[time]).mean() < 3 for time in whole)


@pytest.mark.parametrize("kind", ["b-frames.mp4", "vp9.webm", "no-pts.avi", "late-start.ts", "wmv2.wmv"])
def test_whatever_is_wrong_with_a_file_ends_in_a_status(
    tmp_path: Path, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = video(tmp_path / kind, frames=40, **KINDS[kind]).read_bytes()
    random = np.random.default_rng(0)
    seen = set()
    for number in range(40):
        content = np.frombuffer(whole, np.uint8).copy()
        places = random.integers(0, len(content) if number % 2 else 2000, random.choice([1, 10, 100]))
        content[places] = random.integers(0, 256, len(places))
        (tmp_path / kind).write_bytes(content[: random.integers(len(content)) if number % 5 == 0 else None].tobytes())
        frames = Frames(10_000)
        for time in (0, 1000, 500, 1267):
            answer = frames.read(os.fsencode(tmp_path), os.fsencode(kind), time)
            seen.add(answer.status)
            assert (answer.status == "success") == (answer.error is None) == (answer.body is not None)
        frames.close()
    assert {"success", "decode"} <= seen <= {"success", "decode", "type", "pixels"}
    assert "PyAV" not in capfd.readouterr().err


@pytest.mark.parametrize("name", ["list.mp4", "list.m3u8", "list.ffconcat", "list.mpd", "list.sdp"])
def test_a_file_that_names_others_opens_none_of_them(tmp_path: Path, name: str) -> None:
    secret = video(tmp_path / "secret.mp4")
    with socket.create_server(("127.0.0.1", 0)) as server:
        address = f"http://127.0.0.1:{server.getsockname()[1]}/secret.mp4"
        for place in (str(secret), f"file://{secret}", "secret.mp4", address):
            for script in (
                f"ffconcat version 1.0\nfile '{place}'\n",
                f"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10,\n{place}\n#EXT-X-ENDLIST\n",
                '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet '
                f'mimeType="video/mp4"><Representation id="1" bandwidth="1"><BaseURL>{place}</BaseURL>'
                "</Representation></AdaptationSet></Period></MPD>",
                "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
            ):
                (tmp_path / name).write_text(script)
                answer = Frames(10_000).read(os.fsencode(tmp_path), os.fsencode(name), 0)
                assert answer.status in ("type", "decode")
        server.settimeout(0.05)
        with pytest.raises(TimeoutError):
            server.accept()


def test_jobs_are_put_into_one_pass_over_each_video() -> None:
    class Job:
        def __init__(self, url: str) -> None:
            self.url = url

    urls = ["v:/b#t=1.000", "http://x/z", "v:/a#t=10.000", "v:/a#t=9.000", "http://x/a", "v:/b#t=0.500"]
    assert [job.url for job in in_order([Job(url) for url in urls])] == [
        "http://x/z", "http://x/a", "v:/a#t=9.000", "v:/a#t=10.000", "v:/b#t=0.500", "v:/b#t=1.000",
    ]  # fmt: skip
    assert frame_of("v:/a%23t=1.000") is None
    assert frame_of("v:/a#t=12.345") == ("v:/a", 12_345)


def test_a_web_address_with_such_an_end_is_no_file(tmp_path: Path) -> None:
    rows = pa.array(["http://127.0.0.1:9/v.mp4#t=0.000"])
    found, _ = fetch(tmp_path, rows.to_pylist(), roots={"http": str(tmp_path)})
    assert statuses(found) == ["blocked"]
