"""A change of many files that a kill at any moment leaves undone or to be finished.

All new files are first made in `forgetting/`. Then one write of the journal commits the change: from there on files are
moved to their places in a fixed order and old ones removed, and whoever holds the dataset's lock next goes on with it.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlmdata.dataset import Dataset
from vlmdata.parts import File

JOURNAL, FOLDER = "forgetting.json", "forgetting"


@dataclass
class Staged:
    """What has been made for a change. files: path -> (SHA-256 of the file there now, what comes in its place)."""

    dataset: Dataset
    files: dict[str, tuple[str | None, File]] = field(default_factory=dict)
    moves: list[str] = field(default_factory=list)
    removes: list[str] = field(default_factory=list)
    rows: dict[str, int] = field(default_factory=dict)  # of parts that have fewer now

    def put(self, aside: Path, path: str, old: str | None = None) -> File:
        """Take a finished local file as what is to stand at `path`."""
        made = self.dataset.commit(aside, f"{FOLDER}/{path}")
        file = File(path, made.bytes, made.sha256)
        self.files[path] = (old, file)
        self.moves.append(path)
        return file

    def put_bytes(self, content: bytes, path: str) -> None:
        with self.dataset.spool() as folder:
            (folder / "file").write_bytes(content)
            self.put(folder / "file", path)

    def put_sealed(self, path: str, content: dict[str, Any]) -> None:
        self.dataset.write_sealed(f"{FOLDER}/{path}", content)
        self.moves.append(path)


def read(dataset: Dataset) -> dict[str, Any] | None:
    """The change that is under way, or None."""
    return dataset.read_json(JOURNAL) if dataset.exists(JOURNAL) else None


def begin(dataset: Dataset, content: dict[str, Any]) -> None:
    """Write down what is to be done. What an attempt before has staged goes."""
    dataset.guard()
    dataset.write_json(JOURNAL, content)


def commit(dataset: Dataset, content: dict[str, Any], staged: Staged) -> dict[str, Any]:
    """Write down that all is made; the journal as it is then."""
    journal = content | {"moves": staged.moves, "removes": staged.removes}
    dataset.guard()
    dataset.write_json(JOURNAL, journal)
    return journal


def apply(dataset: Dataset, journal: dict[str, Any]) -> None:
    """Move every file to its place. What was moved already is passed over."""
    for path in journal["moves"]:
        dataset.move(f"{FOLDER}/{path}", path)


def end(dataset: Dataset) -> None:
    """The change is done."""
    dataset.remove(FOLDER)
    dataset.remove(JOURNAL)
