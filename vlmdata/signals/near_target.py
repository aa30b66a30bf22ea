"""Whether an image's cluster is that of a target: DataComp's image-based filtering (Gadre 2023, arXiv:2304.14108, 3.3).

The pool's image embeddings are clustered by k-means; each target's embedding belongs to the cluster whose centroid has
the largest inner product with it, and so does each pair's. A pair is near when any target is in its cluster.
`pipelines/clusters.py` makes the clusters before the parts are measured.
"""

import io
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa

from vlmdata import recipe
from vlmdata.dedup.decontaminate import unit
from vlmdata.dedup.evaluation import VERSION as EVALUATION
from vlmdata.dedup.evaluation import find
from vlmdata.dedup.partitions import nearest_one, whole
from vlmdata.download import lists
from vlmdata.errors import InputError
from vlmdata.schemas import conform, table_schema
from vlmdata.signals.models import absolute_checkpoint, file_sha256, loaded_once
from vlmdata.signals.pictures import Pictures

VERSION = 1
IMAGES = False
# centroids: float32 [k, d], whole numbers as `partitions.whole` makes them. near: bool [k], a target's nearest.
FILES = ("centroids.npy", "near.npy")

absolute = absolute_checkpoint


def schemas(options: recipe.NearTargetSignal) -> dict[str, pa.Schema]:
    """The table that `measure` gives."""
    name = recipe.signal_name(options)
    return {name: table_schema("near_target", recipe.signal_suffix(options))}


def reads(options: recipe.NearTargetSignal) -> list[str]:
    """The table of the embeddings."""
    return [f"embeddings_{options.embeddings}"]


def targets(options: recipe.NearTargetSignal) -> list[lists.File]:
    """The files of the targets. Raises InputError where a path leads to none."""
    return find(options.targets, "signals.near_target.targets")


def identity(options: recipe.NearTargetSignal) -> dict[str, str | int]:
    """What the targets' files hold, or the sha256 of a checkpoint's. Raises InputError for what is not there."""
    if options.checkpoint is None:
        return {"targets": lists.digest(targets(options)), "evaluation": EVALUATION}
    try:
        return {name: file_sha256(Path(options.checkpoint, name)) for name in FILES}
    except OSError as error:
        raise InputError(
            f"signals.near_target.checkpoint: {options.checkpoint}: {error.strerror}: no clusters"
        ) from error


def measure(rows: pa.Table, images: Pictures | None, options: recipe.NearTargetSignal) -> dict[str, pa.Table]:
    """The `near_target` table of some rows; reads uid and the embeddings' vectors. `options.checkpoint` has clusters.

    near_target: bool; null for a vector that is NaN, infinite or 0.
    Raises InputError where the clusters are of vectors of another length.
    """
    assert options.checkpoint is not None, "clusters are made before"
    centroids, near = _clusters(options.checkpoint)
    (table,) = reads(options)
    vectors, known = unit(pa.chunked_array(rows[table]))
    if known.any() and vectors.shape[1] != centroids.shape[1]:
        raise InputError(
            f"signals.near_target: the clusters of {options.checkpoint} are of vectors of length {centroids.shape[1]}, "
            f"those of {table} have length {vectors.shape[1]}: `embeddings` must name the model that they were made by"
        )
    found = np.zeros(len(rows), bool)
    found[known] = near[nearest_one(whole(vectors[known]), centroids)]
    ((name, schema),) = schemas(options).items()
    return {name: conform(pa.table({"uid": rows["uid"], schema.names[1]: pa.array(found, mask=~known)}), schema)}


@loaded_once
def _clusters(checkpoint: str) -> tuple[np.ndarray, np.ndarray]:
    arrays = []
    for name in FILES:
        with fsspec.open(f"{checkpoint}/{name}", "rb") as file:
            arrays.append(np.load(io.BytesIO(file.read()), allow_pickle=False))
    return arrays[0], arrays[1]
