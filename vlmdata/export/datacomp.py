"""DataComp's subset file: a NumPy array of dtype `u8,u8`, an id's two halves, sorted, which its resharder reads
(https://github.com/mlfoundations/datacomp)."""

from pathlib import Path
from typing import Any

import numpy as np

from vlmdata import catalog
from vlmdata.dataset import Dataset
from vlmdata.errors import DataError

DTYPE = np.dtype("u8,u8")


def write(dataset: Dataset, manifest: dict[str, Any], aside: Path) -> None:
    """Write `aside`: the `source_id` of every kept pair, as often as the pair has copies (the resharder makes them).

    Raises DataError, with the count, where a kept pair's id is not 32 hexadecimal digits. DuckDB sorts and spills, so
    memory does not grow with the pool.
    """
    connection = catalog.connect(dataset, manifest)
    count, bad, uid = connection.execute(
        "SELECT coalesce(sum(copies), 0)::BIGINT, count(*) FILTER (wrong), min(uid) FILTER (wrong) FROM (SELECT *, "
        "coalesce(NOT regexp_full_match(source_id, '[0-9a-fA-F]{32}'), true) AS wrong FROM samples WHERE kept)"
    ).fetchall()[0]
    if bad:
        raise DataError(
            f"{bad} of the kept pairs have no DataComp id (32 hexadecimal digits) in `source_id`, the first {uid}: "
            "only pairs of a DataComp pool can be exported so; reject others by a rule on `source`"
        )
    rows = connection.sql(
        """
        SELECT ('0x' || left(source_id, 16))::UBIGINT AS f0, ('0x' || right(source_id, 16))::UBIGINT AS f1
        FROM (SELECT source_id, unnest(range(copies)) FROM samples WHERE kept) ORDER BY ALL"""
    ).to_arrow_reader(1_000_000)
    written = 0
    with aside.open("wb") as file:
        header = {"descr": DTYPE.descr, "fortran_order": False, "shape": (count,)}
        np.lib.format.write_array_header_1_0(file, header)
        for batch in rows:
            ids = np.empty(batch.num_rows, DTYPE)
            ids["f0"], ids["f1"] = batch["f0"].to_numpy(), batch["f1"].to_numpy()
            file.write(ids.tobytes())
            written += batch.num_rows
    connection.close()
    assert written == count, f"{written} ids written under a header that says {count}"
