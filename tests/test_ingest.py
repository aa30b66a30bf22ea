"""Pairs from several sources: united, ordered, cut; the same whatever order they were found in."""

import hashlib
import itertools

import pyarrow as pa
import pytest

from vlmdata.dataset import Dataset, Table
from vlmdata.ingest import FOUND, read_source, unite
from vlmdata.recipe import FolderSource


@pytest.fixture
def dataset(tmp_path):
    return Dataset(str(tmp_path / "d [x]*"))


def found(dataset, name, rows):
    full = [
        {"uid": hashlib.blake2b(f"{r['url']}\0{r['caption']}".encode(), digest_size=16).hexdigest(), "source": name,
         "caption_from": "alt", **r}
        for r in rows
    ]  # fmt: skip
    part = dataset.write_part("found", name, "000001-0000000", pa.Table.from_pylist(full, FOUND), {})
    return Table("found", name, (part,))


def rows_of(dataset, table):
    return [row for part in table.parts for row in dataset.read_part(part).to_pylist()]


def test_equal_pairs_are_one_row_with_the_first_sources_columns(dataset):
    first = found(
        dataset, "a", [{"url": "u", "caption": "c", "page_url": "z"}, {"url": "u", "caption": "c", "page_url": "y"}]
    )
    second = found(dataset, "b", [{"url": "u", "caption": "c", "page_url": "a"}, {"url": "u", "caption": "d"}])
    rows = rows_of(dataset, unite(dataset, [first, second], "k", 10, None))
    told = [(r["caption"], r["source"], r["page_url"], r["occurrences"], r["captions"]) for r in rows]
    assert sorted(told) == [("c", "a", "y", 3, ["c"]), ("d", "b", None, 1, ["d"])]


def test_parts_do_not_depend_on_the_order_of_finding(dataset):
    rows = [{"url": f"u{n % 7}", "caption": f"c{n}", "context": None if n % 2 else "x"} for n in range(30)]
    one = unite(dataset, [found(dataset, "a", rows)], "k1", 8, None)
    other = unite(dataset, [found(dataset, "a", rows[::-1])], "k2", 8, None)
    assert [part.sha256 for part in one.parts] == [part.sha256 for part in other.parts]
    urls = [row["url"] for row in rows_of(dataset, one)]
    assert sum(a != b for a, b in itertools.pairwise(urls)) == 6  # one URL's captions are neighbours


def test_one_urls_captions_share_a_part_unless_they_are_more_than_it_holds(dataset):
    rows = [{"url": f"u{n % 7}", "caption": f"c{n}"} for n in range(30)]
    rows += [{"url": "many", "caption": f"m{n}"} for n in range(20)]
    table = unite(dataset, [found(dataset, "a", rows)], "k", 8, None)
    parts = [{row["url"] for row in dataset.read_part(part).to_pylist()} for part in table.parts]
    assert all(part.rows <= 8 for part in table.parts)
    assert table.rows == 50
    for url in (f"u{n}" for n in range(7)):
        assert sum(url in urls for urls in parts) == 1
    assert sum("many" in urls for urls in parts) >= 3


def test_limit_takes_the_first_in_the_order_of_pairs(dataset):
    table = found(dataset, "a", [{"url": f"u{n}", "caption": "c"} for n in range(20)])
    everything = rows_of(dataset, unite(dataset, [table], "k1", 8, None))
    assert rows_of(dataset, unite(dataset, [table], "k2", 8, 5)) == everything[:5]


def test_no_pairs_are_one_empty_part(dataset):
    table = unite(dataset, [found(dataset, "a", [])], "k", 8, None)
    assert [part.rows for part in table.parts] == [0]


def test_a_source_is_recorded_in_the_order_of_its_columns(dataset, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("b", "a"):
        (folder / f"{name}.jpg").write_bytes(b"any bytes: reading a folder opens no image")
        (folder / f"{name}.txt").write_text(f"caption {name}")
    source = FolderSource(kind="folder", path=str(folder))
    table = read_source(dataset, source, "k")
    rows = rows_of(dataset, table)
    assert [row["uid"] for row in rows] == sorted(row["uid"] for row in rows)
    row = next(row for row in rows if row["url"] == "folder:/a.jpg")
    assert row["caption"] == "caption a"
    assert row["uid"] == hashlib.blake2b(b"folder:/a.jpg\0caption a", digest_size=16).hexdigest()
    assert dataset.read_table("observations", "k").rows == 0


def test_one_page_that_denies_is_enough(dataset):
    said = [{"noai": "allow"}, {"noai": "deny", "tdm": "allow"}, None]
    rows = [{"url": "u", "caption": "c", "page_url": str(n), "page_consent": words} for n, words in enumerate(said)]
    (row,) = rows_of(dataset, unite(dataset, [found(dataset, "a", rows)], "k", 8, None))
    assert row["page_consent"] == {"robots": None, "noai": "deny", "tdm": "allow", "noml": None}
