"""Clips: the samples of shards that are frames of one video and share a caption, which a training takes as one sample.

A frame knows its video and time by its url, `<video>#t=<seconds>`, which the source `video` writes. Where a video has
one caption a clip is the whole video; where its frames have their subtitles, a clip is what one of them was shown over.
"""

import re
from collections.abc import Sequence

import numpy as np

from vlmdata.errors import DataError
from vlmdata.train import data

_FRAME = re.compile(r"(?s)(.+)#t=(\d{1,9}(?:\.\d{1,9})?)")


def clips(shards: data.Index) -> list[np.ndarray]:
    """Of each clip the places of its frames in the order of time, int64; what is no frame of a video is alone.

    In the order of the clips' first places. Reads the JSON of every sample.
    """
    groups: dict[tuple[str, str], list[tuple[float, int]]] = {}
    for place in range(len(shards)):
        frame = _FRAME.fullmatch(str(data.meta(shards, place).get("url") or ""))
        if frame is None:
            groups[("", str(place))] = [(0.0, place)]
        else:
            groups.setdefault((frame[1], data.caption(shards, place)), []).append((float(frame[2]), place))
    return [np.array([place for _, place in sorted(frames)], np.int64) for frames in groups.values()]


def drawn(frames: int, n: int, draw: np.ndarray | None) -> np.ndarray:
    """Which n of a clip's frames to take, int64 [n], rising: one of each of n equal parts (TSN, arXiv:1608.00859).

    draw: n numbers in [0, 1) that choose within the parts; None takes their middles. A clip of fewer than n frames
    gives some of them several times.
    """
    within = np.full(n, 0.5) if draw is None else draw
    return ((np.arange(n) + within) * frames / n).astype(np.int64)


def decoded(
    shards: data.Index, made: Sequence[np.ndarray], number: int, n: int, draw: np.ndarray | None, shorter: int,
    broken: set[str],
) -> tuple[int, list[np.ndarray]]:  # fmt: skip
    """n frames of clip `number` of `made`, uint8 RGB [height, width, 3], and the place of the sample with its caption.

    shorter: as of `data.image`. Frames that cannot be decoded are noted in `broken`, and the others stand in for them;
    where none can, the next clip stands in. Raises DataError where 100 clips in a row cannot be decoded.
    """
    for step in range(min(100, len(made))):
        clip = made[(number + step) % len(made)]
        if found := pictures(shards, clip, n, draw, shorter, broken):
            return int(clip[0]), found
    raise DataError(f"{shards.tars[0]}: no frame of the clips from {shards.uids[made[number][0]]} on can be decoded")


def pictures(
    shards: data.Index, clip: np.ndarray, n: int, draw: np.ndarray | None, shorter: int, broken: set[str]
) -> list[np.ndarray]:
    """n frames of a clip as `decoded` gives them; none where none of those that are drawn can be decoded."""
    places = clip[drawn(len(clip), n, draw)]
    found = {int(place): data.image(shards, int(place), shorter) for place in places}
    for place, picture in found.items():
        if picture is None:
            data.tell_broken(shards, place, broken)
    good = [picture for place in places if (picture := found[int(place)]) is not None]
    return [good[i * len(good) // n] for i in range(n)] if good else []


def whole(shards: data.Index, made: Sequence[np.ndarray], n: int, shorter: int, broken: set[str]) -> np.ndarray:
    """The numbers of the clips that can be measured, int64; otherwise as `data.whole`."""
    found = [number for number, clip in enumerate(made) if pictures(shards, clip, n, None, shorter, broken)]
    if not found:
        raise DataError(f"{shards.tars[0]}: no frame of {len(made)} clips to be measured can be decoded")
    return np.array(found, np.int64)
