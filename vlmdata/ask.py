"""Questions to a trained model about pictures in files."""

from pathlib import Path
from typing import Any

import numpy as np

from vlmdata.errors import InputError
from vlmdata.train import checkpoint, data


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


def picture(path: Path) -> np.ndarray:
    """uint8 RGB [height, width, 3]. Raises InputError for a file that is no picture that training would read."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}") from error
    found = data.decode(content)
    if found is None:
        raise InputError(f"{path}: is no picture (jpg, png, webp), or one of more than {data.MAX_PIXELS:,} pixels")
    return found


def _model(path: Path, ability: str) -> Any:
    """The objective of a training. Raises InputError for one that cannot do what is asked."""
    objective = checkpoint.load(path)
    if not hasattr(objective, ability):
        raise InputError(f"{path}: its model gives no {ability}; train one by `vlmdata train projector`")
    return objective
