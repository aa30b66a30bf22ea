"""One CSV file with a row for each kept pair: all scalar columns of `samples`, UTF-8, names in the first line."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv as pacsv

from vlmdata import catalog
from vlmdata.dataset import Dataset


def write(dataset: Dataset, manifest: dict[str, Any], aside: Path) -> None:
    """Write `aside`, rows in the order of the shards. Texts stand in quotes, which are doubled within them; null is
    nothing, without quotes. Columns that are the same for every kept pair (`kept`, `reason`) are left out."""
    connection = catalog.connect(dataset, manifest)
    rows = connection.sql("SELECT * EXCLUDE (kept, reason) FROM samples WHERE kept ORDER BY split, shard, index, uid")
    reader = rows.to_arrow_reader(50_000)
    scalar = pa.schema([column for column in reader.schema if not pa.types.is_nested(column.type)])
    with pacsv.CSVWriter(aside, scalar) as writer:
        for batch in reader:
            writer.write_batch(batch.select(scalar.names))
    connection.close()
