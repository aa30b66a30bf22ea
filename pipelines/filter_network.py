"""Trains a filter network on the trusted sources' pairs, for the signal `filter`."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlmdata import recipe, shards
from vlmdata.dataset import Dataset
from vlmdata.errors import InputError
from vlmdata.parts import Part, Table
from vlmdata.pipelines.training import trained_on
from vlmdata.plan import Plan, SignalPlan
from vlmdata.signals import filter as family

log = logging.getLogger(__name__)


def train(
    plan: Plan, dataset: Dataset, tables: dict[str, Table], signal: SignalPlan, own: Path
) -> tuple[list[Path], dict[str, Any]]:
    """The model's files in the local folder `own`, and what to note of them.

    A training that was killed goes on from its last checkpoint. Raises InputError for too few trusted pairs.
    """
    from vlmdata.train.loop import train

    options = signal.measurement.options
    assert isinstance(options, recipe.FilterSignal)
    tars = own / "pairs"
    shutil.rmtree(tars, ignore_errors=True)
    tars.mkdir()
    count = _write_pairs(dataset, tables, signal, options.trusted, tars)
    log.info("%s: trained on %d pairs of %s", signal.name, count, ", ".join(options.trusted))
    if count < options.batch:
        raise InputError(
            f"signals.filter: {count} pairs of {', '.join(options.trusted)} have an image and pass `after`, and a "
            f"batch is {options.batch}: trust more sources, loosen the rules, or make `batch` smaller"
        )
    job = family.job(options)
    try:
        metrics = train(job, {"train": [str(tar) for tar in sorted(tars.iterdir())]}, str(own / "run"), resume=True)
    except InputError as error:
        raise InputError(f"signals.filter: {error}") from error
    about = {
        "trusted": options.trusted,
        "pairs": count,
        "loss": metrics["train/loss"],
        "job": job.model_dump(mode="json"),
    }
    return sorted((own / "run" / "model").iterdir()), about


def _write_pairs(dataset: Dataset, tables: dict[str, Table], signal: SignalPlan, trusted: list[str], into: Path) -> int:
    """The trusted pairs that have an image and pass the rules, as a WebDataset tar for each part; how many they are."""
    count = 0
    for parts, rows, chosen in trained_on(dataset, tables, signal):
        images = next(part for part in parts if part.also)
        wanted = pc.and_(pc.is_in(rows["source"], pa.array(trusted)), rows["length"].is_valid())
        wanted = pc.and_(wanted, rows["caption"].is_valid())
        chosen = chosen & wanted.to_numpy(zero_copy_only=False).astype(bool)
        kept = rows.take(pa.array(np.flatnonzero(chosen)))
        count += kept.num_rows
        if kept.num_rows:
            _write_tar(dataset, images, kept, into / f"{parts[0].name}.tar")
    return count


def _write_tar(dataset: Dataset, images: Part, kept: pa.Table, path: Path) -> None:
    with dataset.opened(images.also[0]) as tar:
        content = list(map(shards.reader(tar), kept["offset"].to_pylist(), kept["length"].to_pylist()))
    context = [json.dumps({"context": text or ""}) for text in kept["context"].to_pylist()]
    columns = {"key": kept["uid"], "jpg": pa.array(content, pa.large_binary()), "txt": kept["caption"], "json": context}
    shards.write_tar([pa.table(columns)], path)
