"""Parts as DuckDB reads them by itself: their columns in their order, and never bytes that have changed."""

from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from vlmdata.catalog import view_parts
from vlmdata.dataset import Dataset
from vlmdata.errors import DataError
from vlmdata.parts import Part, part_name

SCHEMA = pa.schema([("uid", pa.string()), ("words", pa.int32()), ("score", pa.float64())])


def parts(dataset: Dataset) -> list[Part]:
    """Two of a first layer, whose writer knew no `score`, and one of a second."""
    tables = [
        (part_name(0), {"uid": ["a", "b"], "words": [1, None], "other": [0, 0]}),
        (part_name(1), {"uid": ["c"], "words": [3], "other": [0]}),
        (part_name(0, 2), {"score": [0.5], "uid": ["d"], "words": [4]}),
    ]
    return [dataset.write_part("found", "k", name, pa.table(columns), {}) for name, columns in tables]


@pytest.mark.parametrize("url", ["{}/d [x]*", "memory://catalog-parts"])
def test_columns_that_a_layer_does_not_have_are_null_and_rows_keep_their_order(tmp_path: Path, url: str) -> None:
    dataset = Dataset(url.format(tmp_path))
    with duckdb.connect() as connection:
        written = parts(dataset)
        view_parts(connection, dataset, "first", written[:2], SCHEMA)
        view_parts(connection, dataset, "every", written, SCHEMA)
        view_parts(connection, dataset, "none", [], SCHEMA)
        rows = [("a", 1, None), ("b", None, None), ("c", 3, None), ("d", 4, 0.5)]
        assert connection.sql("SELECT * FROM every").fetchall() == rows
        assert connection.sql("SELECT uid, score FROM first").fetchall() == [(uid, None) for uid in "abc"]
        assert connection.sql("FROM none").fetchall() == []


def test_a_part_that_has_changed_is_refused(tmp_path: Path) -> None:
    dataset = Dataset(str(tmp_path))
    written = parts(dataset)
    (tmp_path / written[1].path).write_bytes((tmp_path / written[2].path).read_bytes())
    with duckdb.connect() as connection, pytest.raises(DataError, match="not the bytes that were written"):
        view_parts(connection, Dataset(str(tmp_path)), "every", written, SCHEMA)
