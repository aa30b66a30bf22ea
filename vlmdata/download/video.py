"""Frames of videos that are files already: `<source name>:/<path>#t=12.345`, decoded in one pass over each video."""

import re
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, BinaryIO, Protocol, TypeVar

from vlmdata.download.fetch import Answer
from vlmdata.download.header import ImageError
from vlmdata.local_files import Refused, open_below

if TYPE_CHECKING:
    from av import VideoFrame

    from vlmdata.frames import Video

_FRAME = re.compile(r"([^#]*)#t=(\d{1,9})\.(\d{3})")
_NEAR = 2_000  # milliseconds that are decoded rather than jumped over, until more is known of the video
# Milliseconds before the time that is wanted: some files seek by the order of decoding, and come out too late.
_BACK = (0, 2_000, 20_000)


class _HasUrl(Protocol):
    url: str


_Job = TypeVar("_Job", bound=_HasUrl)


def frame_of(url: str) -> tuple[str, int] | None:
    """(the video's URL, milliseconds) of a frame's URL; None for any other URL."""
    match = _FRAME.fullmatch(url)
    return (match[1], int(match[2]) * 1000 + int(match[3])) if match else None


def in_order(jobs: list[_Job]) -> list[_Job]:
    """The jobs in an order in which `Frames` reads each video once: the frames last, by video and time."""
    return sorted(jobs, key=lambda job: frame_of(job.url) or ("", 0))


class Frames:
    """The frames of a part. One video is open at a time, and is gone through forwards as long as times rise."""

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._place: tuple[bytes, bytes] | None = None
        self._failure: Answer | None = None
        self._reader: _Reader | None = None

    def read(self, root: bytes, path: bytes, time: int) -> Answer:
        """The frame that is shown at `time` (milliseconds) as a BMP.

        A file that may not be read gives the statuses of `read_local`; else `type`, `pixels` or `decode`, as for an
        image; `decode` too where no frame is shown at that time or the video is damaged there.
        """
        now = datetime.now(UTC)
        if self._place != (root, path):
            self.close()
            self._place = root, path
            self._failure = self._open(root, path)
        if self._failure is not None or self._reader is None:
            assert self._failure is not None
            return Answer(self._failure.status, self._failure.error, fetched_at=now)
        from vlmdata.frames import to_bmp

        try:
            return Answer("success", body=to_bmp(self._reader.at(time)), fetched_at=now)
        except ImageError as error:
            return Answer(error.status, str(error), fetched_at=now)

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
        self._place = self._failure = self._reader = None

    def _open(self, root: bytes, path: bytes) -> Answer | None:
        """The failure, where the video cannot be opened."""
        try:
            file = open_below(root, path)
        except Refused as refusal:
            return Answer(refusal.status, str(refusal))
        try:
            self._reader = _Reader(file, self._max_pixels)
        except ImageError as error:
            file.close()
            return Answer(error.status, str(error))
        return None


class _Reader:
    """One open video. `held` is the frame that was shown last, `ahead` the one behind it where that is decoded, and
    `faults` how much damage was met between them."""

    _video: "Video"
    _frames: Iterator[tuple[int, "VideoFrame"]]
    _held: tuple[int, "VideoFrame"] | None
    _ahead: tuple[int, "VideoFrame"] | None
    _faults: int

    def __init__(self, file: BinaryIO, max_pixels: int) -> None:
        self._file, self._max_pixels = file, max_pixels
        self._far = _NEAR
        self._video = self._open()
        self._restart()

    def at(self, time: int) -> "VideoFrame":
        """The frame that is shown at `time`. Raises ImageError."""
        here = self._held[0] if self._held else 0
        if time < here or time - here > self._far:
            self._jump(time)
        while self._held is None or self._held[0] != time:
            if self._ahead is None:
                self._advance()
            if self._ahead is None:
                raise ImageError("decode", "the video ends before that time or is damaged there")
            if self._ahead[0] > time:
                if self._held is None or self._faults:
                    raise ImageError("decode", "the video shows no frame at that time or is damaged there")
                break
            self._held, self._ahead = self._ahead, None
        return self._held[1]

    def close(self) -> None:
        self._video.close()
        self._file.close()

    def _open(self) -> "Video":
        from vlmdata import frames  # and with it PyAV, which most parts do not need

        return frames.Video(self._file, self._max_pixels)

    def _restart(self) -> None:
        self._frames = self._video.frames()
        self._held = self._ahead = None
        self._faults = 0

    def _advance(self) -> None:
        before = self._video.damage
        self._ahead = next(self._frames, None)
        self._faults = self._video.damage - before

    def _jump(self, time: int) -> None:
        """Go on from a keyframe at or before `time`: one nearby if the file finds it, else the first."""
        for back in _BACK:
            if not self._video.seek(max(0, time - back)):
                break
            self._restart()
            self._advance()
            if self._ahead is not None and self._video.began is not None and self._ahead[0] <= time:
                # Here keyframes are at least so far apart, and a shorter jump would lead back to the same one.
                self._far = max(self._far, time - self._video.began)
                return
        again = self._open()
        self._video.close()
        self._video = again
        self._restart()
