"""open_clip's models as the trainer uses them: made from a name or a configuration, locked, read and written."""

import importlib.resources
import io
import json
import logging
import math
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vlmdata.errors import InputError, first_line
from vlmdata.recipe import ContrastiveJob
from vlmdata.signals.openclip import refuse_code
from vlmdata.train import places, text_towers

# Where SigLIP's training starts from (Zhai 2023, arXiv:2303.15343, section 3.2).
SIGLIP = {"init_logit_scale": math.log(10), "init_logit_bias": -10.0}
_FOLDER = "local-dir:"  # open_clip's word for a folder with a model
_HUB = "hf-hub:"
_CONFIG = "open_clip_config.json"
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")  # the second with weights_only
_REFUSALS = (RuntimeError, TypeError, KeyError, ValueError, AttributeError, OSError)


def make(
    model: str | dict[str, Any], pretrained: str | None, starts: dict[str, float], tiny: str = "tiny.json"
) -> tuple[Any, Any, dict[str, Any]]:
    """A model in fp32, its tokenizer, and its configuration in the form of `open_clip_config.json`.

    model: `tiny` (the file `tiny` beside this one), an architecture of open_clip, `local-dir:` and a folder with a
    model in open_clip's form, a configuration's JSON file, or its content. Folders that a JSON file names are looked
    for beside it. starts: of the logits' scale and bias, where the configuration says nothing of them.
    Raises InputError where open_clip makes no model of it.
    """
    if isinstance(model, str) and model.startswith(_HUB):
        raise InputError(
            f"jobs.train.model: {model}: models of the hub are read from a folder: `hf download "
            f"{model.removeprefix(_HUB)} --local-dir FOLDER`, then give local-dir:FOLDER"
        )
    if model == "tiny":
        model = str(importlib.resources.files("vlmdata.train") / tiny)
    folder = Path(model.removeprefix(_FOLDER)) if isinstance(model, str) and model.startswith(_FOLDER) else None
    if folder is not None:
        model = str(folder / _CONFIG)
    beside = Path()
    if isinstance(model, str) and model.endswith(".json"):
        beside = Path(model).parent
        try:
            model = json.loads(Path(model).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{model}: not a model's JSON configuration: {error}") from error
    if pretrained and not isinstance(model, str):
        raise InputError("jobs.train.pretrained: goes with an architecture's name; a configuration has no such weights")
    try:
        with _quiet():
            clip, tokenizer, config = _create(model, pretrained, folder, beside, starts)
            tokenizer([""])  # what it sets at its first call is set now: several threads call it later
    except _REFUSALS as error:
        raise InputError(f"jobs.train.model: open_clip makes no model of it: {first_line(error)}") from error
    return clip, tokenizer, config


def _create(
    model: str | dict[str, Any], pretrained: str | None, folder: Path | None, beside: Path, starts: dict[str, float]
) -> tuple[Any, Any, dict[str, Any]]:
    import open_clip

    clip: Any
    known = open_clip.get_model_config(model) if isinstance(model, str) else None
    if isinstance(model, str) and (pretrained or known is None):
        known = known or {}
        refuse_code(known, "jobs.train.model")
        starts = {name: value for name, value in starts.items() if name not in known}
        clip = open_clip.create_model(model, pretrained=pretrained, **starts)
        preprocess = open_clip.get_model_preprocess_cfg(clip)
        return clip, open_clip.get_tokenizer(model), {"model_cfg": known | starts, "preprocess_cfg": preprocess}
    given: Any = known or model
    config: dict[str, Any] = given if "model_cfg" in given else {"model_cfg": given, "preprocess_cfg": {}}
    config = config | {"model_cfg": places.located(starts | config["model_cfg"], beside)}
    refuse_code(config["model_cfg"], "jobs.train.model")
    text = dict(config["model_cfg"].get("text_cfg") or {})
    if folder is not None:  # an export has both in itself
        inside = {"hf_tokenizer_name": "tokenizer_config.json", "hf_model_name": "config.json"}
        text |= {
            key: str(folder.absolute()) for key, file in inside.items() if key in text and (folder / file).exists()
        }
        config["model_cfg"] = config["model_cfg"] | {"text_cfg": text}
    tokenizer = text_towers.tokenizer(text) if text.get("hf_tokenizer_name") else None
    with tempfile.TemporaryDirectory() as made:  # open_clip takes a configuration from a file alone
        here = config["model_cfg"]
        if text.get("hf_model_name"):
            text_towers.write_config(text["hf_model_name"], Path(made))
            here = here | {"text_cfg": text | {"hf_model_name": made}}
        (Path(made) / _CONFIG).write_text(json.dumps(config | {"model_cfg": here}))
        clip = _begun(open_clip.create_model(f"{_FOLDER}{made}", load_weights=False, pretrained_text=False))
        if folder is not None:
            weights = next((name for name in _WEIGHTS if (folder / name).exists()), _WEIGHTS[0])
            open_clip.load_checkpoint(clip, str(folder / weights))
        elif text.get("hf_model_name"):
            text_towers.begin(clip, text)
        if tokenizer is None:
            return clip, open_clip.get_tokenizer(f"{_FOLDER}{made}"), config
    text_towers.check(clip, tokenizer)
    return clip, tokenizer, config


def _begun(clip: Any) -> Any:
    """open_clip leaves the projection of a CoCa's decoder as it finds the memory, NaN too: here it is drawn."""
    if hasattr(clip, "text_decoder"):
        projection = clip.text_decoder.text_projection
        nn.init.normal_(projection, std=projection.shape[0] ** -0.5)
    return clip


@contextmanager
def _quiet() -> Iterator[None]:
    """open_clip tells the root logger, as a warning, that a model to be trained has no weights yet."""

    def foreign(record: logging.LogRecord) -> bool:
        return "open_clip" not in record.pathname

    root = logging.getLogger()
    root.addFilter(foreign)
    try:
        yield
    finally:
        root.removeFilter(foreign)


def lock(clip: Any, job: ContrastiveJob) -> None:
    """Lock towers (LiT, Zhai 2022, arXiv:2111.07991), all but their last `unlocked_groups` groups of layers.

    A locked tower's batch norms keep their statistics. Raises InputError for a tower that cannot be locked so, and
    where nothing is left to train.
    """
    try:
        if "image" in job.lock:
            clip.lock_image_tower(unlocked_groups=job.unlocked_groups, freeze_bn_stats=True)
        if "text" in job.lock:
            with redirect_stdout(io.StringIO()):  # of a tower of transformers open_clip prints how much it locks
                clip.lock_text_tower(unlocked_layers=job.unlocked_groups)
    except (*_REFUSALS, AssertionError) as error:
        raise InputError(f"jobs.train.lock: open_clip does not lock this tower so: {error}") from error
    if not any(p.requires_grad and p.ndim for p in clip.parameters()):
        raise InputError("jobs.train.lock: both towers are locked and nothing is left to train; raise unlocked_groups")


def criterion(loss: str, pad_id: int = 0) -> nn.Module:
    """open_clip's loss: `clip` or `siglip`, of image and text features [b, d], scale and bias; or `coca`.

    All ranks' features count, and their gradients come back: without, the towers' gradients would be halved or worse.
    pad_id: the token that no caption's loss counts.
    """
    from open_clip.loss import ClipLoss, CoCaLoss, SigLipLoss

    world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    rank = torch.distributed.get_rank() if world > 1 else 0
    ranks = {"rank": rank, "world_size": world}
    if loss == "siglip":
        return SigLipLoss(**ranks)
    gathered = {"local_loss": True, "gather_with_grad": True, **ranks}
    return CoCaLoss(1.0, 1.0, pad_id, **gathered) if loss == "coca" else ClipLoss(**gathered)


def side(clip: Any) -> int:
    """Of the square pictures that a model reads, pixels."""
    size = clip.visual.image_size
    return size if isinstance(size, int) else size[0]


def pixels(clip: Any, image: Tensor) -> Tensor:
    """uint8 RGB [b, size, size, 3] as a model reads it: float32 [b, 3, size, size]."""
    mean, std = (torch.tensor(v, device=image.device) for v in (clip.visual.image_mean, clip.visual.image_std))
    return (image / 255).sub_(mean).div_(std).permute(0, 3, 1, 2)  # in one allocation, of the batch's largest tensor


def save(clip: Any, tokenizer: Any, config: dict[str, Any], folder: Path) -> None:
    """Write a model as open_clip's own folder: `open_clip.create_model("local-dir:<folder>")` loads it."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.detach().cpu().contiguous() for name, value in clip.state_dict().items()}
    save_file(weights, folder / _WEIGHTS[0])
    written = text_towers.save(clip, tokenizer, config, folder)
    (folder / _CONFIG).write_text(json.dumps(written, indent=1) + "\n")
