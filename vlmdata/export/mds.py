"""MosaicML's streaming format: a folder a split with `index.json`, which `streaming.StreamingDataset` reads.

Columns: `jpg`, the image's bytes as they are; `txt`, the caption; `json`, the other values.
"""

from pathlib import Path
from typing import Any

from vlmdata.dataset import Dataset
from vlmdata.errors import InputError
from vlmdata.export.samples import read_samples, shards_to_read

_COLUMNS = {"jpg": "bytes", "txt": "str", "json": "json"}


def write(dataset: Dataset, manifest: dict[str, Any], aside: Path) -> None:
    """Write the folders `aside/<split>`. Raises InputError where the package is not installed."""
    try:
        from streaming import MDSWriter
    except ImportError as error:
        raise InputError(
            f"--to mds needs the package mosaicml-streaming ({error}): pip install 'vlmdata[mds]'"
        ) from error
    shards = shards_to_read(manifest)
    for split, count in manifest["splits"].items():
        if not count:
            continue
        with MDSWriter(out=str(aside / split), columns=_COLUMNS, hashes=["sha1"], progress_bar=False) as writer:
            for shard in (shard for shard in shards if shard["split"] == split):
                for samples in read_samples(dataset, shard):
                    for row in samples.to_pylist():
                        jpg, txt = row.pop("jpg"), row.pop("txt")
                        writer.write({"jpg": jpg, "txt": txt, "json": row})
