"""One training on one selection with one seed, done once: its outcome is kept under a key of all that decides it."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import fsspec
import pyarrow as pa

from vlmdata.dataset import Dataset
from vlmdata.evaluate.retrieval import ranks
from vlmdata.parts import make_key
from vlmdata.recipe import ContrastiveJob
from vlmdata.train.loop import train

VERSION = 2


def trial_key(job: ContrastiveJob, chosen: pa.Table, pool: dict[str, Any], test: str) -> str:
    """16 hex digits. chosen: uid and copies; pool: the snapshot's manifest; test: what `sha256_of` its shards gives."""
    uids = hashlib.sha256(json.dumps(chosen.to_pydict()).encode()).hexdigest()
    return make_key("trial", VERSION, [job.keyed("name"), uids, test], [shard["sha256"] for shard in pool["shards"]])


def sha256_of(paths: list[str]) -> str:
    """Of the content of several files, local or anywhere, in order."""
    whole = hashlib.sha256()
    for path in paths:
        with fsspec.open(path, "rb") as file:
            whole.update(hashlib.file_digest(file, "sha256").digest())
    return whole.hexdigest()


def run(
    dataset: Dataset, job: ContrastiveJob, shards: dict[str, list[str]], copies: Mapping[str, int], key: str
) -> dict[str, Any]:
    """Train on the samples of `copies` (uid -> how often) and rank the test's pairs: metrics (`loop.train`), and ranks
    (`retrieval.ranks`, as lists). A training that was killed goes on from its last checkpoint.

    Features of frozen towers are computed once, for all trials on one pool. Raises as `loop.train` does.
    """
    place = f"compare/trials/{key}.json"
    if dataset.exists(place):
        return dataset.read_json(place)
    found: dict[str, list[float]] = {}

    def finished(objective: Any, samples: Any) -> None:
        ranked = ranks(*objective.vectors(samples, job.batch))
        found.update({direction: of.tolist() for direction, of in ranked.items()})

    with dataset.kept(f"compare/running/{key}") as own:
        cache = str(dataset.kept_folder("compare/cache"))
        metrics = train(job, shards, str(own), resume=True, only=copies, cache=cache, finished=finished)
        content = {"format_version": 1, "metrics": metrics, "ranks": found}
        dataset.guard()
        dataset.write_json(place, content)
    return content
