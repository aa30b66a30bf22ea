"""Rows that are dealt out to files and sorted there come as one sorting of all gives them."""

import hashlib
import os
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest

from vlmdata import ordered

QUERY = "SELECT * EXCLUDE (share) FROM dealt ORDER BY hash, number, text"


def table(hashes):
    texts = ["wide " * (n % 50) for n in range(len(hashes))]
    return pa.table({"hash": pa.array(hashes, pa.string()), "number": range(len(hashes)), "text": texts})


def hashed(count):
    return [hashlib.md5(b"%d" % n).hexdigest() for n in range(count)]


def dealt(rows, folder, monkeypatch, bytes_held):
    monkeypatch.setattr(ordered, "BATCH", 256)
    monkeypatch.setattr(ordered, "_HELD", bytes_held)
    monkeypatch.setattr(ordered, "_SORTED", bytes_held)
    connection = duckdb.connect()
    connection.register("given", rows)
    found = ordered.in_order(connection, "SELECT * FROM given", "hash", QUERY, folder)
    sorted_ = connection.cursor().from_arrow(rows).order("hash, number, text").to_arrow_table()
    return pa.Table.from_batches(found, rows.schema), sorted_


@pytest.mark.parametrize(
    "hashes",
    [
        [],
        [None, *hashed(1), None],
        hashed(20_000),
        [each if n % 3 else None for n, each in enumerate(hashed(20_000))],
        [*hashed(3_000), *["0" * 32] * 9_000, *["f" * 32] * 9_000],  # most are of two hashes
    ],
    ids=["none", "few", "many", "a third without", "two of them often"],
)
@pytest.mark.parametrize("bytes_held", [50_000, 10**9])
def test_what_comes_is_in_the_order_of_one_sorting(hashes, bytes_held, tmp_path, monkeypatch):
    found, expected = dealt(table(hashes), tmp_path, monkeypatch, bytes_held)
    assert found.equals(expected.cast(found.schema))
    assert not list(tmp_path.iterdir())


def test_a_files_place_is_free_when_it_is_sorted(tmp_path, monkeypatch):
    monkeypatch.setattr(ordered, "BATCH", 256)
    monkeypatch.setattr(ordered, "_HELD", 50_000)
    monkeypatch.setattr(ordered, "_SORTED", 50_000)
    connection = duckdb.connect()
    connection.register("given", table(hashed(20_000)))
    rows = ordered.in_order(connection, "SELECT * FROM given", "hash", QUERY, tmp_path)
    open_files = []
    for _ in rows:
        paths = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        open_files.append([path for path in paths if path.startswith(str(tmp_path))])
    assert len(open_files) > 10
    assert max(map(len, open_files)) == 1


def test_there_are_no_more_files_than_may_be_open(tmp_path, monkeypatch):
    monkeypatch.setattr(ordered, "_FILES", 3)
    made = []
    new_stream = pa.ipc.new_stream
    monkeypatch.setattr(
        pa.ipc, "new_stream", lambda path, *more, **by: made.append(path) or new_stream(path, *more, **by)
    )
    found, expected = dealt(table(hashed(20_000)), tmp_path, monkeypatch, 50_000)
    assert found.equals(expected.cast(found.schema))
    assert len(made) == 3


def test_a_hash_that_is_none_is_an_error(tmp_path, monkeypatch):
    with pytest.raises(duckdb.Error, match="Could not convert"):
        dealt(table(["no hash at all"]), tmp_path, monkeypatch, 50_000)
