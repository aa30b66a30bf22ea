"""Photos that scikit-image's package ships (`skimage/data`); the package itself is not imported."""

from pathlib import Path

import cv2
import numpy as np

from vlmdata.signals.models import package_file


def photo(name: str) -> np.ndarray:
    """uint8 [height, width, 3], RGB: astronaut, camera (a man with one), coffee, grass, motorcycle_left, page, …"""
    path: Path = package_file("skimage", "data", f"{name}.png")
    return cv2.cvtColor(cv2.imread(str(path), cv2.IMREAD_COLOR), cv2.COLOR_BGR2RGB)
