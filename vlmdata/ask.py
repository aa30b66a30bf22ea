"""What a trained model is asked for: captions of pictures in files, answers about them, drawings."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vlmdata import frames
from vlmdata.download.header import ImageError
from vlmdata.errors import InputError
from vlmdata.sources.scenes import every
from vlmdata.sources.video import EXTENSIONS
from vlmdata.train import checkpoint, data
from vlmdata.train.videos import drawn

_TRAINED = {"caption": "projector", "answer": "projector", "draw": "drawing"}


def captions(path: Path, pictures: list[Path]) -> list[str]:
    """A caption for each picture, or video where the model has learnt from several frames. path: the folder of a
    training. Raises InputError, as `picture`, `video` and `_model` do."""
    found = [_seen(path, each) for each in pictures]
    return _model(path, "caption").caption(found)


def answer(path: Path, image: Path, question: str) -> str:
    """What the model of a training answers to a question about a picture or a video."""
    if not question.strip():
        raise InputError("the question is blank")
    found = _seen(path, image)
    return _model(path, "answer").answer(found, question)


def draw(path: Path, prompt: str, out: Path, seed: int, steps: int, guidance: float) -> None:
    """Write the picture that the model of a training draws from a text. See `vlmdata.train.drawing.Drawing.draw`."""
    if out.suffix.lower() != ".png":
        raise InputError(f"{out}: the picture is written as .png")
    drawn = _model(path, "draw").draw([prompt], seed, steps, guidance)[0]
    try:
        out.write_bytes(cv2.imencode(".png", drawn[..., ::-1])[1].tobytes())
    except OSError as error:
        raise InputError(f"{out}: cannot be written: {error.strerror or error}") from error


def picture(path: Path) -> np.ndarray:
    """uint8 RGB [height, width, 3], upright. Raises InputError for a file that is no picture that is decoded here."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    found = data.decoded(content)
    if found is None:
        raise InputError(
            f"{path}: is no picture of a known kind, broken, or one of more than {data.MAX_PIXELS:,} pixels"
        )
    return found


def video(path: Path, n: int) -> list[np.ndarray]:
    """n frames of a video, as a training's samples are measured: the middle one of each of n equal parts, uint8 RGB
    [height, width, 3], upright. Those of a short video, and of one of which some cannot be decoded, stand there
    several times. Raises InputError where none can."""

    wanted: list[int] = []

    def choose(times: Iterator[int]) -> list[int]:
        known = every(times, 0.1)
        wanted.extend(known[place] for place in drawn(len(known), n, None) if len(known))
        return wanted

    try:
        shown = dict(frames.at_times(path, choose, data.MAX_PIXELS))
    except (ImageError, OSError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
    found = [shown[time] for time in wanted if time in shown]
    if not found:
        raise InputError(f"{path}: no frame of it can be decoded")
    return [found[i * len(found) // n] for i in range(n)]


def _seen(path: Path, file: Path) -> np.ndarray | list[np.ndarray]:
    """The picture, or the frames of the video, that the model of a training is shown."""
    if file.suffix.lower() not in EXTENSIONS:
        return picture(file)
    job = checkpoint.run_of(path)[2]
    n = getattr(job, "frames", 1)
    if n == 1:
        advice = "; for videos train with `frames: 8` or so" if hasattr(job, "frames") else ""
        raise InputError(f"{file}: {path} has learnt from single pictures{advice}")
    return video(file, n)


def _model(path: Path, ability: str) -> Any:
    """The objective of a training. Raises InputError for one that cannot do what is asked."""
    objective = checkpoint.load(path)
    if not hasattr(objective, ability):
        raise InputError(f"{path}: its model gives no {ability}; train one by `vlmdata train {_TRAINED[ability]}`")
    return objective
