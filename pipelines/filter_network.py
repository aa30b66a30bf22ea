"""Trains a filter network on the trusted sources' pairs, before the signal `filter` scores every part with it.

The model lies in the dataset, `models/<key>/`, its manifest.json written last. It is trained once: a retry or a refresh
scores new pairs with the model that scored the old ones, so that one threshold judges them all.
"""

import json
import logging
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from vlmdata import layers, recipe, shards
from vlmdata.catalog import wide_part
from vlmdata.dataset import Dataset, Part, Table, noted
from vlmdata.errors import InputError
from vlmdata.plan import SignalPlan
from vlmdata.rules import evaluate
from vlmdata.signals import filter as family

log = logging.getLogger(__name__)


def trained(dataset: Dataset, tables: dict[str, Table], signal: SignalPlan) -> SignalPlan:
    """The signal with its model's place in the dataset; trained now, if it is not there.

    tables: pairs, images, source_signals where there are any, and what the `after` rules read.
    A training that was killed goes on from its last checkpoint. Raises InputError for too few trusted pairs.
    """
    options = signal.measurement.options
    assert isinstance(options, recipe.FilterSignal)
    folder = f"models/{signal.key}"
    if not dataset.exists(f"{folder}/manifest.json"):
        # what a killed training left is of use to the same training on the same pairs alone
        kept = dataset.kept_folder("training")
        with dataset.kept(f"training/{signal.key}-{_state(tables)}") as own:
            for other in kept.iterdir():
                if other != own:
                    shutil.rmtree(other)
            _train(dataset, tables, signal, options, own, folder)
    place = dataset.path(folder) if dataset.local else f"{dataset.url.rstrip('/')}/{folder}"
    found = options.model_copy(update={"trusted": [], "checkpoint": place})
    return replace(signal, measurement=replace(signal.measurement, options=found))


def _state(tables: dict[str, Table]) -> str:
    return tables["images"].sha256[:16]


def _train(
    dataset: Dataset,
    tables: dict[str, Table],
    signal: SignalPlan,
    options: recipe.FilterSignal,
    own: Path,
    folder: str,
) -> None:
    """Train in the local folder `own`, and commit the model into the dataset's `folder`."""
    from vlmdata.train.loop import train

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
    files = [dataset.commit(file, f"{folder}/{file.name}") for file in sorted((own / "run" / "model").iterdir())]
    dataset.guard()
    dataset.write_json(
        f"{folder}/manifest.json",
        {
            "format_version": 1,
            "trusted": options.trusted,
            "after": {name: rule.sql for name, rule in signal.measurement.after.items()},
            "pairs": count,
            "loss": metrics["train/loss"],
            "job": job.model_dump(mode="json"),
            "inputs": noted(tables.values()),
            "files": [asdict(file) for file in files],
        },
    )


def _write_pairs(dataset: Dataset, tables: dict[str, Table], signal: SignalPlan, trusted: list[str], into: Path) -> int:
    """The trusted pairs that have an image and pass the rules, as a WebDataset tar for each part; how many they are."""
    in_force = layers.in_force(dataset, tables["pairs"])
    count = 0
    for parts in zip(*(table.parts for table in tables.values() if _of_pairs(table)), strict=True):
        images = next(part for part in parts if part.also)
        rows = wide_part(dataset, list(parts))
        wanted = pc.and_(pc.is_in(rows["source"], pa.array(trusted)), rows["length"].is_valid())
        wanted = pc.and_(wanted, rows["caption"].is_valid())
        if parts[0].name in in_force:
            wanted = pc.and_(wanted, in_force[parts[0].name])
        chosen = wanted.to_numpy(zero_copy_only=False).astype(bool)
        if signal.measurement.after:
            for passed in evaluate(rows, signal.measurement.after).columns:
                chosen &= pc.fill_null(passed, False).to_numpy(zero_copy_only=False).astype(bool)
        kept = rows.take(pa.array(np.flatnonzero(chosen)))
        count += kept.num_rows
        if kept.num_rows:
            _write_tar(dataset, images, kept, into / f"{parts[0].name}.tar")
    return count


def _of_pairs(table: Table) -> bool:
    """Whether a table has scalar columns, a part for each of pairs: embeddings are large and no rule reads them."""
    return not table.table.startswith("embeddings_")


def _write_tar(dataset: Dataset, images: Part, kept: pa.Table, path: Path) -> None:
    with dataset.open(images.also[0].path) as tar:
        content = []
        for offset, length in zip(kept["offset"].to_pylist(), kept["length"].to_pylist(), strict=True):
            tar.seek(offset)
            content.append(tar.read(length))
    context = [json.dumps({"context": text or ""}) for text in kept["context"].to_pylist()]
    columns = {"uid": kept["uid"], "jpg": pa.array(content, pa.large_binary()), "txt": kept["caption"], "json": context}
    shards.write_tar(pa.table(columns), path)
