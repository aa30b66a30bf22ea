"""A folder that `datasets.load_dataset` reads and the Hugging Face Hub shows: Parquet files a split, images decoded.

The features stand in the files' metadata, as `datasets` writes them itself, and in the card's front matter.
"""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import yaml

from vlmdata.card import dtype, summary
from vlmdata.dataset import Dataset
from vlmdata.export.samples import read_samples, shards_to_read

_IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def write(dataset: Dataset, manifest: dict[str, Any], aside: Path) -> None:
    """Write the folder `aside`: `data/<split>-00000-of-00003.parquet` with the columns image, caption and those of the
    shards' JSON, and a README.md."""
    shards = shards_to_read(manifest)
    splits = [split for split, count in manifest["splits"].items() if count]
    (aside / "data").mkdir(parents=True)
    features: dict[str, Any] = {}
    for split in splits:
        own = [shard for shard in shards if shard["split"] == split]
        for number, shard in enumerate(own):
            path = aside / "data" / f"{split}-{number:05d}-of-{len(own):05d}.parquet"
            writer: pq.ParquetWriter | None = None
            for samples in read_samples(dataset, shard):
                table = _table(samples)
                features = _features(table.schema)
                if writer is None:
                    note = {b"huggingface": json.dumps({"info": {"features": features}}).encode()}
                    schema = table.schema.with_metadata(note)
                    writer = pq.ParquetWriter(path, schema, compression="zstd")
                writer.write_table(table.cast(schema), row_group_size=500)
            if writer is not None:
                writer.close()
    files = [{"split": split, "path": f"data/{split}-*.parquet"} for split in splits]
    front = {"license": "other", "license_name": "as-each-source-states", "task_categories": ["image-to-text"],
             "configs": [{"config_name": "default", "data_files": files}]}  # fmt: skip
    text = f"---\n{yaml.safe_dump(front, sort_keys=False)}---\n\n{summary(manifest)}\n"
    (aside / "README.md").write_text(text, "utf-8")


def _table(samples: pa.Table) -> pa.Table:
    """jpg and txt as `image` and `caption`, first; a column of that name in the JSON is the text again."""
    images = samples["jpg"].combine_chunks().cast(pa.binary())
    names = pa.nulls(len(images), pa.string())
    image = pa.StructArray.from_arrays([images, names], fields=list(_IMAGE))
    rest = [name for name in samples.column_names if name not in ("jpg", "txt", "image", "caption")]
    return pa.table([image, samples["txt"], *(samples[name] for name in rest)], names=["image", "caption", *rest])


def _features(schema: pa.Schema) -> dict[str, Any]:
    return {field.name: {"_type": "Image"} if field.name == "image" else _feature(field.type) for field in schema}


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if pa.types.is_list(kind):
        return {"_type": "List", "feature": _feature(kind.value_type)}
    return {"dtype": dtype(kind), "_type": "Value"}
