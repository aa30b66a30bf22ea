"""Models that a signal has trained on the dataset itself, before its parts are measured.

A model lies in the dataset, `models/<key>/`, its manifest.json written last. It is trained once: a retry or a refresh
measures new pairs with the model that measured the old ones, so that one threshold judges them all.
"""

import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from vlmdata import recipe
from vlmdata.dataset import Dataset
from vlmdata.parts import Table, noted
from vlmdata.pipelines import clusters, filter_network
from vlmdata.plan import Plan, SignalPlan

# Each trains in a local folder, where what a killed training left may lie; the model's files, and what to note of it.
Train = Callable[[Plan, Dataset, dict[str, Table], SignalPlan, Path], tuple[list[Path], dict[str, Any]]]
_TRAIN: dict[str, Train] = {"filter": filter_network.train, "near_target": clusters.train}


def trained(plan: Plan, dataset: Dataset, tables: dict[str, Table], signal: SignalPlan) -> SignalPlan:
    """The signal with its model's place in the dataset; trained now, if it is not there.

    tables: pairs, images, source_signals where there are any, and what the signal and its `after` rules read.
    """
    options = signal.measurement.options
    assert isinstance(options, recipe.FilterSignal | recipe.NearTargetSignal)
    folder = f"models/{signal.key}"
    if not dataset.exists(f"{folder}/manifest.json"):
        # what a killed training left is of use to the same training on the same pairs alone
        kept = dataset.kept_folder("training")
        with dataset.kept(f"training/{signal.key}-{tables['images'].sha256[:16]}") as own:
            for other in kept.iterdir():
                if other != own:
                    shutil.rmtree(other)
            made, about = _TRAIN[options.kind](plan, dataset, tables, signal, own)
            files = [dataset.commit(file, f"{folder}/{file.name}") for file in made]
            dataset.guard()
            about |= {
                "after": {name: rule.sql for name, rule in signal.measurement.after.items()},
                "inputs": noted(tables.values()),
                "files": [asdict(file) for file in files],
            }
            dataset.write_json(f"{folder}/manifest.json", {"format_version": 1, **about})
    found = options.model_copy(update={"checkpoint": f"{dataset.absolute.rstrip('/')}/{folder}"})
    return replace(signal, measurement=replace(signal.measurement, options=found))
