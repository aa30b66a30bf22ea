"""Shards: deterministic bytes, one type a key, and names that nothing of others gets into."""

import json
import math
import tarfile

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset

from vlmdata import shards
from vlmdata.errors import DataError, InputError
from vlmdata.recipe import Shards
from vlmdata.shards import buckets, check_columns, gather, json_columns, samples, scatter, write_parquet, write_tar

SAMPLES = pa.schema(
    [("uid", pa.string()), ("url", pa.string()), ("caption", pa.string()), ("source", pa.string()),
     ("license", pa.string()), ("clip_score", pa.float32()), ("words", pa.int32()), ("kept", pa.bool_())]
)  # fmt: skip
COLUMNS = json_columns(Shards(), ["clip_score", "words", "caption"], SAMPLES)


def kept(count, samples=2, score=lambda n: n / 4):
    rows = [
        {
            "uid": f"{n:032x}",
            "url": f"https://example.org/{n}",
            "caption": f'a "quoted" caption\n{n}',
            "source": "s",
            "license": None,
            "clip_score": score(n),
            "words": n,
            "captions": ["a", "b"],
            "shard": f"train-{n // samples:07d}",
            "index": n % samples,
            "further_copies": None,
            "offset": n,
            "length": 1,
        }
        for n in range(count)
    ]
    more = [("captions", pa.list_(pa.string())), ("shard", pa.string()), ("index", pa.int32()),
            ("further_copies", pa.string()), ("offset", pa.int64()), ("length", pa.int64())]  # fmt: skip
    fields = [field for field in SAMPLES if field.name != "kept"] + [pa.field(*pair) for pair in more]
    return pa.Table.from_pylist(rows, pa.schema(fields))


def image(offset, length):
    return bytes([offset]) * length


def write(tmp_path, rows, order):
    into = buckets({"train": rows.num_rows}, 2, 1000)
    paths = []
    for number, chosen in enumerate(order):
        path = tmp_path / f"{number}.arrow"
        scatter(rows.take(pa.array(chosen, pa.int64())), COLUMNS, image, into, path)
        paths.append(path)
    return [
        rows_of(gather((open(path, "rb") for path in paths), place), into[place]) for place in range(len(into))
    ], into


def rows_of(bucket, names):
    """The samples of these shards, one behind the other."""
    return pa.concat_tables(
        [shards.SCATTERED.empty_table(), *(rows for name in names for rows in samples(bucket, name))]
    )


def test_shards_do_not_depend_on_the_order_of_parts(tmp_path):
    rows = kept(5)
    (first,), into = write(tmp_path, rows, [[0, 1, 2], [3, 4]])
    (second,), _ = write(tmp_path, rows, [[4, 1], [3], [2, 0]])
    assert into == [["train-0000000", "train-0000001", "train-0000002"]]
    assert first.equals(second)
    write_tar([first], tmp_path / "a.tar")
    write_tar([second], tmp_path / "b.tar")
    assert (tmp_path / "a.tar").read_bytes() == (tmp_path / "b.tar").read_bytes()


def test_a_tar_is_webdataset_with_one_type_a_key(tmp_path):
    (rows,), _ = write(tmp_path, kept(3), [[2, 1, 0]])
    write_tar([rows], tmp_path / "a.tar")
    write_parquet([rows], COLUMNS, tmp_path / "a.parquet")
    with tarfile.open(tmp_path / "a.tar") as tar:
        assert {(member.mtime, member.uid, member.gid) for member in tar} == {(0, 0, 0)}
    samples = list(webdataset.WebDataset(str(tmp_path / "a.tar"), shardshuffle=False, empty_check=False))
    assert [sample["__key__"] for sample in samples] == [f"{n:032x}" for n in range(3)]
    documents = [json.loads(sample["json"]) for sample in samples]
    assert list(documents[0]) == ["uid", "url", "source", "license", "captions", "clip_score", "words"]
    assert documents[0]["license"] == ""
    assert all(isinstance(document["clip_score"], float) for document in documents)
    assert b'"clip_score": 0.0' in samples[0]["json"]
    assert samples[1]["txt"].decode() == 'a "quoted" caption\n1'
    table = pq.read_table(tmp_path / "a.parquet")
    assert table["uid"].to_pylist() == [f"{n:032x}" for n in range(3)]
    assert table["jpg"].to_pylist() == [sample["jpg"] for sample in samples]
    assert table.schema.field("clip_score").type == pa.float32()
    assert table.schema.field("jpg").type == pa.binary()


@pytest.mark.parametrize("gap", [None, math.nan])
def test_a_number_that_is_missing_in_a_kept_row_is_refused_with_the_count(tmp_path, gap):
    rows = kept(3, score=lambda n: gap if n else 0.5)
    with pytest.raises(DataError, match="'clip_score' is null or NaN in 2 kept pairs"):
        write(tmp_path, rows, [[0, 1, 2]])


def test_buckets_never_span_splits():
    assert buckets({"train": 5, "test": 1, "none": 0}, 4000, 1e4) == [["train-0000000"], ["test-0000000"]]
    assert buckets({"train": 25_000}, 4000, 1e4)[0] == ["train-0000000", "train-0000001"]


def test_buckets_of_large_images_hold_fewer_shards():
    assert buckets({"train": 10_000}, 1000, 500_000)[0] == ["train-0000000", "train-0000001"]
    assert buckets({"train": 10_000}, 10_000, 500_000) == [["train-0000000"]]


def test_an_unknown_column_is_refused():
    with pytest.raises(InputError, match="'wrods'; did you mean 'words'"):
        check_columns(Shards(columns=["wrods"]), SAMPLES)


def test_a_part_with_nothing_kept_scatters_nothing(tmp_path):
    (rows,), _ = write(tmp_path, kept(2), [[], [1, 0]])
    assert rows.num_rows == 2


def test_copies_stand_at_their_places_and_one_bucket_of_them_is_in_memory(tmp_path):
    rows = kept(2, samples=2)
    into = [[f"train-{number:07d}"] for number in range(31)]
    places = " ".join(f"train-{number // 100 + 1:07d}:{number % 100}" for number in range(3000))
    column = rows.schema.get_field_index("further_copies")
    rows = rows.set_column(column, "further_copies", pa.array([None, places]))
    whole = pa.default_memory_pool()
    watched = pa.proxy_memory_pool(whole)
    pa.set_memory_pool(watched)
    try:
        scatter(rows, COLUMNS, lambda offset, length: bytes([offset]) * 10_000, into, tmp_path / "a.arrow")
    finally:
        pa.set_memory_pool(whole)
    assert watched.max_memory() < 5_000_000, "all copies are 30 MB, a bucket of them 1 MB"
    first, *others = [
        rows_of(gather([(tmp_path / "a.arrow").open("rb")], number), into[number]) for number in range(31)
    ]
    assert first["key"].to_pylist() == rows["uid"].to_pylist()
    uid = rows["uid"][1].as_py()
    assert [key for bucket in others for key in bucket["key"].to_pylist()] == [f"{uid}_{n + 2}" for n in range(3000)]
    assert {bucket["index"].to_pylist() == list(range(100)) for bucket in others} == {True}
    assert {image for bucket in others for image in bucket["jpg"].to_pylist()} == {b"\1" * 10_000}


def test_only_some_images_are_in_memory_whatever_the_part_and_the_shard_hold(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "BATCH_BYTES", 1_000_000)
    monkeypatch.setattr(shards, "TOGETHER", 100)
    rows = kept(2000, samples=2000)
    rows = rows.set_column(rows.column_names.index("length"), "length", pa.array([10_000] * 2000))
    into = [["train-0000000"]]

    def write_both() -> None:
        for part in range(2):
            chosen = rows.slice(1000 * part, 1000)
            scatter(chosen, COLUMNS, lambda offset, length: offset.to_bytes(2) * 5000, into, tmp_path / f"{part}")
        bucket = gather([pa.memory_map(str(tmp_path / f"{part}")) for part in range(2)], 0)
        write_tar(samples(bucket, "train-0000000"), tmp_path / "a.tar")
        write_parquet(samples(bucket, "train-0000000"), COLUMNS, tmp_path / "a.parquet")

    whole = pa.default_memory_pool()
    watched = pa.proxy_memory_pool(whole)
    pa.set_memory_pool(watched)
    try:
        write_both()
    finally:
        pa.set_memory_pool(whole)
    assert watched.max_memory() < 5_000_000, "all images are 20 MB"
    found = pq.read_table(tmp_path / "a.parquet")
    assert found["jpg"].to_pylist() == [n.to_bytes(2) * 5000 for n in range(2000)]
    with tarfile.open(tmp_path / "a.tar") as tar:
        names = tar.getnames()
        assert names == [f"{n:032x}.{ending}" for n in range(2000) for ending in ("jpg", "txt", "json")]
        assert tar.extractfile(names[3 * 1234]).read() == (1234).to_bytes(2) * 5000
