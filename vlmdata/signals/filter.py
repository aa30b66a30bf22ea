"""How well caption and image fit, by a filter network (Data Filtering Networks, Fang 2023, arXiv:2309.17425).

A small contrastive model is trained on the pairs of trusted sources and scores every pair: what makes a good filter is
the quality of its training pairs, not how well it does elsewhere. `pipelines/models.py` has it trained before the
parts are measured.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import fsspec
import pyarrow as pa

from vlmdata import recipe
from vlmdata.errors import InputError
from vlmdata.schemas import conform, table_schema
from vlmdata.signals import clip, openclip
from vlmdata.signals.models import absolute_checkpoint, file_sha256, loaded_once, package_file
from vlmdata.signals.openclip import Encoder
from vlmdata.signals.pictures import Pictures

VERSION = 1
IMAGES = True
BATCH = 32  # of a forward pass when scoring

absolute = absolute_checkpoint

_HEADS = "heads.safetensors"


def schemas(options: recipe.FilterSignal) -> dict[str, pa.Schema]:
    """The table that `measure` gives."""
    name = recipe.signal_name(options)
    return {name: table_schema("filter", name.removeprefix("filter"))}


def job(options: recipe.FilterSignal) -> recipe.TrainJob:
    """The training, on one thread: its weights are then the same on every machine of a kind."""
    taken = ("model", "pretrained", "steps", "batch", "lr", "warmup", "weight_decay", "crop", "seed")
    return recipe.TrainJob(
        kind="train", save_every=max(1, options.steps // 10), **{name: getattr(options, name) for name in taken}
    )


def identity(options: recipe.FilterSignal) -> dict[str, str]:
    """What the training begins from, or the sha256 of a checkpoint's files.

    Raises InputError for a checkpoint or a file that is not there.
    """
    if options.checkpoint is not None:
        folder = Path(options.checkpoint)
        files = sorted(file for file in folder.glob("*") if file.suffix in (".safetensors", ".json"))
        if not any(file.suffix == ".safetensors" for file in files):
            raise InputError(f"signals.filter.checkpoint: {folder} is no folder with a trained filter")
        # a dataset's own note on the training stands beside its model
        return {file.name: file_sha256(file) for file in files if file.name != "manifest.json"}
    found = {"open_clip": version("open-clip-torch")}
    if options.model == "lite":
        from vlmdata import towers

        found |= {name: file_sha256(path) for name, path in towers.weights().items()}
    if options.model == "tiny":
        found["architecture"] = file_sha256(package_file("vlmdata.train", "tiny.json"))
    for name, file in (("architecture", options.model), ("pretrained", options.pretrained or "")):
        if file.endswith(".json") and not Path(file).is_file():
            raise InputError(f"signals.filter.model: there is no file {file}")
        if Path(file).is_file():
            found[name] = file_sha256(file)
    return found


def device(options: recipe.FilterSignal) -> str:
    """Where the values of this process come from, and in what precision."""
    return "cpu fp32" if options.model == "lite" else f"{openclip.device_name()} fp32"


def measure(rows: pa.Table, images: Pictures | None, options: recipe.FilterSignal) -> dict[str, pa.Table]:
    """The `filter` table of some rows; reads uid, caption and the images. `options.checkpoint` is the trained filter.

    filter_score: cosine, float32, null for a null caption.
    """
    assert images is not None, "a filter reads images"
    assert options.checkpoint is not None, "a filter is trained before"
    score = pa.array([], pa.float32())
    if len(rows):
        _, score = clip.compare(rows, images, _encoder(options.checkpoint))
    ((name, schema),) = schemas(options).items()
    return {name: conform(pa.table({"uid": rows["uid"], schema.names[1]: score}), schema)}


@loaded_once
def _encoder(checkpoint: str) -> Encoder:
    from vlmdata import lite
    from vlmdata.train import contrastive

    with _here(checkpoint) as folder:
        if (folder / _HEADS).is_file():
            loaded = lite.load(folder)
            return Encoder(loaded.encode_images, loaded.encode_texts)
        return contrastive.load(folder, BATCH)


@contextmanager
def _here(url: str) -> Iterator[Path]:
    """A local folder with the files of a folder anywhere."""
    fs, path = fsspec.core.url_to_fs(url)
    if "file" in fs.protocol:
        yield Path(path)
        return
    with tempfile.TemporaryDirectory() as folder:
        for name in fs.ls(path, detail=False):
            fs.get_file(name, f"{folder}/{name.rsplit('/', 1)[1]}")
        yield Path(folder)
