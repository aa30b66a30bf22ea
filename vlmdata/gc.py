"""Removal of what no snapshot in force refers to: older snapshots, tables, images, shards, trained models.

Nothing goes that a snapshot in force names, nor what was observed once: sources' rows, `observations`, `jobs`,
`metrics`, and the folders of jobs and comparisons.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from vlmdata.catalog import GROUPED
from vlmdata.dataset import Dataset
from vlmdata.parts import Table, snapshot_folder
from vlmdata.snapshot import own_files
from vlmdata.tags import tags

KEPT = 2
# Tables that belong to no snapshot alone, or that a later run needs.
_APART = ("observations", "found", "seen", "extracted", "jobs", "metrics", "evaluation")


@dataclass(frozen=True)
class Garbage:
    """snapshots: numbers that go, stay: those that stay with the reason; files: path -> bytes of all that goes."""

    snapshots: list[int]
    stay: dict[int, str]
    files: dict[str, int]

    @property
    def bytes(self) -> int:
        return sum(self.files.values())


def garbage(dataset: Dataset, keep: int = KEPT) -> Garbage:
    """What would go: snapshots but the newest `keep` (1 or more) and those with a tag, and the files of the dataset's
    own folders that none of these names. Nothing is removed."""
    numbers = dataset.numbers()
    stay = dict.fromkeys(numbers[-keep:], "")
    for name, number in tags(dataset).items():
        if number in numbers:
            stay[number] = f"{stay.get(number, '')} {name}".strip()
    manifests = {number: dataset.snapshot(number) for number in numbers if number in stay}
    named, keys = _named(dataset, manifests.values())
    pairs = [dataset.read_table("pairs", key) for name, key in keys if name == "pairs"]
    begun = {part.name for table in pairs if table for part in table.parts}  # a run that was killed goes on with these
    files = {}
    for folder in ("snapshots", "tables", "images", "models"):
        if not dataset.exists(folder):
            continue
        with dataset.reaching(folder):
            found = dataset.fs.find(dataset.path(folder), detail=True)
        for path, about in found.items():
            relative = path[len(dataset.path("")) :].lstrip("/") if dataset.root else path
            if relative not in named and not _needed(relative, keys, stay, begun):
                files[relative] = about["size"]
    return Garbage([number for number in numbers if number not in stay], dict(sorted(stay.items())), files)


def collect(dataset: Dataset, found: Garbage) -> None:
    """Remove it. Only the holder of the lock may call it, and with what `garbage` says under that lock."""
    gone = sorted({*dataset.removed(), *found.snapshots})
    if found.snapshots:  # first: a snapshot that is being removed is none any more
        dataset.write_sealed("removed.json", {"snapshots": gone})
    for number in found.snapshots:
        dataset.remove(f"{snapshot_folder(number)}/manifest.json")
    for path in found.files:
        dataset.remove(path)
    if dataset.local:
        _empty_folders(dataset, found.files)


def _named(dataset: Dataset, manifests: Iterable[dict[str, Any]]) -> tuple[set[str], set[tuple[str, str]]]:
    """The files that manifests name, and the tables (table, key), whose newest parts and manifests stay too."""
    named: set[str] = set()
    keys: set[tuple[str, str]] = set()
    for content in manifests:
        for name, table in content["tables"].items():
            keys.add((name, table["key"]))
            named |= _of_parts(table["parts"])
        named |= _of_parts(content["samples"]) | {file["path"] for file in own_files(content)}
    for name, key in keys:
        current: Table | None = dataset.read_table(name, key)
        if current is not None:  # it may have a layer that waits
            named |= {part.path for part in current.parts} | {file.path for part in current.parts for file in part.also}
    return named, keys


def _of_parts(parts: list[dict[str, Any]]) -> set[str]:
    return {part["path"] for part in parts} | {file["path"] for part in parts for file in part["also"]}


def _needed(path: str, keys: set[tuple[str, str]], stay: dict[int, str], begun: set[str]) -> bool:
    """Whether a file that no manifest names stays all the same."""
    folder, name, *rest = path.split("/")
    if folder == "snapshots":  # reports, manifests of samples
        in_shards = rest and rest[0] in ("shards", "samples") and not path.endswith("manifest.json")
        return name.isdecimal() and int(name) in stay and not in_shards
    if folder == "images":
        name, rest = "images", [name, *rest]
    if folder == "models":
        return name in {key for _, key in keys}
    part = rest[-1].partition(".")[0]
    grown = part == "manifest" or (part in begun and name not in GROUPED)
    return name in _APART or ((name, rest[0]) in keys and grown)


def _empty_folders(dataset: Dataset, files: Iterable[str]) -> None:
    for folder in sorted({path.rpartition("/")[0] for path in files}, key=len, reverse=True):
        while folder and not (dataset.exists(folder) and dataset.fs.ls(dataset.path(folder))):
            if dataset.exists(folder):
                dataset.fs.rmdir(dataset.path(folder))
            folder = folder.rpartition("/")[0]


def lines(found: Garbage) -> list[str]:
    """What stays and what goes, for people."""
    stays = ", ".join(f"{number} ({names})" if names else str(number) for number, names in found.stay.items())
    told = [f"stays: snapshots {stays or 'none'}"]
    if found.snapshots:
        told.append(f"goes:  snapshots {', '.join(map(str, found.snapshots))}")
    folders: dict[str, list[int]] = {}
    for path, size in found.files.items():
        parts = path.split("/")
        folders.setdefault("/".join(parts[: 3 if parts[0] == "tables" else 2]), []).append(size)
    told += [f"goes:  {name}: {len(sizes):,} files, {sum(sizes) / 1e6:,.1f} MB" for name, sizes in folders.items()]
    told.append(f"{len(found.files):,} files, {found.bytes / 1e6:,.1f} MB")
    return told
