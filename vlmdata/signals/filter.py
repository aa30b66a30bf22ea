"""How well caption and image fit, by a filter network (Data Filtering Networks, Fang 2023, arXiv:2309.17425).

A small contrastive model is trained on the pairs of trusted sources and scores every pair: what makes a good filter is
the quality of its training pairs, not how well it does elsewhere. `pipelines/models.py` has it trained before the
parts are measured.
"""

import hashlib
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version
from pathlib import Path

import fsspec
import pyarrow as pa

from vlmdata import recipe
from vlmdata.errors import InputError
from vlmdata.schemas import conform, table_schema
from vlmdata.signals import clip
from vlmdata.signals.models import absolute_checkpoint, device_name, digest, file_sha256, loaded_once, package_file
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
    return {name: table_schema("filter", recipe.signal_suffix(options))}


def job(options: recipe.FilterSignal) -> recipe.ContrastiveJob:
    """The training, on one thread: its weights are then the same on every machine of a kind."""
    taken = ("model", "pretrained", "steps", "batch", "lr", "warmup", "weight_decay", "crop", "seed")
    return recipe.ContrastiveJob(
        kind="train", save_every=max(1, options.steps // 10), **{name: getattr(options, name) for name in taken}
    )


def identity(options: recipe.FilterSignal) -> dict[str, str]:
    """What the training begins from, or the sha256 of a checkpoint's files.

    Raises InputError for a checkpoint or a file that is not there.
    """
    if options.checkpoint is not None:
        fs, files = _files(options.checkpoint)
        return {name: _sha256(fs, path, fs.ukey(path)) for name, path in files.items()}
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
    lite = _HEADS in _files(options.checkpoint)[1] if options.checkpoint else options.model == "lite"
    return "cpu fp32" if lite else f"{device_name()} fp32"


def measure(rows: pa.Table, images: Pictures | None, options: recipe.FilterSignal) -> dict[str, pa.Table]:
    """The `filter` table of some rows; reads uid, caption and the images. `options.checkpoint` is the trained filter.

    filter_score: cosine, float32, null for a null caption.
    """
    assert images is not None, "a filter reads images"
    assert options.checkpoint is not None, "a filter is trained before"
    score = pa.array([], pa.float32())
    if len(rows):
        _, score = clip.compare(rows, images, _encoder(options.checkpoint, digest(identity(options))))
    ((name, schema),) = schemas(options).items()
    return {name: conform(pa.table({"uid": rows["uid"], schema.names[1]: score}), schema)}


def _files(checkpoint: str) -> tuple[fsspec.AbstractFileSystem, dict[str, str]]:
    """The file system of a trained filter, a folder or its URL, and its files: name -> path."""
    fs, folder = fsspec.core.url_to_fs(checkpoint)
    paths = sorted(fs.ls(folder, detail=False)) if fs.isdir(folder) else []
    files = {path.rsplit("/", 1)[-1]: path for path in paths if path.endswith((".safetensors", ".json"))}
    if not any(name.endswith(".safetensors") for name in files):
        raise InputError(f"signals.filter.checkpoint: {checkpoint} is no folder with a trained filter")
    files.pop("manifest.json", None)  # a dataset's own note on the training stands beside its model
    return fs, files


@cache
def _sha256(fs: fsspec.AbstractFileSystem, path: str, _state: str) -> str:
    """Hex sha256 of a file anywhere, read once while the file system tells the same of it."""
    with fs.open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


@loaded_once
def _encoder(checkpoint: str, _identity: str) -> Encoder:
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
    fs, files = _files(url)
    if "file" in fs.protocol:
        yield Path(next(iter(files.values()))).parent
        return
    with tempfile.TemporaryDirectory() as folder:
        for name, path in files.items():
            fs.get_file(path, f"{folder}/{name}")
        yield Path(folder)
