"""Where in a picture, or when in a video, a trained contrastive model sees a phrase.

A cell's vector is what the picture's would be if attention looked at that cell alone: the value path of the last
attention (MaskCLIP, Zhou 2022, arXiv:2112.01071). Heat is the cosine of cells and phrase. Nothing is trained for it, so
a model that learnt from few pairs, or that has few cells, points roughly.
"""

import itertools
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import simplejpeg
import torch
import torch.nn.functional as F
from torch import Tensor

from vlmdata import frames, lite, towers
from vlmdata.download.decode import to_jpeg
from vlmdata.download.header import ImageError
from vlmdata.errors import InputError
from vlmdata.sources.scenes import every, thin
from vlmdata.sources.video import EXTENSIONS
from vlmdata.train import checkpoint, data, openclip

SIDE = 1024  # pixels of a picture's shorter side that is looked at
LONGEST = 16  # times as long as wide, at most
MOST_FRAMES = 60  # of a video that are looked at
BEST_FRAMES = 5  # of these that are told
_SMALLEST = 0.005  # of a box, share of the picture

# From a picture, uint8 RGB [height, width, 3], to heat, float32 [height, width], and the whole picture's cosine.
Look = Callable[[np.ndarray], tuple[np.ndarray, float]]


def locate(path: Path, file: Path, phrase: str, out: Path) -> dict[str, Any]:
    """What `vlmdata locate` prints; writes the heat map over the picture, or over a video's best frame, as a PNG.

    path: the folder of a contrastive training. Boxes are [x0, y0, x1, y1] in pixels of the upright picture, the last
    two exclusive, their score the highest cosine inside; times are seconds.
    Raises InputError for a phrase that is blank, and for a file or a model that does not serve.
    """
    if not phrase.strip():
        raise InputError("the phrase is blank")
    try:
        shown = _frames(file) if file.suffix.lower() in EXTENSIONS else _picture(file)
        first = next(shown, None)
    except OSError as error:
        raise InputError(f"{file}: {error.strerror or error}") from error
    if first is None:
        raise InputError(f"{file}: no frame of it can be decoded")
    look = looking(checkpoint.load(path), phrase)
    found: list[dict[str, Any]] = []
    best: tuple[float, np.ndarray, np.ndarray] | None = None
    for time, scale, picture in itertools.chain([first], shown):
        heat, score = look(picture)
        found.append({"time": time, "score": score, "boxes": boxes(heat, scale)})
        if best is None or score > best[0]:
            best = score, picture, heat
    assert best is not None
    _write(out, *best[1:])
    if first[0] is None:
        return {"score": found[0]["score"], "boxes": found[0]["boxes"], "heat_map": str(out)}
    return {"frames": sorted(found, key=lambda one: -one["score"])[:BEST_FRAMES], "heat_map": str(out)}


def _picture(file: Path) -> Iterator[tuple[None, float, np.ndarray]]:
    """(no time, its pixels for one of what is looked at, uint8 RGB) of a picture in a file."""
    try:
        read = to_jpeg(file.read_bytes(), SIDE, 95, data.MAX_PIXELS)
    except ImageError as error:
        raise InputError(f"{file}: {error}") from error
    yield None, read.original[0] / read.width, simplejpeg.decode_jpeg(read.jpeg, "RGB")


def _frames(file: Path) -> Iterator[tuple[float, float, np.ndarray]]:
    """(seconds, 1, uint8 RGB) of a video's frames, one a second and MOST_FRAMES in all, evenly spread."""
    try:
        shown = frames.at_times(file, lambda times: thin(every(times, 1.0), MOST_FRAMES), data.MAX_PIXELS)
        for time, picture in shown:
            yield time / 1000, 1.0, picture
    except ImageError as error:
        raise InputError(f"{file}: {error}") from error


def looking(objective: Any, phrase: str) -> Look:
    """Looks for a phrase with a trained objective. Raises InputError for one whose cells are not known: FLAVA's have no
    part in its contrastive vector, and the others have none."""
    if hasattr(objective, "clip"):
        return _with_open_clip(objective, phrase)
    if hasattr(objective, "heads"):
        return _with_lite(objective.heads, phrase)
    raise InputError(
        f"locate knows no cells of a model of the objective {objective.job.objective}: it needs one of contrastive or "
        "captioning; train one by `vlmdata train contrastive`"
    )


@torch.inference_mode()
def _with_open_clip(objective: Any, phrase: str) -> Look:
    clip, size = objective.clip.eval(), objective.size
    text = F.normalize(clip.encode_text(objective.tokenizer([phrase])), dim=-1)[0]

    @torch.inference_mode()
    def look(picture: np.ndarray) -> tuple[np.ndarray, float]:
        """By squares that cover the picture, since a model has learnt from squares."""
        height, width = picture.shape[:2]
        side, longer = min(height, width), max(height, width)
        count = math.ceil(longer / side)
        if count > LONGEST:
            raise InputError(f"{width} x {height} pixels: more than {LONGEST} times as long as wide")
        total, times = np.zeros((height, width), np.float32), np.zeros((height, width), np.float32)
        scores = []
        for start in np.linspace(0, longer - side, count).round().astype(int):
            part = (slice(0, side), slice(start, start + side))
            rows, columns = part if width >= height else part[::-1]
            square = data.square(picture[rows, columns], size)
            pixels = openclip.pixels(clip, torch.from_numpy(square)[None])
            cosines = (cells(clip.visual, pixels) @ text).numpy()
            total[rows, columns] += cv2.resize(cosines, (side, side), interpolation=cv2.INTER_LINEAR)
            times[rows, columns] += 1
            scores.append(float(F.normalize(clip.encode_image(pixels), dim=-1)[0] @ text))
        return total / times, max(scores)

    return look


def cells(visual: Any, pixels: Tensor) -> Tensor:
    """Unit vectors [rows, columns, d] of the cells of one picture, float32 [1, 3, size, size], for open_clip's towers:
    a VisionTransformer, a ModifiedResNet, or a convolutional one of timm with average pooling.

    Raises InputError for another tower.
    """
    if hasattr(visual, "attnpool"):
        found, (rows, columns) = _of_resnet(visual, pixels)
    elif hasattr(visual, "resblocks") or hasattr(visual, "transformer"):
        found, (rows, columns) = _of_vit(visual, pixels), visual.grid_size
    elif hasattr(visual, "trunk") and (maps := visual.trunk.forward_features(pixels)).ndim == 4:
        rows, columns = maps.shape[2:]
        found = visual.head(visual.trunk.forward_head(maps[0].flatten(1).T[..., None, None]))
    else:
        raise InputError(f"locate: knows no cells of the vision tower {type(visual).__name__} of this kind")
    if found.ndim != 2:
        raise InputError("locate: knows no cells of a vision tower that is pooled in this way")
    return F.normalize(found, dim=-1).reshape(rows, columns, -1)


def _of_vit(visual: Any, pixels: Tensor) -> Tensor:
    """Vectors of the patches. Where a class token gathers them by attention, each passes the last block by itself."""
    x = visual._embeds(pixels)
    *blocks, last = visual.transformer.resblocks
    for block in blocks:
        x = block(x)
    alone = None
    if visual.attn_pool is None and visual.pool_type == "tok":
        alone = torch.full((x.shape[1],) * 2, -math.inf).fill_diagonal_(0)
    tokens = last(x, attn_mask=alone)[0, 1:]
    # As if a picture's tokens were all this one: whatever pools them, attention too, gives that token's part.
    pooled, _ = visual._pool(tokens[:, None].expand(-1, 2, -1))
    return pooled if visual.proj is None else pooled @ visual.proj


def _of_resnet(visual: Any, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """Vectors of the last layer's cells, by the values of the attention pool."""
    x = visual.stem(pixels)
    for layer in (visual.layer1, visual.layer2, visual.layer3, visual.layer4):
        x = layer(x)
    pool = visual.attnpool
    values = pool.v_proj(x[0].flatten(1).T + pool.positional_embedding[1:])
    return pool.c_proj(values), x.shape[2:]


@torch.inference_mode()
def _with_lite(heads: lite.Heads, phrase: str) -> Look:
    heads.eval()
    text = heads.encode_texts(torch.from_numpy(towers.sentences().embed([phrase])))[0]

    @torch.inference_mode()
    def look(picture: np.ndarray) -> tuple[np.ndarray, float]:
        """The tower reads the whole picture, squeezed into a square; each cell passes the head as a picture would."""
        seen = towers.vision().cells([picture])[0]
        rows = np.concatenate([seen, seen.mean(0, keepdims=True)])
        features = np.concatenate([rows, towers.vision().logits(rows)], 1)
        cosines = (heads.encode_images(torch.from_numpy(features)) @ text).numpy()
        size = picture.shape[1], picture.shape[0]
        return cv2.resize(cosines[:-1].reshape(7, 7), size, interpolation=cv2.INTER_LINEAR), float(cosines[-1])

    return look


def boxes(heat: np.ndarray, scale: float = 1.0) -> list[dict[str, Any]]:
    """The areas that stand out of heat, float32 [height, width], the hottest first: `box`, times `scale`, and `score`.

    What stands out is above Otsu's threshold (1979, "A threshold selection method from gray-level histograms"), in
    areas of at least 1/200 of the picture. There are none where all heat is the same.
    """
    grey = _grey(heat)
    if not grey.any():
        return []
    _, mask = cv2.threshold(grey, 0, 255, cv2.THRESH_BINARY | cv2.THRESH_OTSU)
    count, labels, areas, _ = cv2.connectedComponentsWithStats(mask, connectivity=4)
    found = []
    for label in range(1, count):
        x, y, width, height, area = (int(value) for value in areas[label])
        if area >= _SMALLEST * heat.size:
            box = [round(value * scale) for value in (x, y, x + width, y + height)]
            found.append({"box": box, "score": float(heat[labels == label].max())})
    return sorted(found, key=lambda one: -one["score"])


def _grey(heat: np.ndarray) -> np.ndarray:
    """uint8 [height, width]: from the coldest, 0, to the hottest, 255; all 0 where they are nearly the same."""
    low, high = float(heat.min()), float(heat.max())
    if high - low < 1e-6:
        return np.zeros(heat.shape, np.uint8)
    return ((heat - low) * (255 / (high - low))).round().astype(np.uint8)


def _write(out: Path, picture: np.ndarray, heat: np.ndarray) -> None:
    """The heat map, from dark violet to yellow, over the picture, as a PNG."""
    coloured = cv2.applyColorMap(_grey(heat), cv2.COLORMAP_VIRIDIS)
    mixed = cv2.addWeighted(cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), 0.45, coloured, 0.55, 0)
    done, png = cv2.imencode(".png", mixed)
    assert done
    out.write_bytes(png.tobytes())
