"""Which frames of a video become rows: one of each scene, or one every so many seconds. Times are milliseconds."""

from array import array
from bisect import bisect_left
from collections.abc import Iterable, Sequence

import numpy as np

SHORTEST = 500  # milliseconds of a scene: a flash of light is none
_WIDTH, _HEIGHT = 64, 36
_NONE = array("q", [-1])


def every(times: Iterable[int], seconds: float) -> Sequence[int]:
    """Of the times (in any order) the first at or after 0 and each multiple of `seconds`.

    What is held are 8 bytes for each such interval up to the last time, however many times there are.
    """
    step = max(1, round(seconds * 1000))
    first = array("q")
    for time in times:
        if time < 0:
            continue
        place = time // step
        if place >= len(first):
            first.extend(_NONE * (place + 1 - len(first)))
        if time < first[place] or first[place] < 0:
            first[place] = time
    return array("q", (time for time in first if time >= 0))


class Scenes:
    """Finds the scenes of a video whose frames are shown to it one after the other, and takes the middle one of each.

    The measure is that of FFmpeg's filter `scdet` (https://ffmpeg.org/ffmpeg-filters.html#scdet): the mean absolute
    difference of the grey values of two following frames in percent of the range, or how much it differs from that of
    the frame before where that is less, so that steady motion is no change of scene. It is taken here over frames of
    64 x 36 pixels. The middle frame, since the first one of a scene is often dark or mixed with what was before.
    threshold: percent that begins a new scene; scdet's is 10, and good ones are said to lie between 8 and 14.
    """

    def __init__(self, threshold: float) -> None:
        self._threshold = threshold
        self._chosen: list[int] = []
        self._scene = array("q")
        self._before: np.ndarray | None = None
        self._change = 0.0

    def show(self, time: int, grey: np.ndarray) -> None:
        """grey: uint8 [36, 64]."""
        frame = grey.astype(np.int16)
        if self._before is not None:
            change = float(np.abs(frame - self._before).mean()) * 100 / 255
            score = min(change, abs(change - self._change))
            self._change = change
            if score >= self._threshold and time - self._scene[0] >= SHORTEST:
                self._end()
        self._before = frame
        self._scene.append(time)

    def chosen(self) -> list[int]:
        """The middle frames' times, when all frames were shown; each time once."""
        if self._scene:
            self._end()
        return sorted({time for time in self._chosen if time >= 0})

    def _end(self) -> None:
        middle = (self._scene[0] + self._scene[-1]) / 2
        self._chosen.append(self._scene[min(bisect_left(self._scene, middle), len(self._scene) - 1)])
        self._scene = array("q")


SIZE = _WIDTH, _HEIGHT


def thin(times: Sequence[int], most: int | None) -> Sequence[int]:
    """`most` of the times at most, evenly spread over them."""
    if most is None or len(times) <= most:
        return times
    return [times[(2 * place + 1) * len(times) // (2 * most)] for place in range(most)]
