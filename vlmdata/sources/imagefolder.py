"""Pairs from Hugging Face's ImageFolder layout: `metadata.jsonl`, `.csv` or `.parquet` with `file_name` and a caption.

https://huggingface.co/docs/datasets/image_dataset#imagefolder
"""

import os
import posixpath
from collections.abc import Iterator

import pyarrow as pa

from vlmdata.download.stored import local_url
from vlmdata.errors import InputError
from vlmdata.recipe import FolderSource, TableSource
from vlmdata.sources import ROWS, table
from vlmdata.sources.files import literal

NAMES = ("metadata.jsonl", "metadata.csv", "metadata.parquet")
_CAPTIONS = ("text", "caption")


def metadata(root: str) -> list[str]:
    """The metadata files of a folder and its subfolders, one in each at most; paths from `root`, sorted."""
    found = []
    for folder, subfolders, files in os.walk(root):
        subfolders.sort()
        name = next((name for name in NAMES if name in files), None)
        if name is not None and not os.path.islink(os.path.join(folder, name)):
            found.append(os.path.relpath(os.path.join(folder, name), root))
    return sorted(found)


def check(source: FolderSource, path: str) -> None:
    """Refuse a metadata file without a column `file_name`, or without a caption. Raises InputError."""
    _table(source, path)


def read(source: FolderSource, path: str, scratch: str) -> Iterator[pa.RecordBatch]:
    """The pairs of one metadata file, in its order; `file_name` is a path from the file's own folder.

    A row whose image is not there, or is outside of the source's folder, fails in the download and keeps its row.
    """
    listed = _table(source, path)
    folder = os.path.dirname(path)
    for batch in table.read(listed, scratch, verbatim=("url",)):
        names = [posixpath.normpath(posixpath.join(folder, name)) for name in batch["url"].to_pylist()]
        known = {
            "url": pa.array([local_url(source.name, name) for name in names], pa.string()),
            "fetch_url": pa.nulls(len(names), pa.string()),
        }
        yield pa.RecordBatch.from_arrays([known.get(name, batch[name]) for name in ROWS.names], schema=ROWS)


def _table(source: FolderSource, path: str) -> TableSource:
    """The metadata file as a list whose URLs are the files' names."""
    whole = os.path.join(source.path, path)
    for caption in _CAPTIONS:
        listed = TableSource(kind="table", name=source.name, path=literal(whole), url="file_name", caption=caption)
        try:
            table.check(listed)
            return listed
        except InputError as error:
            first = error
    raise InputError(
        f"sources.{source.name}: {path!r} is not an ImageFolder's metadata, with the columns `file_name` and `text` or "
        f"`caption`; if it is meant to be something else, rename it ({first})"
    )
