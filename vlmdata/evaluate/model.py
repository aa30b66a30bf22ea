"""What a checkpoint can do: encode, caption, answer, or measure its own masked predictions."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from pydantic import ValidationError

from vlmdata import lite, towers
from vlmdata.errors import InputError
from vlmdata.recipe import ClipSignal, MaskedJob
from vlmdata.signals import openclip
from vlmdata.signals.models import torch_device
from vlmdata.signals.openclip import Encoder
from vlmdata.train import checkpoint

_FINER = 4  # a JPEG comes at no less than so many times the model's side: its own resizing then sees nearly the same


@dataclass(frozen=True)
class Model:
    """Pictures are uint8 RGB [height, width, 3] of any size; what is None the checkpoint cannot do."""

    name: str
    shorter: int = 0  # the shorter side in pixels at which a JPEG may be decoded; 0: at full scale only
    encoder: Encoder | None = None
    masked: Any = None  # the objective whose own measures are its masked accuracies
    caption: Callable[[list[Any]], list[str]] | None = None
    answer: Callable[[Any, str], str] | None = None
    frames: int = 1  # of a video that it was trained to see at once: then `caption`, `answer` take lists of these


def load(name: str, batch: int) -> Model:
    """A training's --out or one of its checkpoints, `lite`, heads of lite, open_clip's folder, or MODEL/TAG.

    batch: pictures or texts that the model sees at once. Raises InputError for a name that is none of these.
    """
    path = Path(name.removeprefix("local-dir:"))
    if name == "lite" or (path / "heads.safetensors").is_file():
        scorer = lite.load(None if name == "lite" else path)
        return Model(name, _FINER * towers.SIDE, Encoder(scorer.encode_images, scorer.encode_texts))
    if (path / "open_clip_config.json").is_file():
        return _open_clip(name, {"model": f"local-dir:{path}"}, batch)
    if path.is_dir():
        return _trained(name, path, batch)
    model, _, tag = name.partition("/")
    if not tag or Path(model).is_dir():
        raise InputError(
            f"{name}: neither a training's --out nor one of its checkpoints/<step>, nor `lite`, a folder with "
            "open_clip_config.json, or MODEL/TAG of open_clip such as ViT-B-32/laion2b_s34b_b79k"
        )
    return _open_clip(name, {"model": model, "pretrained": tag}, batch)


def _open_clip(name: str, which: dict[str, Any], batch: int) -> Model:
    try:
        options = ClipSignal.model_validate({"kind": "clip", "batch": batch, **which})
    except ValidationError as error:
        raise InputError(f"{name}: {error.errors()[0]['msg']}") from error
    try:
        size = openclip.config(options)["model_cfg"].get("vision_cfg", {}).get("image_size", 224)
        encoder = openclip.load(options)
    except InputError as error:  # which begins with the key of a recipe's signal
        raise InputError(f"{name}: {str(error).partition(': ')[2]}") from error
    return Model(name, _FINER * (max(size) if isinstance(size, list) else int(size)), encoder)


def _trained(name: str, path: Path, batch: int) -> Model:
    """`encoder(batch)` (None where a run did not train it), `caption(pictures)` and `answer(picture, question)` are
    what an objective may have."""
    _, _, job = checkpoint.run_of(path)
    objective = checkpoint.load(path)
    encoder = objective.encoder(batch) if hasattr(objective, "encoder") else None
    if encoder is None:
        objective.model.to(torch.device(torch_device()[0]))
    size = getattr(objective, "size", 0)
    return Model(
        name,
        round(1.5 * size),  # as in training
        encoder,
        masked=objective if isinstance(job, MaskedJob) else None,
        caption=getattr(objective, "caption", None),
        answer=getattr(objective, "answer", None),
        frames=getattr(job, "frames", 1),
    )
