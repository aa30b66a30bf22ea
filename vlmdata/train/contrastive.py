"""The contrastive objective: CLIP (Radford 2021, arXiv:2103.00020), models and loss from open_clip."""

import importlib.resources
import json
import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from vlmdata.errors import InputError, first_line
from vlmdata.evaluate.retrieval import retrieval
from vlmdata.recipe import ContrastiveJob
from vlmdata.signals.models import in_batches, torch_device
from vlmdata.signals.openclip import Encoder
from vlmdata.train import data

log = logging.getLogger(__name__)


def build(job: ContrastiveJob) -> Any:
    """The objective for `job.model`: `lite` trains heads on locked towers, everything else is an open_clip model."""
    if job.model == "lite":
        from vlmdata.train.locked import Locked

        return Locked(job)
    return Contrastive(job)


class Contrastive:
    """An open_clip model, its tokenizer and its loss."""

    def __init__(self, job: ContrastiveJob) -> None:
        self.job = job
        self.clip: Any
        self.clip, self.tokenizer, self.config = _open_clip(job.model, job.pretrained)
        self.model = _Paired(self.clip)
        self.weights = {"contrastive": 1.0}
        self.size = _side(self.clip)

    def terms(self, batch: dict[str, Tensor]) -> dict[str, float]:
        return {"contrastive": 1.0}

    def samples(self, shards: data.Index, out: Path) -> "Pictures":
        return Pictures(shards, self.size, self.job.crop, self.tokenizer)

    def evaluate(self, samples: "Pictures", batch: int) -> dict[str, float]:
        """Recall on all samples of a split; see `vlmdata.evaluate.retrieval`."""
        return retrieval(*self.vectors(samples, batch))

    @torch.inference_mode()
    def vectors(self, samples: "Pictures", batch: int) -> tuple[np.ndarray, np.ndarray]:
        """Unit vectors of a split's images and of their captions, float32 [n, d] each."""
        self.model.eval()
        device = next(self.model.parameters()).device
        images, texts = [], []
        for start in range(0, len(samples.uids), batch):
            rows = samples.batch(np.arange(start, min(start + batch, len(samples.uids))), None)
            image, text = self.model.encode(rows["image"].to(device), rows["text"].to(device))
            images.append(image.float().cpu().numpy())
            texts.append(text.float().cpu().numpy())
        return np.concatenate(images), np.concatenate(texts)

    def export(self, folder: Path) -> None:
        """As open_clip's own folder: `open_clip.create_model("local-dir:<folder>")` loads it."""
        from safetensors.torch import save_file

        folder.mkdir(parents=True, exist_ok=True)
        weights = {name: value.detach().cpu().contiguous() for name, value in self.clip.state_dict().items()}
        save_file(weights, folder / "open_clip_model.safetensors")
        (folder / "open_clip_config.json").write_text(json.dumps(self.config, indent=1) + "\n")


class Pictures:
    """Pairs of decoded, cut and resized images and tokenized captions; see `vlmdata.train.loop.Samples`."""

    def __init__(self, shards: data.Index, size: int, crop: float, tokenizer: Any) -> None:
        self.shards, self.uids, self.size, self.crop, self.tokenizer = shards, shards.uids, size, crop, tokenizer
        self.first, self.broken = np.arange(len(shards)), set[str]()

    def batch(self, places: np.ndarray, seeds: np.ndarray | None) -> dict[str, Tensor]:
        """image: uint8 RGB [b, size, size, 3]; text: int64 [b, context]."""
        draws = None if seeds is None or self.crop == 1 else data.uniform(seeds, 3)
        images, captions = [], []
        for row, wanted in enumerate(places):
            place, picture = data.decodable(self.shards, int(wanted), round(1.5 * self.size), self.broken)
            images.append(data.square(picture, self.size, None if draws is None else draws[row], self.crop))
            captions.append(data.caption(self.shards, place))
        return {"image": torch.from_numpy(np.stack(images)), "text": self.tokenizer(captions)}


class _Paired(nn.Module):
    """From a batch to open_clip's loss, in one forward pass, so that a wrapper sees all of it."""

    clip: Any

    def __init__(self, clip: nn.Module) -> None:
        from open_clip.loss import ClipLoss

        super().__init__()
        self.clip = clip
        # All ranks' features are gathered with their gradients: without, the towers' gradients are halved.
        world = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
        rank = torch.distributed.get_rank() if world > 1 else 0
        self.criterion = ClipLoss(local_loss=True, gather_with_grad=True, rank=rank, world_size=world)

    def encode(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """uint8 RGB [b, size, size, 3] and int64 [b, context] as unit vectors [b, d]."""
        return self.encode_image(image), self.clip.encode_text(text, normalize=True)

    def encode_image(self, image: Tensor) -> Tensor:
        visual = self.clip.visual
        mean, std = (torch.tensor(v, device=image.device) for v in (visual.image_mean, visual.image_std))
        pixels = ((image / 255 - mean) / std).permute(0, 3, 1, 2)
        return self.clip.encode_image(pixels, normalize=True)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        image, text = self.encode(batch["image"], batch["text"])
        # At most 100, as in the paper; the clamp stands here and not after the step, so that the loss knows of it.
        return {"contrastive": self.criterion(image, text, self.clip.logit_scale.clamp(max=np.log(100)).exp())}


def load(folder: Path, batch: int) -> Encoder:
    """What `export` wrote, with the preprocessing of training, in batches of one size, on a GPU where there is one.

    Raises InputError where open_clip cannot load it.
    """
    import open_clip

    torch.set_num_threads(1)  # parts are spread over the cores
    try:
        clip = open_clip.create_model(f"local-dir:{folder}", require_pretrained=True)
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    except (RuntimeError, TypeError, KeyError, ValueError, AttributeError, OSError) as error:
        raise InputError(f"{folder}: holds no trained model: {first_line(error)}") from error
    device, _ = torch_device()
    model = _Paired(clip).eval().to(device)
    size = _side(clip)

    @torch.inference_mode()
    def images(squares: list[np.ndarray]) -> np.ndarray:
        return model.encode_image(torch.from_numpy(np.stack(squares)).to(device)).float().cpu().numpy()

    @torch.inference_mode()
    def texts(captions: list[str]) -> np.ndarray:
        return model.clip.encode_text(tokenizer(captions).to(device), normalize=True).float().cpu().numpy()

    return Encoder(
        lambda pixels: in_batches(images, pixels, batch, lambda picture: data.square(picture, size)),
        lambda captions: in_batches(texts, captions, batch),
    )


def _side(clip: Any) -> int:
    """Of the square pictures that a model reads, pixels."""
    size = clip.visual.image_size
    return size if isinstance(size, int) else size[0]


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


def _open_clip(model: str | dict[str, Any], pretrained: str | None) -> tuple[nn.Module, Any, dict[str, Any]]:
    """The model, its tokenizer, and its configuration in the form of `open_clip_config.json`."""
    if model == "tiny":
        model = str(importlib.resources.files("vlmdata.train") / "tiny.json")
    if isinstance(model, str) and model.endswith(".json"):
        try:
            model = json.loads(Path(model).read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise InputError(f"{model}: not a model's JSON configuration: {error}") from error
    try:
        with _quiet():
            return _create(model, pretrained)
    except (RuntimeError, TypeError, KeyError, ValueError, AttributeError) as error:
        raise InputError(f"jobs.train.model: open_clip makes no model of it: {error}") from error


def _create(model: str | dict[str, Any], pretrained: str | None) -> tuple[nn.Module, Any, dict[str, Any]]:
    import open_clip

    if isinstance(model, dict):
        config = model if "model_cfg" in model else {"model_cfg": model, "preprocess_cfg": {}}
        with tempfile.TemporaryDirectory() as folder:  # open_clip takes a configuration from a file alone
            (Path(folder) / "open_clip_config.json").write_text(json.dumps(config))
            clip = open_clip.create_model(f"local-dir:{folder}", load_weights=False)
            return clip, open_clip.get_tokenizer(f"local-dir:{folder}"), config
    clip = open_clip.create_model(model, pretrained=pretrained)
    preprocess = open_clip.get_model_preprocess_cfg(clip)
    return (
        clip,
        open_clip.get_tokenizer(model),
        {"model_cfg": open_clip.get_model_config(model), "preprocess_cfg": preprocess},
    )
