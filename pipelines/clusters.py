"""Clusters of the pool's embeddings and the targets' places among them, for the signal `near_target`."""

import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from vlmdata import recipe
from vlmdata.dataset import Dataset
from vlmdata.dedup import evaluation
from vlmdata.dedup.decontaminate import unit
from vlmdata.dedup.partitions import nearest_one, whole
from vlmdata.dedup.partitions import train as kmeans
from vlmdata.errors import InputError
from vlmdata.parts import Table
from vlmdata.pipelines.decontaminate import measured_sets
from vlmdata.pipelines.training import trained_on
from vlmdata.plan import Plan, SignalPlan
from vlmdata.signals import near_target as family

log = logging.getLogger(__name__)

_ROWS, _MOST = 128, 100_000  # rows for each cluster, and clusters: DataComp's small pool of 12.8 million has so many


def train(
    plan: Plan, dataset: Dataset, tables: dict[str, Table], signal: SignalPlan, own: Path
) -> tuple[list[Path], dict[str, Any]]:
    """The files of `family.FILES` in the folder `own`, and what to note of them.

    Clustered are the vectors of the pairs that pass `after`, or a sample; see `partitions.train`. Its size alone, and
    that of a file of targets, is what memory holds.
    Raises InputError for fewer vectors than clusters, and for targets without a vector.
    """
    options = signal.measurement.options
    assert isinstance(options, recipe.NearTargetSignal)
    (table,) = family.reads(options)
    parts = tables[table].parts
    places = []
    for part, (_, _, chosen) in zip(parts, trained_on(dataset, tables, signal), strict=True):
        places.append(np.flatnonzero(chosen & unit(dataset.read_part(part, ["vector"])["vector"])[1]))
    ends = np.cumsum([len(some) for some in places])
    starts, count = ends - [len(some) for some in places], int(ends[-1])
    k = options.clusters or min(max(1, count // _ROWS), _MOST)
    if count < k:
        raise InputError(
            f"signals.near_target: {count} pairs have a vector in {table} and pass `after`, fewer than {k} clusters: "
            "loosen the rules, or make `clusters` smaller"
        )

    @lru_cache(1)
    def vectors(number: int) -> np.ndarray:
        return unit(dataset.read_part(parts[number], ["vector"])["vector"])[0][places[number]]

    def read(wanted: np.ndarray) -> np.ndarray:
        of = np.searchsorted(ends, wanted, side="right")
        return np.concatenate([vectors(n)[wanted[of == n] - starts[n]] for n in np.unique(of).tolist()])

    centroids = kmeans(read, count, k, options.seed).centroids
    found = family.targets(options)
    near = np.zeros(len(centroids), bool)
    targets = 0
    for part in measured_sets(plan, dataset, found, evaluation.pieces(found), [table]).parts:
        target, known = unit(dataset.read_part(part, ["vector"])["vector"])
        near[nearest_one(whole(target[known]), centroids)] = True
        targets += int(known.sum())
    if not targets:
        raise InputError(f"signals.near_target.targets: no image or vector in {', '.join(options.targets)}")
    log.info("%s: %d of %d clusters are nearest to %d targets", signal.name, near.sum(), len(near), targets)
    files = [own / name for name in family.FILES]
    for file, array in zip(files, (centroids, near), strict=True):
        np.save(file, array)
    counts = {"pairs": count, "clusters": len(near), "near": int(near.sum()), "targets": targets}
    return files, {**counts, "seed": options.seed}
