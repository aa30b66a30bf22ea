"""Names for snapshots, in `tags.json`; `DATASET@NAME` and `DATASET@000002` mean one snapshot of a dataset."""

import re
from typing import Any

from vlmdata.dataset import Dataset
from vlmdata.errors import InputError
from vlmdata.recipe import nearest

TAGS = "tags.json"
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_.-]{0,63}")


def tags(dataset: Dataset) -> dict[str, int]:
    """Name -> number of its snapshot, by name."""
    return dict(sorted(dataset.read_json(TAGS).items())) if dataset.exists(TAGS) else {}


def tag(dataset: Dataset, name: str, word: str | None = None) -> int:
    """Give a snapshot (a number or another tag; the one in force otherwise) a name, which leaves the one it had.

    Returns the snapshot's number. Raises InputError for what is no name, and where there is no such snapshot.
    """
    if not _NAME.fullmatch(name):
        raise InputError(f"{name!r} is no name for a snapshot: a letter, then letters, digits, `_`, `.` and `-`")
    number = number_of(dataset, word) if word is not None else _newest(dataset)
    dataset.write_json(TAGS, dict(sorted({**tags(dataset), name: number}.items())))
    return number


def remove(dataset: Dataset, name: str) -> None:
    """Take a name away. Raises InputError where there is none."""
    known = tags(dataset)
    if name not in known:
        raise InputError(f"{dataset.url}: no snapshot is called {name!r}{nearest(name, known)}")
    del known[name]
    dataset.write_json(TAGS, known)


def number_of(dataset: Dataset, word: str) -> int:
    """The number of the snapshot that a number or a tag means. Raises InputError where there is none."""
    newest = _newest(dataset)
    if not word.isdecimal():
        known = tags(dataset)
        if word not in known:
            raise InputError(f"{dataset.url}: no snapshot is called {word!r}{nearest(word, known)}")
        return known[word]
    number = int(word)
    if not 1 <= number <= newest:
        raise InputError(f"{dataset.url}: has no snapshot {number}: the newest one is {newest}")
    if number not in dataset.numbers():
        raise InputError(f"{dataset.url}: has no snapshot {number} any more: `vlmdata gc` has removed it")
    return number


def find(data: str) -> tuple[Dataset, dict[str, Any]] | None:
    """The dataset that `data` names, with the manifest of the snapshot in force or of the one behind the `@` (a number
    or a tag); None where it names none. Raises InputError where the dataset has no such snapshot."""
    dataset = Dataset(data)
    if manifest := dataset.latest():
        return dataset, manifest
    place, sign, word = data.rpartition("@")
    if not sign or not (word.isdecimal() or _NAME.fullmatch(word)):
        return None
    dataset = Dataset(place)
    if dataset.latest() is None:
        return None
    return dataset, dataset.snapshot(number_of(dataset, word))


def opened(data: str) -> tuple[Dataset, dict[str, Any]]:
    """As `find`. Raises InputError where there is no snapshot."""
    found = find(data)
    if found is None:
        raise InputError(f"{data}: no snapshot here; make one by `vlmdata run RECIPE`")
    return found


def _newest(dataset: Dataset) -> int:
    latest = dataset.latest()
    if latest is None:
        raise InputError(f"{dataset.url}: no snapshot here; make one by `vlmdata run RECIPE`")
    return latest["number"]
