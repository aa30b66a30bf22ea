"""Pairs from several sources: united, ordered, cut; the same whatever order they were found in."""

import hashlib
import io
import itertools
import json
import os
import tarfile

import pyarrow as pa
import pytest

from vlmdata import ingest
from vlmdata.dataset import Dataset
from vlmdata.errors import InputError
from vlmdata.ingest import FOUND, clean, read_source, unite
from vlmdata.parts import Table
from vlmdata.recipe import FolderSource, TableSource, WebdatasetSource
from vlmdata.sources import signal_column, unite_signals


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


def found_with(dataset, name, rows, columns):
    """Like `found`, of a source that brings signals: `columns` are their types."""
    schema = pa.schema([*FOUND, *columns.items()])
    part = dataset.write_part(
        "found", name, "000001-0000000", pa.Table.from_pylist([{"source": name, **row} for row in rows], schema), {}
    )
    return Table("found", name, (part,)), pa.schema(list(columns.items()))


def rows_of(dataset, table):
    return [row for part in table.parts for row in dataset.read_part(part).to_pylist()]


@pytest.mark.parametrize("kind", ["table", "folder", "webdataset"])
def test_no_source_gives_a_caption_longer_than_the_rest(dataset, tmp_path, kind):
    words = " ".join(["wörter"] * 1_000)
    if kind == "table":
        (tmp_path / "a.jsonl").write_text(json.dumps({"url": "http://a/1", "caption": words}))
        source = TableSource(kind="table", path=str(tmp_path / "a.jsonl"))
    elif kind == "folder":
        (tmp_path / "a.jpg").write_bytes(b"")
        (tmp_path / "a.txt").write_text(words)
        source = FolderSource(kind="folder", path=str(tmp_path))
    else:
        with tarfile.open(tmp_path / "a.tar", "w") as tar:
            for name, data in (("a.jpg", b"x"), ("a.txt", words.encode())):
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
        source = WebdatasetSource(kind="webdataset", path=str(tmp_path / "a.tar"))
    [row] = rows_of(dataset, read_source(dataset, source, "k"))
    assert row["caption"] == " ".join(["wörter"] * 285)  # 1,994 characters
    assert row["uid"] == hashlib.blake2b(f"{row['url']}\0{row['caption']}".encode(), digest_size=16).hexdigest()


def test_equal_pairs_are_one_row_with_the_first_sources_columns(dataset):
    first = found(
        dataset, "a", [{"url": "u", "caption": "c", "page_url": "z"}, {"url": "u", "caption": "c", "page_url": "y"}]
    )
    second = found(dataset, "b", [{"url": "u", "caption": "c", "page_url": "a"}, {"url": "u", "caption": "d"}])
    rows = rows_of(dataset, unite(dataset, [first, second], "k", 10, None))
    told = [(r["caption"], r["source"], r["page_url"], r["occurrences"], r["captions"]) for r in rows]
    assert sorted(told) == [("c", "a", "y", 3, ["c"]), ("d", "b", None, 1, ["d"])]


@pytest.mark.parametrize("size", [1, 2, 3, 100])
def test_a_pair_whose_rows_come_in_several_batches_is_one(size):
    said = {"robots": None, "noai": "allow", "tdm": None, "noml": None}
    rows = [
        {"uid": "a", "url": "u", "caption": "a", "page_url": "1"},
        {"uid": "b", "url": "u", "caption": "b", "page_url": "2", "page_consent": said},
        {"uid": "b", "url": "u", "caption": "b", "page_url": "3", "page_consent": said | {"noai": "deny"}},
        {"uid": "b", "url": "u", "caption": "b", "page_url": "4", "page_consent": said | {"tdm": "allow"}},
        {"uid": "c", "url": None, "caption": None},
        {"uid": "c", "url": "u", "caption": "c", "page_consent": said},
        {"uid": "d", "url": "u", "caption": "d", "page_url": "5", "page_consent": said},
    ]
    batches = pa.Table.from_pylist(rows, FOUND).to_batches(size)
    united = pa.concat_tables(ingest._united(batches)).to_pylist()
    told = [(row["uid"], row["page_url"], row["occurrences"], row["captions"], row["page_consent"]) for row in united]
    assert told == [
        ("a", "1", 1, ["a"], None),
        ("b", "2", 3, ["b"], {"robots": None, "noai": "deny", "tdm": "allow", "noml": None}),
        ("c", None, None, None, None),
        ("d", "5", 1, ["d"], said),
    ]


def test_duckdb_has_no_more_threads_than_its_memory_is_for(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    limits = []
    for limit in (128_000_000, 1_000_000_000, 10**12):
        with ingest.connect(tmp_path, limit) as connection:
            settings = "SELECT current_setting('memory_limit'), current_setting('threads')"
            limits.append(connection.sql(settings).fetchall()[0])
    assert limits == [("122.0 MiB", 2), ("953.6 MiB", 3), ("1.8 GiB", 7)]


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


@pytest.mark.parametrize("url", ["{}/d [x]*", "memory://dataset"])
def test_what_a_kill_left_of_a_source_that_was_read_is_removed_and_no_other(url, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    dataset = Dataset(url.format(tmp_path))
    clean(dataset)
    for key in ("done", "under_way"):
        dataset.write_bytes(f"tables/extracted/{key}/000001-0000000.parquet", b"x")
        folder = dataset.kept_folder(f"reading/{key}")
        folder.mkdir(parents=True)
        (folder / "site.frontier").write_bytes(b"x")
    dataset.write_table(Table("found", "done", ()))
    clean(dataset)
    assert dataset.keys_of("extracted") == ["under_way"]
    assert [folder.name for folder in dataset.kept_folder("reading").iterdir()] == ["under_way"]


def test_one_page_that_denies_is_enough(dataset):
    said = [{"noai": "allow"}, {"noai": "deny", "tdm": "allow"}, None]
    rows = [{"url": "u", "caption": "c", "page_url": str(n), "page_consent": words} for n, words in enumerate(said)]
    (row,) = rows_of(dataset, unite(dataset, [found(dataset, "a", rows)], "k", 8, None))
    assert row["page_consent"] == {"robots": None, "noai": "deny", "tdm": "allow", "noml": None}


def test_signals_of_sources_lie_beside_their_pairs(dataset):
    """Part for part and row for row as `pairs`; of equal pairs the first source's, null where a source brings none."""
    shared = [{"uid": f"{n:032x}", "url": f"u{n % 5}", "caption": f"c{n}", "caption_from": "alt"} for n in range(20)]
    score = [{**row, "source_score": n / 8, "source_seen": n} for n, row in enumerate(shared[:12])]
    other = [{**row, "source_score": -n, "source_tag": f"t{n}"} for n, row in enumerate(shared[8:16], 8)]
    first, one = found_with(dataset, "a", score, {"source_score": pa.float32(), "source_seen": pa.int64()})
    second, two = found_with(dataset, "b", other, {"source_score": pa.int64(), "source_tag": pa.string()})
    third, three = found_with(dataset, "c", shared[16:], {})
    brings = unite_signals({"a": one, "b": two, "c": three})
    assert brings == pa.schema(
        [("source_score", pa.float64()), ("source_seen", pa.int64()), ("source_tag", pa.string())]
    )
    pairs = unite(dataset, [first, second, third], "k", 6, None, brings)
    signals = dataset.read_table("source_signals", "k")
    assert [(p.name, p.rows) for p in signals.parts] == [(p.name, p.rows) for p in pairs.parts]
    assert dataset.read_part(signals.parts[0]).schema == pa.schema([("uid", pa.string()), *brings])
    assert [row["uid"] for row in rows_of(dataset, signals)] == [row["uid"] for row in rows_of(dataset, pairs)]
    for row in rows_of(dataset, signals):
        n = int(row.pop("uid"), 16)
        if n < 12:
            assert row == {"source_score": n / 8, "source_seen": n, "source_tag": None}
        else:
            score = (float(-n), f"t{n}") if n < 16 else (None, None)
            assert (row["source_score"], row["source_tag"], row["source_seen"]) == (*score, None)


def test_without_such_signals_there_is_no_such_table(dataset):
    unite(dataset, [found(dataset, "a", [{"url": "u", "caption": "c"}])], "k", 8, None)
    assert dataset.read_table("source_signals", "k") is None


def test_signals_of_different_types_are_refused_with_both_sources():
    text, number = pa.schema([("source_x", pa.string())]), pa.schema([("source_x", pa.int64())])
    with pytest.raises(InputError, match=r"sources\.b: its column 'source_x' is int64, but string in the source 'a'"):
        unite_signals({"a": text, "b": number})


@pytest.mark.parametrize(
    ("name", "column"),
    [("CLIP score (B/32)", "source_clip_score_b_32"), ("punsafe", "source_punsafe"), ('_a"b', "source_a_b")],
)
def test_columns_get_names_that_sql_can_hold(name, column):
    assert signal_column(name) == column


@pytest.mark.parametrize("name", ["ID", "é", ""])
def test_names_that_cannot_be_columns_are_refused(name):
    with pytest.raises(InputError, match="cannot be kept"):
        signal_column(name)
