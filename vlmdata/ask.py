"""What a trained model is asked for: captions of pictures in files, answers about them, drawings."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vlmdata.errors import InputError
from vlmdata.train import checkpoint, data

_TRAINED = {"caption": "projector", "answer": "projector", "draw": "drawing"}


def captions(path: Path, pictures: list[Path]) -> list[str]:
    """A caption for each picture. path: the folder of a training. Raises InputError, as `picture` and `_model` do."""
    found = [picture(each) for each in pictures]
    return _model(path, "caption").caption(found)


def answer(path: Path, image: Path, question: str) -> str:
    """What the model of a training answers to a question about a picture."""
    if not question.strip():
        raise InputError("the question is blank")
    found = picture(image)
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


def _model(path: Path, ability: str) -> Any:
    """The objective of a training. Raises InputError for one that cannot do what is asked."""
    objective = checkpoint.load(path)
    if not hasattr(objective, ability):
        raise InputError(f"{path}: its model gives no {ability}; train one by `vlmdata train {_TRAINED[ability]}`")
    return objective
