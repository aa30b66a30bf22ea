"""Which shards a training reads: those of a dataset's snapshot, or files."""

from pathlib import Path
from typing import Any

from vlmdata import tags
from vlmdata.dataset import Dataset
from vlmdata.errors import InputError
from vlmdata.recipe import ProjectorJob, TrainJob

SHARDS = (".tar", ".parquet")
ENDINGS = (*SHARDS, ".json")  # LLaVA's conversations, where the file itself is named


def shards(data: str, train_split: str = "train", test_split: str = "test") -> dict[str, list[str]]:
    """Split -> shards, as paths that fsspec opens.

    data: a dataset's folder or URL (its newest snapshot; `DATASET@000002` or `DATASET@tag`: that one), or shards: a
    path, a glob, a URL, a folder with shards; LLaVA's JSON counts as one (see `conversations`). A file's split is its
    name up to the last hyphen (`test-0000000.tar`), where that is one of the two; all others are of the training split.
    Raises InputError where there are none.
    """
    if (known := tags.find(data)) is not None:
        return of_snapshot(*known)
    dataset = Dataset(data)
    if any(sign in data for sign in "*?[") and not dataset.exists(""):
        paths = sorted(dataset.fs.glob(dataset.root))
    else:
        paths = sorted(dataset.fs.ls(dataset.root, False)) if dataset.fs.isdir(dataset.root) else [dataset.root]
    endings = ENDINGS if paths == [dataset.root] else SHARDS  # what else lies in a folder is not meant
    tars = {path.removesuffix(".tar") for path in paths if path.endswith(".tar")}
    paths = [path for path in paths if path.removesuffix(".parquet") not in tars]  # beside a tar: of its samples
    files = [_url(dataset, path) for path in paths if path.endswith(endings) and dataset.fs.exists(path)]
    if not files:
        raise InputError(f"{data}: neither a dataset with a snapshot nor .tar or .parquet shards")
    found: dict[str, list[str]] = {}
    for path in files:
        name = path.rsplit("/", 1)[1]
        split = name.rsplit("-", 1)[0]
        found.setdefault(split if split in (train_split, test_split) else train_split, []).append(path)
    return found


def of_job(job: TrainJob, shards: list[str], folder: Path) -> list[str]:
    """The shards of a job's training split, and what else it trains on, made into one in `folder`."""
    if not isinstance(job, ProjectorJob) or job.conversations is None:
        return shards
    from vlmdata.train.conversations import spooled

    return [*shards, spooled(job.conversations, job.images, folder)]


def of_snapshot(dataset: Dataset, manifest: dict[str, Any]) -> dict[str, list[str]]:
    """Split -> the shards of a snapshot: the WebDataset ones, or where it has none the Parquet ones.

    Raises InputError where it has neither.
    """
    for form in ("webdataset", "parquet"):
        if found := shard_urls(dataset, manifest, form):
            return found
    raise InputError(f"{dataset.url}: no shards to train on: nothing was kept, or shards.formats leaves them out")


def shard_urls(dataset: Dataset, manifest: dict[str, Any], form: str) -> dict[str, list[str]]:
    """Split -> a snapshot's shards of one form, `webdataset` or `parquet`, as paths that fsspec opens."""
    found: dict[str, list[str]] = {}
    for shard in manifest["shards"]:
        if shard["format"] == form:
            found.setdefault(shard["split"], []).append(dataset.address(shard["path"]))
    return found


def _url(dataset: Dataset, path: str) -> str:
    return path if dataset.local else dataset.fs.unstrip_protocol(path)
