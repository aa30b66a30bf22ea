"""Pictures with classes, from a folder for each class, WebDataset shards, or a set of Hugging Face."""

import json
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import fsspec
import numpy as np

from vlmdata.errors import DataError, InputError, first_line
from vlmdata.recipe import Evaluation, nearest
from vlmdata.train import data

log = logging.getLogger(__name__)

IMAGES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")
CLASSES, TEMPLATES = "classnames.txt", "zeroshot_classification_templates.txt"  # beside CLIP benchmark's shards
_LARGEST_FILE = 100_000_000  # bytes of a picture


class Labelled(NamedTuple):
    """n pictures, each of one of some classes."""

    names: list[str]  # of the classes, as a prompt may use them
    labels: np.ndarray  # int64 [n], into `names`
    uids: list[str]
    read: Callable[[int, int], np.ndarray | None]  # (place, shorter side in pixels as for `data.image`) -> uint8 RGB
    templates: list[str] | None = None  # that the set brings

    def taken(self, places: np.ndarray) -> "Labelled":
        """The pictures at `places` alone; the classes stay."""
        return self._replace(
            labels=self.labels[places],
            uids=[self.uids[place] for place in places],
            read=lambda place, shorter: self.read(int(places[place]), shorter),
        )


def lines(path: str) -> list[str]:
    """The lines of a text file (a path or any fsspec URL) that are not empty. Raises InputError."""
    try:
        with fsspec.open(path, "rb") as file:
            found = file.read().decode("utf-8-sig")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    return [line.strip() for line in found.splitlines() if line.strip()]


def from_folder(root: Path, options: Evaluation) -> Labelled:
    """A folder for each class, sorted by name; pictures stand at any depth below it. A class is called as its folder,
    with spaces for `_`, or as the line of `classes` in the same place. Names that begin with a dot are passed over.

    Raises InputError for fewer than two classes, and for `classes` of another number.
    """
    names, labels, files = list[str](), list[int](), list[str]()
    for folder in sorted(p.name for p in root.iterdir() if p.is_dir() and not p.name.startswith(".")):
        found = [
            os.path.join(where, name)
            for where, _, members in os.walk(root / folder)
            for name in members
            if name.lower().endswith(IMAGES) and not name.startswith(".")
        ]
        if not found:
            log.warning("%s: the folder %r holds no picture and is no class", root, folder)
            continue
        labels += [len(names)] * len(found)
        files += sorted(found)
        names.append(folder.replace("_", " "))
    if options.classes:
        given = lines(options.classes)
        if len(given) != len(names):
            raise InputError(f"{options.classes}: {len(given)} classes, and {root} has {len(names)} folders")
        names = given
    if len(names) < 2:
        raise InputError(f"{root}: {len(names)} folders with pictures; there must be one for each class")
    uids = [os.path.relpath(file, root) for file in files]
    return Labelled(names, np.array(labels, np.int64), uids, lambda place, shorter: _picture(files[place], shorter))


def _picture(path: str, shorter: int) -> np.ndarray | None:
    if not os.path.isfile(path) or os.path.getsize(path) > _LARGEST_FILE:  # no pipe or device
        return None
    with open(path, "rb") as file:
        return data.decoded(file.read(), shorter)


def from_shards(tars: list[str], options: Evaluation) -> Labelled:
    """The samples of WebDataset tars with a picture and a class: the .cls member, or the value of `label` in the JSON.

    A class is a number from 0, or a name. Names of numbers come from `classes`, or from `classnames.txt` in the tars'
    folder or the one above it, as CLIP benchmark's sets have it. Raises InputError where there are none.
    """
    member = "json" if options.label else "cls"
    values, uids, places, unlabelled = list[Any](), list[str](), list[tuple[str, int, int]](), 0
    for path in tars:
        for uid, members in data.samples(path):
            image = next((members[e] for e in data.IMAGES if e in members), None)
            value = _value(path, uid, members[member], options.label) if member in members else ""
            if image is None or value in ("", None):
                unlabelled += 1
                continue
            values.append(value)
            uids.append(uid)
            places.append((path, *image))
    if unlabelled:
        log.warning("%d samples without a picture or a class are left out", unlabelled)
    names, labels = _numbered(values, _beside(tars, CLASSES) if not options.classes else lines(options.classes))

    def read(place: int, shorter: int) -> np.ndarray | None:
        path, offset, size = places[place]
        return data.decoded(data.read(path, offset, size), shorter)

    return Labelled(names, labels, uids, read, _beside(tars, TEMPLATES))


def _value(path: str, uid: str, where: tuple[int, int], key: str | None) -> Any:
    """What a member says of the class: a number or a text. Raises DataError, naming the sample."""
    text = data.read(path, *where).decode("utf-8", "replace").strip()
    if key is None:
        return int(text) if text.isascii() and text.isdigit() else text
    try:
        value = json.loads(text)[key]
    except KeyError:
        return None
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}: {uid}.json is no JSON object: {error}") from error
    if isinstance(value, float) and value.is_integer():  # as our shards write whole numbers that may be null
        return int(value)
    if not isinstance(value, str | int):
        raise DataError(f"{path}: {uid}.json: {key} is {value!r}, and a class is a number from 0 or a name")
    return value


def _numbered(values: list[Any], names: list[str] | None) -> tuple[list[str], np.ndarray]:
    """The classes' names and of each value its number, int64 [n]. Raises InputError for numbers without names."""
    if not values:
        raise InputError("there is no sample with a class: name the key that holds it by --label")
    if all(isinstance(value, int) for value in values):
        if names is None:
            raise InputError("the classes are numbers: give a file with a name a line, from 0 on, by --classes")
        if not 0 <= min(values) <= max(values) < len(names):
            raise InputError(f"--classes: {len(names)} names for classes from {min(values)} to {max(values)}")
        return names, np.array(values, np.int64)
    texts = [str(value) for value in values]
    known = sorted(set(texts)) if names is None else names
    number = {name: place for place, name in reversed(list(enumerate(known)))}
    strange = next((text for text in texts if text not in number), None)
    if strange is not None:
        raise InputError(f"--classes: {strange!r} is not among the {len(known)} names{nearest(strange, known)}")
    return known, np.array([number[text] for text in texts], np.int64)


def _beside(tars: list[str], name: str) -> list[str] | None:
    """The lines of a file in the tars' folder or the one above it; None where there is none."""
    fs, path = fsspec.core.url_to_fs(tars[0])
    for folder in (path.rpartition("/")[0], path.rpartition("/")[0].rpartition("/")[0]):
        if fs.exists(f"{folder}/{name}"):
            return lines(fs.unstrip_protocol(f"{folder}/{name}"))
    return None


def from_huggingface(name: str, split: str | None, options: Evaluation) -> Labelled:
    """A set that `datasets` saved on disk, or one of the hub by name (`NAME:SUBSET`), downloaded into its own cache.

    The class is the column `label` names, by default the only ClassLabel, else `label`; the picture the first Image.
    Raises InputError for what is not there, and where the package `datasets` is not installed.
    """
    rows = _rows(name, split)
    import datasets

    features = rows.features
    image = next((key for key, kind in features.items() if isinstance(kind, datasets.Image)), None)
    if image is None:
        raise InputError(f"{name}: there is no column with pictures; there are {', '.join(features)}")
    kinds = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    label = options.label or (kinds[0] if len(kinds) == 1 else "label")
    if label not in features:
        raise InputError(f"{name}: there is no column {label!r}; name the one with the class by --label")
    values = rows[label][:]
    places = np.array([place for place, value in enumerate(values) if value not in (None, "", -1)], np.int64)
    names = lines(options.classes) if options.classes else getattr(features[label], "names", None)
    names, labels = _numbered([values[place] for place in places], names)
    pictures = rows.select_columns([image]).cast_column(image, datasets.Image(decode=False))

    def read(place: int, shorter: int) -> np.ndarray | None:
        found = pictures[int(places[place])][image]
        if found["bytes"] is not None:
            return data.decoded(found["bytes"], shorter)
        return _picture(str(found["path"]), shorter)

    return Labelled([text.replace("_", " ") for text in names], labels, [f"row {place}" for place in places], read)


def _rows(name: str, split: str | None) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise InputError(f"{name}: the package `datasets` is not installed: pip install 'vlmdata[hf]'") from error
    try:
        if not os.path.isdir(name):
            repository, _, subset = name.partition(":")
            return datasets.load_dataset(repository, subset or None, split=split or "test")
        found = datasets.load_from_disk(name)
        if not isinstance(found, datasets.DatasetDict):
            return found
        wanted = split or ("test" if "test" in found else next(iter(found)))
        if wanted not in found:
            raise InputError(f"{name}: there is no split {wanted!r}{nearest(wanted, found)}")
        return found[wanted]
    except (OSError, ValueError) as error:  # `datasets` raises these for a name, a split, a subset, no network
        raise InputError(f"{name}: {first_line(error)}") from error
