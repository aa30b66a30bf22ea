"""What `--data` names: shards of pairs, or pictures with classes; and of the pairs, which captions an image has."""

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from vlmdata.errors import InputError
from vlmdata.evaluate.labelled import IMAGES, Labelled, from_folder, from_huggingface, from_shards
from vlmdata.recipe import Evaluation, nearest
from vlmdata.train import data, source, videos

HUB = "hf:"


@dataclass
class Material:
    """The data, read when a task first asks for it."""

    url: str
    form: str  # shards, folder, huggingface
    split: str | None
    shards: list[str]
    options: Evaluation
    spool: Path
    broken: set[str] = field(default_factory=set)  # uids of what could not be decoded so far

    @cached_property
    def members(self) -> set[str]:
        """Of shards the extensions of the first sample."""
        first = next((s for path in self.shards for s in data.samples(self._tar(path))), None)
        return set(first[1]) if first else set()

    @cached_property
    def pairs(self) -> data.Index:
        """The pairs of the shards."""
        found = data.index(self.shards, self.spool)
        return data.taken(found, chosen(len(found), self.options))

    @cached_property
    def labelled(self) -> Labelled:
        """The pictures and their classes. Raises InputError where there are none, or no names of the classes."""
        if self.form == "folder":
            found = from_folder(Path(self.url), self.options)
        elif self.form == "huggingface":
            found = from_huggingface(self.url.removeprefix(HUB), self.split, self.options)
        else:
            found = from_shards([self._tar(path) for path in self.shards], self.options)
        places = chosen(len(found.uids), self.options)
        if not len(places):
            raise InputError(f"{self.url}: there is no picture with a class")
        return found.taken(places)

    def no_pairs(self) -> str | None:
        """Why there are no pictures with captions, if there are none."""
        if self.form != "shards":
            return f"{self.url} has classes and no captions"
        return None if "txt" in self.members else f"the samples of {self.url} have no .txt"

    def no_classes(self) -> str | None:
        """Why there are no pictures with classes, if there are none."""
        if self.form != "shards" or self.options.label or "cls" in self.members:
            return None
        return f"the samples of {self.url} have no .cls; name the key of their JSON that holds the class by --label"

    def _tar(self, path: str) -> str:
        return data.tar_of(path, self.spool)


def find(url: str, options: Evaluation, spool: Path) -> Material:
    """url: a dataset's folder or URL, shards (a path, a glob, a URL, a folder with tars), a folder with a folder for
    each class, what `datasets` saved on disk, or hf:NAME or hf:NAME:SUBSET of the Hugging Face hub.

    spool: a folder for what has to be written meanwhile. Raises InputError where there is nothing of these.
    """
    if url.startswith(HUB):
        return Material(url, "huggingface", options.split or "test", [], options, spool)
    path = Path(url)
    if path.is_dir():
        there = set(os.listdir(path))
        if "dataset_dict.json" in there or {"state.json", "dataset_info.json"} <= there:
            return Material(url, "huggingface", options.split, [], options, spool)
        if "latest.json" not in there:  # that of a dataset
            inside = path / options.split if options.split and (path / options.split).is_dir() else path
            tars = any(name.endswith(source.SHARDS) for name in there)
            if not tars and any(folder.is_dir() and _has_image(folder) for folder in inside.iterdir()):
                return Material(str(inside), "folder", None, [], options, spool)
    found = source.shards(url, "train", "test" if options.split in (None, "train") else options.split)
    split = options.split or ("test" if "test" in found else None)
    if split and split not in found:
        raise InputError(f"{url}: there is no split {split!r}{nearest(split, found)}")
    paths = found[split] if split else [path for shards in found.values() for path in shards]
    return Material(url, "shards", split, paths, options, spool)


def _has_image(folder: Path) -> bool:
    if folder.name.startswith("."):
        return False
    return any(name.lower().endswith(IMAGES) for _, _, files in os.walk(folder) for name in files)


def chosen(n: int, options: Evaluation) -> np.ndarray:
    """The places of n samples that are measured, int64, in order: all, or `limit` of them drawn with the seed."""
    if options.limit is None or options.limit >= n:
        return np.arange(n)
    return np.sort(np.random.default_rng(options.seed).permutation(n)[: options.limit])


def clips(pairs: data.Index, frames: int) -> list[np.ndarray]:
    """The places of each thing that is measured: of a picture one, or, for a model that sees several frames of a video
    at once, those of all frames with one caption (`videos.clips`)."""
    return videos.clips(pairs) if frames > 1 else list(np.arange(len(pairs))[:, None])


def captioned(pairs: data.Index, which: str, frames: int = 1) -> list[tuple[np.ndarray, list[str]]]:
    """(places of an image or of a video's frames, its captions): `first` the .txt of the first one, `all` as in
    Karpathy's test sets: samples with one `url` are one image, and to it belong their .txt, or its lines where there
    are several, and the `captions` of their JSON, each once."""
    found = clips(pairs, frames)
    if which == "first":
        return [(clip, [data.caption(pairs, int(clip[0]))]) for clip in found]
    images: dict[str, tuple[np.ndarray, dict[str, None]]] = {}
    for clip in found:
        url = data.meta(pairs, int(clip[0])).get("url")
        _, captions = images.setdefault(f"url {url}" if url else f"uid {pairs.uids[clip[0]]}", (clip, {}))
        for place in clip:
            listed = data.meta(pairs, int(place)).get("captions")
            more = listed if isinstance(listed, list) else []
            lines = [line for line in data.caption(pairs, int(place)).splitlines() if line.strip()]
            captions |= dict.fromkeys([*lines, *(str(text) for text in more if text)])
    return [(clip, list(captions)) for clip, captions in images.values() if captions]


def seen(pairs: data.Index, clip: np.ndarray, frames: int, shorter: int, broken: set[str]) -> list[np.ndarray] | None:
    """The picture at a place, or the frames of a video as they are measured in training; None where none of them can be
    decoded. Frames that cannot be are noted in `broken`."""
    return videos.pictures(pairs, clip, frames, None, shorter, broken) or None
