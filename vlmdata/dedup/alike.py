"""The pairs of rows that are alike as a file, for SemDeDup's rule: it asks more than which group a row is in."""

from collections.abc import Iterator
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from vlmdata.dedup.components import Edges
from vlmdata.ingest import chunks

ENDING = ".near.parquet"  # of the file beside a part of `duplicates`
SCHEMA = pa.schema([("uid", pa.string()), ("other", pa.string()), ("equal", pa.bool_())])
# As they are found: `uid` at the place j, `other` at i, which is smaller; by these the file's rows stand.
FOUND = pa.schema([("i", pa.int64()), ("j", pa.int64()), *SCHEMA])
_WRITTEN = 1_000_000  # pairs in a row group
_NOTED = 65_536  # pairs in one of those as they are found, whatever the blocks: another try gives the same bytes


def noted(edges: Iterator[Edges], uids: np.ndarray, path: Path, places: np.ndarray | None = None) -> Iterator[Edges]:
    """The same edges, whose pairs are written to a Parquet file of FOUND. places: int64 [n], the rows' places among
    all rows where they are not their own."""
    with pq.ParquetWriter(path, FOUND, compression="zstd") as writer:
        waiting, pairs = [FOUND.empty_table()], 0
        for block in edges:
            sides = (block.i, block.j) if places is None else (places[block.i], places[block.j])
            names = [pa.array(uids[side]).cast(pa.string()) for side in (block.j, block.i)]
            equal = pa.array(np.full(len(block.i), block.equal))
            waiting.append(pa.table([*sides, *names, equal], schema=FOUND))
            pairs += len(block.i)
            if pairs >= _NOTED:
                whole = pa.concat_tables(waiting).combine_chunks()
                full = pairs - pairs % _NOTED
                writer.write_table(whole.slice(0, full), row_group_size=_NOTED)
                waiting, pairs = [whole.slice(full)], pairs - full
            yield block
        writer.write_table(pa.concat_tables(waiting).combine_chunks())


def write(connection: duckdb.DuckDBPyConnection, target: Path) -> None:
    """The file of all pairs; connection: has them as FOUND in the view `found`. Rows of one value are with the first of
    them only, `equal`, as `other`.

    In a row group of many pairs each uid stands once, and their order by rows makes the rest small; memory is bounded.
    """
    rows = connection.sql("SELECT uid, other, equal FROM found ORDER BY i, j").to_arrow_reader(_WRITTEN)
    with pq.ParquetWriter(target, SCHEMA, compression="zstd", dictionary_pagesize_limit=64 << 20) as writer:
        for chunk in chunks(rows, _WRITTEN, None, SCHEMA.empty_table()):
            if chunk.num_rows:
                writer.write_table(chunk.combine_chunks())
