"""A part's rows in a file with a record batch for each bucket: who works on one bucket reads only its own rows."""

from collections.abc import Iterable

import numpy as np
import pyarrow as pa

from vlmdata.dataset import Dataset
from vlmdata.ordered import by_bucket


def write(dataset: Dataset, path: str, tables: Iterable[pa.Table], schema: pa.Schema) -> None:
    """Commit the file: batch n has the rows of table n."""
    with dataset.spool() as folder:
        with pa.ipc.new_file(folder / "arrow", schema) as writer:
            for table in tables:
                writer.write_batch(batch(table))
        dataset.commit(folder / "arrow", path)


def send(dataset: Dataset, path: str, rows: pa.Table, bucket: np.ndarray, buckets: int) -> list[tuple[int, str]]:
    """Commit the rows by bucket, see `by_bucket`; for a shuffle the buckets that have some, and the file."""
    tables = by_bucket(rows, bucket, buckets)
    write(dataset, path, tables, rows.schema)
    return [(number, path) for number, some in enumerate(tables) if some.num_rows]


def gather(dataset: Dataset, paths: Iterable[str], bucket: int) -> pa.Table:
    """The rows of one bucket in several files, one at least."""
    return pa.concat_tables([read(dataset, path, bucket) for path in paths])


def read(dataset: Dataset, path: str, bucket: int) -> pa.Table:
    """The rows of one bucket."""
    with dataset.open(path) as file, pa.ipc.open_file(file) as reader:
        return pa.Table.from_batches([reader.get_batch(bucket)])


def batch(rows: pa.Table) -> pa.RecordBatch:
    """All rows in one."""
    return pa.RecordBatch.from_arrays([column.combine_chunks() for column in rows.columns], schema=rows.schema)
