"""Takes over a finished img2dataset output folder: writes the recipe with which `vlmdata run` goes on from there."""

import os
from typing import Any

import pyarrow.compute as pc
import pyarrow.parquet as pq
import yaml

from vlmdata.dataset import Dataset
from vlmdata.errors import InputError
from vlmdata.recipe import Download, Recipe, WebdatasetSource
from vlmdata.sources import webdataset

RECIPE = "recipe.yaml"
_LARGEST_SIDE = 65_500
_WORDS = """\
# Written by `vlmdata adopt`. Yours to change: add signals, rules, sources, then `vlmdata run` this file.
# size: the largest shorter side that is stored, so that no stored image is made smaller; images that are tried again
# (vlmdata run --retry timeout,connect) are stored at it, too.
"""


def write_recipe(folder: str, dataset: Dataset) -> Recipe:
    """The recipe of an adopted folder, written to `recipe.yaml` in the dataset where there is none yet.

    Raises InputError for a folder that is not img2dataset's, and where the dataset has another recipe already.
    """
    if not os.path.isdir(folder):
        raise InputError(f"{folder}: there is no such folder")
    source = WebdatasetSource(kind="webdataset", name="img2dataset", path=os.path.abspath(folder))
    shards = webdataset.shards(source)
    parquets = [os.path.join(folder, shard.parquet) for shard in shards if shard.parquet]
    if not parquets:
        raise InputError(
            f"{folder}: no tar or folder here has img2dataset's Parquet file (with the columns url, key, status) "
            "beside it; tars of any other making are the source {kind: webdataset, path: …}"
        )
    webdataset.check(source)
    recipe: dict[str, Any] = {
        "dataset": os.path.abspath(dataset.root) if dataset.local else dataset.url,
        "sources": [source.model_dump(include={"kind", "name", "path"})],
        "download": {"size": _size(parquets)},
        "signals": ["text", "language", "image"],
        "dedup": ["exact", "perceptual"],
    }
    text = _WORDS + yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True)
    if not dataset.exists(RECIPE):
        dataset.write_bytes(RECIPE, text.encode())
    elif dataset.read_bytes(RECIPE) != text.encode():
        raise InputError(
            f"{dataset.path(RECIPE)} is there already and is not what adopting {folder} would write: go on with "
            f"`vlmdata run {dataset.path(RECIPE)}`, or adopt into another dataset"
        )
    return Recipe.model_validate(recipe)


def _size(parquets: list[str]) -> int:
    """The largest shorter side in pixels. Where it stands nowhere (`disable_all_reencoding`), images were left as they
    came: no limit."""
    largest = 0
    unknown = False
    for path in parquets:
        with pq.ParquetFile(path) as file:
            if not {"width", "height"} <= set(file.schema_arrow.names):
                unknown = True
                continue
            for batch in file.iter_batches(columns=["width", "height", "status"]):
                rows = batch.filter(pc.equal(batch["status"], "success"))
                sides = pc.min_element_wise(rows["width"], rows["height"], skip_nulls=False)
                unknown |= sides.null_count > 0
                largest = max(largest, pc.max(sides).as_py() or 0)
    return _LARGEST_SIDE if unknown else min(max(largest or Download().size, 16), _LARGEST_SIDE)


def statuses(dataset: Dataset, key: str) -> dict[str, int]:
    """How many rows of the table `images` ended how, the most frequent first."""
    counts: dict[str, int] = {}
    table = dataset.read_table("images", key)
    for part in table.parts if table else ():
        for entry in pc.value_counts(
            dataset.read_part(part, ["download_status"])["download_status"].drop_null()
        ).to_pylist():
            counts[entry["values"]] = counts.get(entry["values"], 0) + entry["counts"]
    return dict(sorted(counts.items(), key=lambda entry: (-entry[1], entry[0])))
