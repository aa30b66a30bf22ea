"""Whether what a stage will write fits on the disk, before it begins."""

import shutil
from pathlib import Path

from vlmdata.dataset import Dataset
from vlmdata.errors import MachineError
from vlmdata.parts import Part, Table
from vlmdata.recipe import Download

# Of a stored JPEG a pixel of a square with the recipe's side, where no image has come yet: less than most images take,
# since many URLs give none, and smaller ones are not enlarged.
_BYTES_A_PIXEL = 0.05


def check(dataset: Dataset, needed: float, what: str, aside: float) -> None:
    """Raise MachineError, with both numbers, when a disk has less room than is needed (bytes): the dataset's, or where
    that is remote, of which nobody knows the room, the one where uploads are made. aside: what lies there at once."""
    if dataset.local:
        place, advice = Path(dataset.root), "(`vlmdata gc` lists what no snapshot needs), or take another disk"
    else:
        place, needed = dataset.kept_folder(".spool"), min(needed, aside)
        advice = "for what is made there before it is uploaded, or set XDG_CACHE_HOME to another disk"
    free = shutil.disk_usage(next(folder for folder in (place, *place.parents) if folder.exists())).free
    if needed > free:
        raise MachineError(
            f"{what} will take about {_size(needed)}, and the disk of {place} has {_size(free)} free: "
            f"make room {advice}"
        )


def images(earlier: Table | None, missing: list[Part], options: Download) -> float:
    """About how many bytes the images of these parts of `pairs` will take: a row's share of those that have come."""
    rows = sum(part.rows for part in missing)
    if earlier is not None and earlier.rows:
        return rows * sum(file.bytes for part in earlier.parts for file in part.also) / earlier.rows
    return rows * _BYTES_A_PIXEL * options.size**2


def _size(count: float) -> str:
    return f"{count / 1e9:,.1f} GB" if count >= 1e8 else f"{count / 1e6:,.1f} MB"
