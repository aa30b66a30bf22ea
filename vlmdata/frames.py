"""Video files, opened safely, and their frames, decoded one after the other in one thread.

FFmpeg gets an open file and no name, only containers that hold their own data (no playlists, no lists of other files),
no protocol to open anything else with, a list of decoders, and a limit of pixels that holds before memory is reserved.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, cast

import av
import cv2
import numpy as np
from av.stream import Discard, Disposition
from av.video.reformatter import Interpolation

from vlmdata.download.header import ImageError

# Demuxers by FFmpeg's names. FLV and MPEG program streams show their streams only after decoding has begun, when it is
# too late for a limit of pixels.
FORMATS = ("mov", "matroska", "avi", "mpegts", "ogg", "asf")
CODECS = (
    "h264", "hevc", "vp8", "vp9", "av1", "libdav1d", "mpeg1video", "mpeg2video", "mpeg4", "msmpeg4v1", "msmpeg4v2",
    "msmpeg4", "wmv1", "wmv2", "wmv3", "vc1", "h263", "theora", "mjpeg", "prores", "dnxhd",
)  # fmt: skip
_HOURS = 12  # of a video that is asked about
_BUFFER = 1 << 18  # bytes: fewer calls into Python than with PyAV's 32 kB
_MARGIN = 256  # pixels of a side, more than any decoder adds
# Slower by a few milliseconds, but the same pixels on every CPU.
_EXACT = Interpolation.ACCURATE_RND | Interpolation.BITEXACT


class Video:
    """The first video stream of a file. Times are whole milliseconds from the file's start, as players count.

    file: open for reading and seekable; it stays open when this is closed.
    damage: how many faults have been met so far in what was read: packets and frames that are broken.
    began: the time of the keyframe with which the last decoding began; None before.
    Raises ImageError: `type` for what is no video of a kind that is decoded here, `pixels` for more than `max_pixels`,
    `decode` for what is broken.
    """

    def __init__(self, file: BinaryIO, max_pixels: int) -> None:
        self.damage = 0
        self.began: int | None = None
        file.seek(0)
        if not file.read(1):
            raise ImageError("decode", "it is empty")
        with _open(file, {"codec_whitelist": "none"}) as container:  # no decoder runs for this look
            stream = _stream(container)
            if stream.codec_context is None or stream.codec_context.name not in CODECS:
                raise ImageError("type", "its codec is not decoded here")
            self.size = stream.width, stream.height
        if self.size[0] * self.size[1] > max_pixels:
            words = f"{self.size[0]} x {self.size[1]} pixels; the limit is {max_pixels}"
            raise ImageError("pixels", words, self.size)
        # For what a file says later on. FFmpeg counts the margins that its decoders work with.
        margin = _MARGIN * (sum(self.size) + _MARGIN)
        limits = {"codec_whitelist": ",".join(CODECS), "max_pixels": str(max_pixels + margin)}
        self._container = _open(file, limits)
        self._stream = _stream(self._container)
        self._stream.codec_context.options = limits
        self._stream.codec_context.thread_count = 1
        for other in self._container.streams:
            if other.index != self._stream.index:
                other.discard = Discard.all
        if self._stream.time_base is None:
            raise ImageError("decode", "it has no times")
        self._base = self._stream.time_base
        self._start = Fraction(self._container.start_time or 0, av.time_base)

    def __enter__(self) -> "Video":
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._container.close()

    @property
    def seconds(self) -> float | None:
        """How long the file says it is."""
        return self._container.duration / av.time_base if self._container.duration else None

    def times(self) -> Iterator[int]:
        """The time of every frame from here on, in the order of the file (not of showing), nothing decoded."""
        waiting = True
        for packet in self._packets():
            waiting = waiting and not packet.is_keyframe
            if waiting or packet.is_discard or not packet.size:
                continue
            stamp = packet.dts if packet.pts is None else packet.pts
            if stamp is not None:
                yield self._milliseconds(stamp)

    def frames(self) -> Iterator[tuple[int, av.VideoFrame]]:
        """(time, frame) in the order of showing, from the next keyframe on.

        What follows a fault is left out up to the next keyframe, and so are the frames that would be shown before the
        keyframe with which decoding begins, since they may need what came before it. So a frame is the same wherever
        decoding began.
        """
        began: int | None = None
        for packet in self._packets():
            if began is None:
                stamp = packet.dts if packet.pts is None else packet.pts
                if not packet.is_keyframe or stamp is None:
                    continue
                self.began = began = self._milliseconds(stamp)
            try:
                shown = packet.decode()
            except av.FFmpegError:
                self.damage += 1
                self._stream.codec_context.flush_buffers()
                began = None
                continue
            for frame in shown:
                if frame.pts is None or frame.is_corrupt:
                    self.damage += 1
                elif (time := self._milliseconds(frame.pts)) >= began:
                    yield time, frame

    def seek(self, time: int) -> bool:
        """Go to a keyframe near `time`, mostly before it; False where that came to nothing."""
        try:
            self._container.seek(int((Fraction(time, 1000) + self._start) / self._base), stream=self._stream)
        except (av.FFmpegError, OSError):
            return False
        return True

    def _packets(self) -> Iterator["av.Packet[av.VideoStream]"]:
        try:
            yield from self._container.demux(self._stream)
        except (av.FFmpegError, OSError, IndexError):
            # Nothing is known to follow. PyAV 18 raises IndexError where a stream has turned up midway.
            self.damage += 1

    def _milliseconds(self, stamp: int) -> int:
        return round((stamp * self._base - self._start) * 1000)


class _Bytes:
    """What PyAV reads of a file. A place that no file can have, as damage makes them, is its end: no exception, which
    PyAV would print where FFmpeg does not mind."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.read, self.tell = file.read, file.tell

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return self._file.seek(0, os.SEEK_END)


def at_times(
    path: Path, choose: Callable[[Iterator[int]], Iterable[int]], max_pixels: int
) -> Iterator[tuple[int, np.ndarray]]:
    """(time, uint8 RGB [height, width, 3], upright) of the frames at the times that `choose` takes of all those of a
    video file, which come in the file's order. Raises OSError, and ImageError as `Video` does and for more than 12 h.
    """

    def within(times: Iterator[int]) -> Iterator[int]:
        for time in times:
            if time > _HOURS * 3_600_000:
                raise ImageError("type", f"longer than {_HOURS} hours")
            yield time

    with path.open("rb") as file, Video(file, max_pixels) as video:
        chosen = set(choose(within(video.times())))
    with path.open("rb") as file, Video(file, max_pixels) as video:
        for time, frame in video.frames() if chosen else ():
            if time in chosen:
                picture = cv2.imdecode(np.frombuffer(to_bmp(frame), np.uint8), cv2.IMREAD_COLOR)
                assert picture is not None
                yield time, cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)
            if time >= max(chosen):
                break


def to_bmp(frame: av.VideoFrame) -> bytes:
    """The frame as a BMP (8 bits, RGB), upright: bytes that depend on the pixels alone, and made in no time.

    Raises ImageError (`decode`) for pixels of a kind that FFmpeg cannot convert.
    """
    pixels = _converted(frame, frame.width, frame.height, "bgr24", Interpolation.BILINEAR)
    matrix = cast(Mapping[str, Any], frame.side_data).get("DISPLAYMATRIX")  # PyAV's stubs know one kind only
    if matrix is not None:
        pixels = _upright(pixels, np.frombuffer(matrix, np.int32).tolist())
    done, encoded = cv2.imencode(".bmp", np.ascontiguousarray(pixels))
    if not done:
        raise ImageError("decode", f"{pixels.shape[1]} x {pixels.shape[0]}: no BMP")
    return encoded.tobytes()


def small_grey(frame: av.VideoFrame, width: int, height: int) -> np.ndarray:
    """uint8 [height, width]: the frame's luma, averaged over areas. Raises ImageError as `to_bmp`."""
    return _converted(frame, width, height, "gray", Interpolation.AREA)


def _converted(frame: av.VideoFrame, width: int, height: int, form: str, by: Interpolation) -> np.ndarray:
    try:
        return frame.reformat(width, height, form, interpolation=by | _EXACT, threads=1).to_ndarray()
    except (av.FFmpegError, OSError, ValueError) as error:
        raise ImageError("decode", f"pixels of the kind {frame.format.name} cannot be converted") from error


def _upright(pixels: np.ndarray, matrix: list[int]) -> np.ndarray:
    """Turned by quarters and mirrored as the display matrix says (ISO/IEC 14496-12, 6.2.2), other angles left alone.

    A point (x, y) is shown at (ax + cy, bx + dy); matrix: a, b, u, c, d, v, …
    """
    a, b, c, d = (matrix[place] for place in (0, 1, 3, 4))
    if a and d and not b and not c:
        right, down = a, d
    elif b and c and not a and not d:
        pixels = pixels.swapaxes(0, 1)
        right, down = c, b
    else:
        return pixels
    return pixels[:: 1 if down > 0 else -1, :: 1 if right > 0 else -1]


def _open(file: BinaryIO, options: dict[str, str]) -> av.container.InputContainer:
    file.seek(0)
    safe = {"format_whitelist": ",".join(FORMATS), "protocol_whitelist": "none", **options}
    try:
        return av.open(_Bytes(file), "r", options=safe, metadata_errors="replace", buffer_size=_BUFFER)
    except av.ArgumentError as error:  # what a whitelist answers
        raise ImageError("type", "not a video of a known kind") from error
    except (av.FFmpegError, OSError) as error:
        raise ImageError("decode", _words(error)) from error


def _stream(container: av.container.InputContainer) -> av.VideoStream:
    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:  # an album's cover
            return stream
    raise ImageError("type", "it holds no video stream")


def _words(error: OSError | av.FFmpegError) -> str:
    return (error.strerror or type(error).__name__).lower()
