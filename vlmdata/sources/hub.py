"""Datasets of Hugging Face, by name or from a local folder, as Arrow batches of the columns asked for.

Nothing of theirs is run: `datasets` 4 and later knows no scripts. A name is read as a stream, without a copy on disk;
private ones need HF_TOKEN in the environment.
"""

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import pyarrow as pa

from vlmdata.errors import InputError, MachineError
from vlmdata.recipe import TableSource, nearest
from vlmdata.sources import BATCH_ROWS
from vlmdata.sources.files import stamps
from vlmdata.sources.formats import sliced


def hub_columns(source: TableSource) -> pa.Schema:
    """Raises InputError for a dataset, split or subset that is not there."""
    with _reading(source):
        first = next(_open(source).with_format("arrow").iter(1), None)
    return first.schema.remove_metadata() if first is not None else pa.schema([])


def hub_batches(source: TableSource, names: list[str]) -> Iterator[pa.RecordBatch]:
    with _reading(source):
        for table in _open(source).select_columns(names).with_format("arrow").iter(BATCH_ROWS):
            for batch in table.select(names).combine_chunks().to_batches():
                yield from sliced(batch)


def revision(source: TableSource) -> str | None:
    """What changes with the dataset: of a local folder its files' sizes and times, else the Hub's commit. Raises
    InputError and MachineError as reading does."""
    assert source.hf is not None
    if os.path.isdir(source.hf):
        paths = [os.path.join(folder, name) for folder, _, names in os.walk(source.hf) for name in names]
        return hashlib.sha256(f"{sorted(paths)} {stamps('', sorted(paths))}".encode("utf-8", "replace")).hexdigest()
    from huggingface_hub import HfApi

    with _reading(source):
        return HfApi().dataset_info(source.hf).sha


def _open(source: TableSource) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"sources.{source.name}.hf: the package `datasets` is not installed: pip install 'vlmdata[hf]'"
        ) from error
    assert source.hf is not None
    if not os.path.isdir(source.hf):
        return _streamed(source.hf, source.subset, source.split)
    there = os.listdir(source.hf)
    if "dataset_dict.json" in there:  # what save_to_disk wrote: mapped into memory, not read into it
        splits = datasets.load_from_disk(source.hf)
        if source.split not in splits:
            near = nearest(source.split, splits)
            raise InputError(f"sources.{source.name}.split: {source.hf} has no split {source.split!r}{near}")
        return splits[source.split]
    if "state.json" in there:
        return datasets.load_from_disk(source.hf)
    return datasets.load_dataset(source.hf, source.subset, split=source.split, streaming=True)


@cache  # the hub is asked once a process what the dataset consists of
def _streamed(name: str, subset: str | None, split: str) -> Any:
    import datasets

    return datasets.load_dataset(name, subset, split=split, streaming=True)


@contextmanager
def _reading(source: TableSource) -> Iterator[None]:
    where = f"sources.{source.name}.hf: {source.hf!r}"
    try:
        yield
    except (FileNotFoundError, ValueError) as error:  # what `datasets` raises for a name, a split and a subset
        raise InputError(f"{where}: {_line(error)}") from error
    except (OSError, pa.ArrowException) as error:
        raise MachineError(f"{where} cannot be read: {_line(error)}") from error


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]
