"""The stage `dedup`: what the methods compare is mapped from files, and what comes out is as if it were in memory."""

import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from vlmdata import dedup
from vlmdata.dataset import Dataset
from vlmdata.dedup import partitions, perceptual, semantic
from vlmdata.errors import DataError, VlmdataError
from vlmdata.parts import Part, Table, part_name
from vlmdata.pipelines import dedup as stage
from vlmdata.pipelines import equal
from vlmdata.pipelines.runner import shuffle
from vlmdata.recipe import ExactDedup, PerceptualDedup, Runner, SemanticDedup

METHODS = [ExactDedup(kind="exact"), PerceptualDedup(kind="perceptual"), SemanticDedup(kind="semantic")]
KEYS = {"images": "sha256", "image": "phash", "embeddings_clip": "vector"}


def rows(count: int, seed: int) -> dict[str, pa.Table]:
    """Some pairs' rows in the tables that are compared; every fifth is without values, every third a duplicate."""
    draw = np.random.default_rng(seed)
    place = np.where(np.arange(count) % 3 == 0, 0, np.arange(count))
    uid = pa.array([hashlib.md5(f"{seed} {number}".encode()).hexdigest() for number in range(count)], pa.string())
    absent = np.arange(count) % 5 == 4
    hashes = draw.integers(0, 2**63, max(count, 1), np.uint64)[place]
    vectors = draw.standard_normal((max(count, 1), 16)).astype(np.float16)[place]
    vector = pa.FixedSizeListArray.from_arrays(pa.array(vectors[: len(place)].ravel()), 16, mask=pa.array(absent))
    return {
        "pairs": pa.table({"uid": uid}),
        "images": pa.table(
            {"uid": uid, "sha256": pa.array([f"{h:064x}" for h in hashes[: len(place)]], pa.string(), mask=absent)}
        ),
        "image": pa.table(
            {
                "uid": uid,
                "phash": pa.array(hashes[: len(place)], mask=absent),
                "entropy": pa.array(np.full(count, 7, np.float32), mask=absent),
            }
        ),
        "embeddings_clip": pa.table({"uid": uid, "vector": vector}),
    }


def written(folder: Path, parts: list[dict[str, pa.Table]]) -> tuple[Dataset, dict[str, Table]]:
    dataset = Dataset(str(folder))
    tables = {}
    for name in ("pairs", *KEYS):
        made = [dataset.write_part(name, "k", part_name(n), part[name], {}) for n, part in enumerate(parts)]
        tables[name] = Table(name, "k", tuple(made))
    return dataset, tables


def plan() -> Any:
    return SimpleNamespace(recipe=SimpleNamespace(dedup=METHODS, runner=Runner()), tables={"duplicates": "d"})


def test_values_are_mapped_and_the_groups_are_those_of_values_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parts = [rows(0, 0), rows(300, 1), rows(0, 2), rows(500, 3)]
    dataset, tables = written(tmp_path, parts)
    given = []
    real = dedup.grouped

    def grouped(options: Any, uids: Any, values: Any, **more: Any) -> dedup.Grouped:
        given.extend([uids, *values.values()])
        return real(options, uids, values, **more)

    monkeypatch.setattr(dedup, "grouped", grouped)
    found = stage.run(plan(), dataset, tables)
    assert len(given) == 3 + 4
    assert all(isinstance(array, np.memmap) for array in given)
    assert [(array.dtype.str, array.shape) for array in given[-2:]] == [("|S32", (640,)), ("<f2", (640, 16))]
    for method, part in zip(METHODS, found.parts, strict=True):
        name, columns = dedup.reads(method)
        every = pa.concat_tables([part[name] for part in parts])
        every = every.filter(every[columns[0]].is_valid())
        values = {column: every[column].combine_chunks() for column in columns}
        if "vector" in values:
            values["vector"] = values["vector"].flatten().to_numpy().reshape(-1, 16)
        want = real(method, every["uid"], values).table
        assert want.num_rows > 200
        dataset.write_part("duplicates", "in-memory", part.name, want, {}, part.also)
        again = dataset.read_bytes(f"tables/duplicates/in-memory/{part.name}.parquet")
        assert dataset.read_bytes(part.path) == again
    assert not list(tmp_path.glob(".spool/*"))


def test_where_no_row_has_a_value_there_are_no_groups(tmp_path: Path) -> None:
    dataset, tables = written(tmp_path, [rows(0, 0), rows(0, 1)])
    assert stage.run(plan(), dataset, tables).rows == 0


def test_vectors_of_two_lengths_are_told_with_the_part(tmp_path: Path) -> None:
    parts = [rows(10, 0), rows(10, 1)]
    short = pa.FixedSizeListArray.from_arrays(pa.array(np.ones(80, np.float16)), 8)
    parts[1]["embeddings_clip"] = parts[1]["embeddings_clip"].set_column(1, "vector", short)
    dataset, tables = written(tmp_path, parts)
    with pytest.raises(DataError, match=r"0000001\.parquet: its vectors"):
        stage.run(plan(), dataset, tables)


def bytes_of(dataset: Dataset, part: Part) -> list[bytes]:
    """Of the part and of what stands beside it."""
    return [dataset.read_bytes(path) for path in (part.path, *(file.path for file in part.also))]


@pytest.mark.parametrize(("workers", "groups"), [(1, "semdedup"), (3, "connected")])
def test_workers_find_what_one_process_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, groups: str
) -> None:
    monkeypatch.setattr(partitions, "PARTITION", 32)
    monkeypatch.setattr(partitions, "NEAREST", 2)
    monkeypatch.setattr(semantic.index_of, "__defaults__", (0,))
    monkeypatch.setattr(semantic, "BRUTE_FORCE", 0)
    asked = plan()
    asked.recipe.runner = Runner(workers=workers)
    asked.recipe.dedup = [SemanticDedup(kind="semantic", similarity=0.6, groups=groups)]
    dataset, tables = written(tmp_path, [rows(400, 1), rows(0, 2), rows(500, 3), rows(3, 4)])
    (one,) = stage.run(asked, dataset, tables).parts
    want = bytes_of(dataset, one)
    assert dataset.read_part(one).num_rows > 400
    if groups == "semdedup":
        pairs = dataset.read_part(one.also[0].path)
        assert pairs.num_rows > 200
        assert not pairs["equal"].to_numpy().all()
    for name, size in (("KEYS", 100), ("BUCKET", 100), ("PIECE", 450)):
        monkeypatch.setattr(stage.vectors, name, size)
    monkeypatch.setattr(stage, "IN_MEMORY", 0)
    monkeypatch.setattr(dedup, "grouped", None)
    (found,) = stage.run(asked, dataset, tables).parts
    assert bytes_of(dataset, found) == want
    assert not list(tmp_path.glob("work*/*"))


def hashes(count: int, seed: int) -> dict[str, pa.Table]:
    """`image` with hashes that crowd around a few: up to 20 bits away, many the same; every fifth row has none."""
    draw = np.random.default_rng(seed)
    around = np.random.default_rng(0).integers(0, 2**63, 40, np.uint64)[draw.integers(0, 40, count)]
    for _ in range(20):
        around ^= (draw.random(count) < 0.4).astype(np.uint64) << draw.integers(0, 64, count, np.uint64)
    around[::7] = around[:1]
    empty = rows(count, seed)
    absent = np.arange(count) % 5 == 4
    flat = np.where(np.arange(count) % 11 == 3, 0.1, 7).astype(np.float32)
    return {
        **empty,
        "image": pa.table({"uid": empty["pairs"]["uid"], "phash": pa.array(around, mask=absent), "entropy": flat}),
    }


@pytest.mark.parametrize(
    ("workers", "groups", "distance"), [(1, "connected", 4), (3, "semdedup", 7), (2, "semdedup", 0)]
)
def test_hashes_are_near_for_workers_as_for_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, groups: str, distance: int
) -> None:
    monkeypatch.setattr(perceptual, "BRUTE_FORCE", 0)
    asked = plan()
    asked.recipe.runner = Runner(workers=workers)
    asked.recipe.dedup = [PerceptualDedup(kind="perceptual", distance=distance, groups=groups)]
    dataset, tables = written(tmp_path, [hashes(900, 1), hashes(0, 2), hashes(1300, 3), hashes(3, 4)])
    (one,) = stage.run(asked, dataset, tables).parts
    want, table = bytes_of(dataset, one), dataset.read_part(one)
    assert len(set(table["dup_group"].to_pylist())) > (10 if distance else 0)
    assert len(want) == (2 if groups == "semdedup" else 1)
    monkeypatch.setattr(stage.hamming, "BUCKET", 200)
    if distance == 7:  # bits of a band may differ, as is best for many hashes
        bands = perceptual.Bands([perceptual.Band(0, 21), perceptual.Band(21, 21), perceptual.Band(42, 22)], 2)
        monkeypatch.setattr(perceptual, "bands", lambda *_: bands)
    asked.recipe.runner = Runner(kind="dask", workers=workers)
    direct = Runner(workers=workers)
    monkeypatch.setattr(stage.hamming, "shuffle", lambda *told: shuffle(*told[:-1], direct))
    monkeypatch.setattr(stage.joined, "shuffle", lambda *told: shuffle(*told[:-1], direct))
    monkeypatch.setattr(dedup, "grouped", None)
    (found,) = stage.run(asked, dataset, tables).parts
    assert bytes_of(dataset, found) == want
    assert not list(tmp_path.glob("work*/*"))


def files(count: int, seed: int) -> dict[str, pa.Table]:
    """`images` of which many are the same file, in every part; every fifth has none."""
    draw = np.random.default_rng(seed)
    uid = [hashlib.md5(f"{seed} {number}".encode()).hexdigest() for number in range(count)]
    sha256 = [hashlib.sha256(b"%d" % which).hexdigest() for which in draw.integers(0, 2000, count)]
    absent = np.arange(count) % 5 == 4
    empty = rows(0, 0)
    return {
        **empty,
        "images": pa.table({"uid": pa.array(uid, pa.string()), "sha256": pa.array(sha256, pa.string(), mask=absent)}),
    }


def test_equal_values_by_the_engines_own_grouping_are_the_groups_of_one_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    dataset, tables = written(tmp_path, [files(300, 1), files(0, 2), files(500, 3)])
    monkeypatch.setattr(equal, "BUCKET", 100)
    images = tables["images"]
    in_force: dict[str, pa.BooleanArray]
    for in_force in ({}, {images.parts[2].name: pa.array(np.arange(500) % 3 > 0)}):
        found = equal.groups(dataset, Runner(workers=2), METHODS[0], images, in_force)
        every = [dataset.read_part(part) for part in images.parts]
        masks = [in_force.get(part.name, pa.array(np.ones(part.rows, bool))) for part in images.parts]
        values = pa.concat_tables([part.filter(mask) for part, mask in zip(every, masks, strict=True)])
        values = values.filter(values["sha256"].is_valid())
        want = dedup.groups(METHODS[0], values["uid"], {"sha256": values["sha256"].combine_chunks()})
        assert want.num_rows > 100
        assert len(set(want["dup_group"].to_pylist())) > 40
        assert found.equals(want)
        buckets = equal.bucket_of(values["sha256"].to_numpy().astype(np.bytes_), images.rows // 100)
        assert set(buckets.tolist()) == set(range(8))
    assert not list(tmp_path.glob("tables/equal/*"))
    assert not list(tmp_path.glob("work/*"))


def test_of_a_part_that_cannot_be_read_there_are_no_groups(tmp_path: Path) -> None:
    dataset, tables = written(tmp_path, [files(300, 1), files(500, 3)])
    Path(dataset.path(tables["images"].parts[1].path)).unlink()
    with pytest.raises(VlmdataError, match=r"0000001\.parquet"):
        equal.groups(dataset, Runner(workers=2), METHODS[0], tables["images"], {})


@pytest.mark.parametrize("hashes_there", [True, False])
def test_workers_write_the_pairs_of_no_pair_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hashes_there: bool
) -> None:
    some = rows(40, 1)
    if not hashes_there:
        nothing = pa.nulls(40, pa.uint64())
        some["image"] = some["image"].set_column(1, "phash", nothing)
    some["image"] = some["image"].slice(1, 1) if hashes_there else some["image"]
    dataset, tables = written(tmp_path, [some, rows(0, 2)])
    asked = plan()
    asked.recipe.dedup = [PerceptualDedup(kind="perceptual", groups="semdedup")]
    (one,) = stage.run(asked, dataset, tables).parts
    want = bytes_of(dataset, one)
    assert len(want) == 2
    monkeypatch.setattr(perceptual, "BRUTE_FORCE", 0)
    asked.recipe.runner = Runner(kind="dask")
    for module in (stage.hamming, stage.joined):
        monkeypatch.setattr(module, "shuffle", lambda *told: shuffle(*told[:-1], Runner()))
    (found,) = stage.run(asked, dataset, tables).parts
    assert bytes_of(dataset, found) == want
