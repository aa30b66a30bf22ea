"""A connection as `settle` and `append` ask for it, over tables that a test has made; and how its rows ended."""

from collections.abc import Mapping
from pathlib import Path

import duckdb
import pyarrow as pa

from vlmdata.ingest import connect

# SQL of the rows of `verdict` with the reason that they end with.
ENDED = (
    "(SELECT v.* REPLACE (coalesce(v.reason, r.reason) AS reason) FROM verdict v LEFT JOIN rejected r USING (place))"
)


def looking_at(
    folder: Path, judged: pa.Table, duplicates: pa.Table | None = None, near: Mapping[str, pa.Table] | None = None
) -> duckdb.DuckDBPyConnection:
    connection = connect(folder)
    connection.register("judged", judged)
    if duplicates is not None:
        connection.register("duplicates", duplicates)
    for method, pairs in (near or {}).items():
        connection.register(f"near_{method}", pairs)
    return connection
