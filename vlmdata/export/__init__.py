"""Kept pairs in the formats of others, one file a format; what is in a snapshot stays as it is.

Each module has `write(dataset, manifest, aside)`: it writes a file or a folder at a path where nothing is.
"""

import importlib
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from vlmdata.dataset import Dataset
from vlmdata.errors import InputError, MachineError


def export(dataset: Dataset, manifest: dict[str, Any], form: str, out: str) -> str:
    """Write a snapshot's kept pairs to `out`, a local file (datacomp, csv) or folder (hf, mds), in one step.

    Raises InputError where something is at `out` already, DataError where the pairs do not fit the format.
    """
    target = Path(os.path.abspath(out))
    if target.exists():
        raise InputError(f"{out}: is there already; choose another name, or remove it")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    except OSError as error:
        raise MachineError(f"{target.parent}: cannot be written: {error.strerror}") from error
    try:
        importlib.import_module(f"vlmdata.export.{form}").write(dataset, manifest, folder / "out")
        os.replace(folder / "out", target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    return str(target)
