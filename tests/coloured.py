"""Pictures of one colour, and a model that sees nothing else: its answers are known."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from vlmdata.evaluate.model import Model
from vlmdata.signals.openclip import Encoder

COLOURS = {"red": (230, 20, 20), "green": (20, 230, 20), "blue": (20, 20, 230)}


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)).astype(np.float32)


def encode_images(pictures: list[np.ndarray]) -> np.ndarray:
    """The mean colour."""
    return unit(np.array([picture.reshape(-1, 3).mean(0) for picture in pictures]))


def encode_texts(texts: list[str]) -> np.ndarray:
    """The colour whose name is in the text; the same vector for all texts without one."""
    named = [next((value for name, value in COLOURS.items() if name in text), (1, 1, 1)) for text in texts]
    return unit(np.array(named, np.float64))


MODEL = Model("colours", encoder=Encoder(encode_images, encode_texts))
BROKEN = b"\xff\xd8\xff\xe0 no picture"


def jpg(colour: tuple[int, int, int], side: int = 24) -> bytes:
    return cv2.imencode(".jpg", np.full((side, side, 3), colour[::-1], np.uint8))[1].tobytes()


def tar(path: Path, samples: dict[str, dict[str, Any]]) -> str:
    """Samples by uid: {extension: bytes, text, or an object for the JSON}."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as out:
        for uid, members in samples.items():
            for extension, value in members.items():
                text = json.dumps(value) if isinstance(value, dict) else value
                content = text if isinstance(text, bytes) else text.encode()
                info = tarfile.TarInfo(f"{uid}.{extension}")
                info.size = len(content)
                out.addfile(info, io.BytesIO(content))
    return str(path)
