"""Rows in an order that begins with a hash: they are dealt out to files by it, and each file is sorted alone.

So what is sorted at once is a file's rows, not all, and up to some 3 GB of rows memory does not grow with them; beyond
it DuckDB spills. Its own sorting of all fills what it may hold before it does.
"""

import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import chain, pairwise
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa

BATCH = 65_536  # rows that DuckDB gives at once
_HELD = 8_000_000  # bytes that are held, and dealt out at once
_SORTED = 12_000_000  # bytes of a file, about
_FILES = 256  # at most: larger ones are spilled while they are sorted
_COMPRESSED = pa.ipc.IpcWriteOptions(compression="lz4")


def in_order(
    connection: duckdb.DuckDBPyConnection, rows: str, by: str, query: str, folder: Path
) -> Iterator[pa.RecordBatch]:
    """What `query` gives of all rows, when it gives them in an order by the column `by` first, nulls last.

    rows: SQL of them. by: a hash in lower-case hexadecimal, of 8 digits or more, each value as likely as the others.
    query: SQL over the view `dealt`, which has some of the rows, and as `share` their hash; rows of one hash come to it
    together. folder: for the files.
    """
    # first, since DuckDB has one open result a connection
    ((count,),) = connection.sql(f"SELECT count(*) FROM ({rows})").fetchall()
    reader = connection.sql(f"SELECT *, ('0x' || left({by}, 8))::UBIGINT AS share FROM ({rows})").to_arrow_reader(BATCH)
    blocks = _blocks(reader)
    first, second = next(blocks, None), next(blocks, None)
    if first is None:
        first = reader.schema.empty_table()
    if second is None:
        yield from _sorted(connection, first.to_reader(), query)
        return
    files = min(_FILES, math.ceil(count * first.nbytes / first.num_rows / _SORTED))
    paths = [folder / f"{number}.dealt" for number in range(files)]
    _deal_out(chain([first, second], blocks), reader.schema, paths)
    del first, second
    for path in paths:
        with pa.memory_map(str(path)) as file, pa.ipc.open_stream(file) as dealt:
            yield from _sorted(connection, dealt, query)
        path.unlink()


def _blocks(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.Table]:
    """The rows in tables of some _HELD bytes."""
    held: list[pa.RecordBatch] = []
    for batch in batches:
        held.append(batch)
        if sum(each.nbytes for each in held) >= _HELD:
            yield pa.Table.from_batches(held)
            held = []
    if held:
        yield pa.Table.from_batches(held)


def _deal_out(blocks: Iterable[pa.Table], schema: pa.Schema, paths: list[Path]) -> None:
    with ExitStack() as stack:
        files = [stack.enter_context(pa.OSFile(str(path), "wb")) for path in paths]
        writers = [stack.enter_context(pa.ipc.new_stream(file, schema, options=_COMPRESSED)) for file in files]
        for block in blocks:
            _deal(block, writers)


def _deal(rows: pa.Table, files: list[pa.ipc.RecordBatchStreamWriter]) -> None:
    file = share(rows["share"].fill_null(2**32 - 1).to_numpy(), len(files))
    for writer, some in zip(files, by_bucket(rows, file, len(files)), strict=True):
        writer.write_table(some)


def by_bucket(rows: pa.Table, bucket: np.ndarray, buckets: int) -> list[pa.Table]:
    """The rows of each of so many buckets, in their order. bucket: int [rows], the one of each row."""
    order = np.argsort(bucket, kind="stable")
    bounds = np.searchsorted(bucket[order], np.arange(buckets + 1)).tolist()
    taken = rows.take(pa.array(order))
    return [taken.slice(start, stop - start) for start, stop in pairwise(bounds)]


def share(number: np.ndarray, buckets: int) -> np.ndarray:
    """int64 [n]: the bucket of numbers below 2**32, which are as many for each where they are evenly spread."""
    return number.astype(np.int64) * buckets >> 32


def _sorted(connection: duckdb.DuckDBPyConnection, rows: pa.RecordBatchReader, query: str) -> Iterator[pa.RecordBatch]:
    connection.register("dealt", rows)
    yield from connection.sql(query).to_arrow_reader(BATCH)
    connection.unregister("dealt")
