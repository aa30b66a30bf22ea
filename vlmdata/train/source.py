"""Which shards a training reads: those of a dataset's newest snapshot, or files."""

from typing import Any

from vlmdata.dataset import Dataset
from vlmdata.errors import InputError

ENDINGS = (".tar", ".parquet")


def shards(data: str, train_split: str = "train", test_split: str = "test") -> dict[str, list[str]]:
    """Split -> shards, as paths that fsspec opens.

    data: a dataset's folder or URL, or shards: a path, a glob, a URL, a folder with shards. A file's split is its name
    up to the last hyphen (`test-0000000.tar`), where that is one of the two; all others are of the training split.
    Raises InputError where there are none.
    """
    dataset = Dataset(data)
    manifest = dataset.latest()
    if manifest is not None:
        return of_snapshot(dataset, manifest)
    if any(sign in data for sign in "*?[") and not dataset.exists(""):
        paths = sorted(dataset.fs.glob(dataset.root))
    else:
        paths = sorted(dataset.fs.ls(dataset.root, False)) if dataset.fs.isdir(dataset.root) else [dataset.root]
    files = [_url(dataset, path) for path in paths if path.endswith(ENDINGS) and dataset.fs.exists(path)]
    if not files:
        raise InputError(f"{data}: neither a dataset with a snapshot nor .tar or .parquet shards")
    found: dict[str, list[str]] = {}
    for path in files:
        name = path.rsplit("/", 1)[1]
        split = name.rsplit("-", 1)[0]
        found.setdefault(split if split in (train_split, test_split) else train_split, []).append(path)
    return found


def of_snapshot(dataset: Dataset, manifest: dict[str, Any]) -> dict[str, list[str]]:
    """Split -> the shards of a snapshot: the WebDataset ones, or where it has none the Parquet ones.

    Raises InputError where it has neither.
    """
    for form in ("webdataset", "parquet"):
        found: dict[str, list[str]] = {}
        for shard in manifest["shards"]:
            if shard["format"] == form:
                found.setdefault(shard["split"], []).append(_url(dataset, dataset.path(shard["path"])))
        if found:
            return found
    raise InputError(f"{dataset.url}: no shards to train on: nothing was kept, or shards.formats leaves them out")


def _url(dataset: Dataset, path: str) -> str:
    return path if dataset.local else dataset.fs.unstrip_protocol(path)
