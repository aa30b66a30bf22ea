"""Which of near-duplicates stay: SemDeDup's rule as its paper states it, and the survivors that it names."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from selection import looking_at

from vlmdata import dedup
from vlmdata.dedup import semantic
from vlmdata.errors import InputError
from vlmdata.plan import make_plan
from vlmdata.recipe import Recipe, SemanticDedup, Shards
from vlmdata.rules import check_order
from vlmdata.schemas import table_schema
from vlmdata.select import Choice, judge_part, settle

COLUMNS = pa.schema(
    [("uid", pa.string()), ("download_status", pa.string()), ("sha256", pa.string()), ("width", pa.int32())]
)
SIMILARITY = 0.9


def kept(
    folder: Path, vectors: np.ndarray, widths: list[int], passing: list[bool], groups: str, ahead: str | None = None
) -> list[int]:
    """Rows that stay; wider ones first."""
    n = len(vectors)
    uid = [f"{row:032x}" for row in range(n)]
    status = ["success" if passes else "dns" for passes in passing]
    rows = pa.table([uid, status, uid, widths], schema=COLUMNS)
    order = tuple(check_order("select.survivor", "width desc", COLUMNS))
    choice = Choice({}, frozenset(), ("semantic",), order, ahead=ahead)
    near = folder / "near.parquet"
    options = SemanticDedup(kind="semantic", similarity=SIMILARITY)
    table = dedup.grouped(options, pa.array(uid), {"vector": vectors}, near=near).table
    pairs = {"semantic": pq.read_table(near)} if groups == "semdedup" else {}
    connection = looking_at(folder, judge_part(rows, choice), table, pairs)
    verdicts, _, _ = settle(connection, [n], choice, Shards(), duplicates=True, near=list(pairs))
    return [row for row, stays in enumerate(next(verdicts)["kept"].to_pylist()) if stays]


def as_the_paper_says(vectors: np.ndarray, widths: list[int], passing: list[bool]) -> list[int]:
    """Sort, compare each with all before it, drop it where the largest similarity is above the threshold."""
    unit = vectors.astype(np.float64) / np.linalg.norm(vectors.astype(np.float64), axis=1, keepdims=True)
    order = sorted((row for row in range(len(vectors)) if passing[row]), key=lambda row: (-widths[row], row))
    similarity = np.triu(unit[order] @ unit[order].T, 1)
    return sorted(row for row, most in zip(order, similarity.max(axis=0, initial=0), strict=True) if most < SIMILARITY)


@settings(max_examples=10, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3), st.booleans()), min_size=1, max_size=25))
def test_what_is_like_an_earlier_one_goes_as_the_paper_says(tmp_path_factory, drawn) -> None:
    # on an arc, so that a row may be like two that are not alike; often several of one value
    angles, widths, passing = (list(column) for column in zip(*drawn, strict=True))
    radians = np.radians(np.array(angles) * 11.0)
    vectors = np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)
    folder = tmp_path_factory.mktemp("spill")
    assert kept(folder, vectors, widths, passing, "semdedup") == as_the_paper_says(vectors, widths, passing)


def test_a_chain_has_one_survivor_or_each_that_nothing_earlier_is_near_to(tmp_path) -> None:
    radians = np.radians([0, 20, 40, 60])  # each is like its neighbours alone
    vectors = np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)
    every = [True] * 4
    assert kept(tmp_path, vectors, [4, 3, 2, 1], every, "connected") == [0]
    # the second goes because of the first, the third because of the second, though that is gone
    assert kept(tmp_path, vectors, [4, 3, 2, 1], every, "semdedup") == [0]
    assert kept(tmp_path, vectors, [4, 1, 3, 2], every, "semdedup") == [0, 2]
    assert kept(tmp_path, vectors, [4, 3, 2, 1], [True, False, True, True], "semdedup") == [0, 2]


def test_a_split_cuts_no_group_of_which_several_stay(tmp_path) -> None:
    # 40 pairs of perceptual groups, of which each second is linked with the next by a semantic one; 10 of one image
    # alone, of which one is in a group too
    uid = [f"{n:02d}" for n in range(60)]
    image = [f"{n:064x}" for n in range(50)] + [f"{0:064x}"] * 10
    groups = [("perceptual", n, n // 2 * 2) for n in range(40)]
    groups += [("semantic", n, n // 4 * 4 + 1) for n in range(40) if n % 4 in (1, 2)]
    rows = [{"uid": uid[n], "dup_method": method, "dup_group": uid[first]} for method, n, first in groups]
    duplicates = pa.Table.from_pylist(rows, table_schema("duplicates"))
    columns = pa.schema([("uid", pa.string()), ("other", pa.string()), ("equal", pa.bool_())])
    near = columns.empty_table()  # nothing is near: all stay
    choice = Choice({}, frozenset(), ("perceptual", "semantic"), ())
    judged = judge_part(pa.table([uid, ["success"] * 60, image, [1] * 60], schema=COLUMNS), choice)
    splits = Shards(splits={"train": 0.5, "test": 0.5})
    both = {"perceptual": near, "semantic": near}
    connection = looking_at(tmp_path, judged, duplicates, both)
    (table,), _, counts = settle(connection, [60], choice, splits, duplicates=True, near=list(both))
    found = table["split"].to_pylist()
    assert all(len(set(found[n : n + 4])) == 1 for n in range(0, 40, 4))
    assert set(found[50:]) == {found[0]}
    assert min(counts.values()) > 10


def test_hard_and_easy_are_by_the_distance_to_the_centroid_of_the_partition(tmp_path, monkeypatch) -> None:
    radians = np.radians([0, 10, 20, 100])  # the mean of all lies at about 32 degrees
    vectors = np.stack([np.cos(radians), np.sin(radians)], axis=1).astype(np.float32)
    every, widths = [True] * 4, [1, 3, 2, 4]
    assert kept(tmp_path, vectors, widths, every, "connected", "hard") == [0, 3]
    assert kept(tmp_path, vectors, widths, every, "connected", "easy") == [2, 3]
    assert kept(tmp_path, vectors, widths, every, "connected") == [1, 3]
    drawn = kept(tmp_path, vectors, widths, every, "connected", "random")
    assert drawn == kept(tmp_path, vectors, widths[::-1], every, "connected", "random")
    assert len(drawn) == 2


def test_centroids_are_those_of_the_partitions_where_there_are_any(monkeypatch) -> None:
    draw = np.random.default_rng(0)
    vectors = draw.standard_normal((3_000, 8)).astype(np.float16)
    index, _ = semantic.index_of(vectors, brute_force=0)
    found = semantic.centrality(vectors, index, np.arange(3_000))
    unit = semantic.unit(vectors, np.arange(3_000))
    centroids = index.partitions.centroids / np.linalg.norm(index.partitions.centroids, axis=1, keepdims=True)
    assert np.abs(found - (unit * centroids[index.near[:, 0]]).sum(axis=1)).max() < 1e-6
    assert np.abs(found - (unit @ centroids.T).max(axis=1)).mean() < 0.01


def test_a_survivor_by_centroids_needs_embeddings(tmp_path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"not looked at")
    (tmp_path / "a.txt").write_text("a caption")
    recipe = {"dataset": str(tmp_path), "sources": [{"kind": "folder", "name": "a", "path": str(tmp_path)}]}
    recipe |= {"dedup": ["exact"], "select": {"survivor": "hard"}}
    with pytest.raises(InputError, match="must name the kind semantic"):
        make_plan(Recipe.model_validate(recipe))
    recipe["select"] = {"survivor": "random"}
    assert [order.direction for order in make_plan(Recipe.model_validate(recipe)).checked.survivor] == ["desc", "desc"]


def test_the_file_of_groups_says_where_each_member_stands(tmp_path):
    """Over parts of which some are empty, in the order of the survivors."""
    sizes, widths = [2, 0, 3, 0], [5, 9, 7, 9, 1]
    uid = [f"{row:032x}" for row in range(5)]
    rows = pa.table([uid, ["dns"] * 5, uid, widths], schema=COLUMNS)
    choice = Choice({}, frozenset(), ("exact",), tuple(check_order("select.survivor", "width desc", COLUMNS)))
    group = pa.array([uid[0]] * 4)
    table = pa.table({"uid": [uid[3], uid[0], uid[2], uid[1]], "dup_method": ["exact"] * 4, "dup_group": group})
    path = tmp_path / "grouped.parquet"
    connection = looking_at(tmp_path, judge_part(rows, choice), table)
    settle(connection, sizes, choice, Shards(), duplicates=True, grouped=path)
    found = pq.read_table(path).to_pylist()
    assert [(row["part"], row["row"], row["uid"], row["rank"]) for row in found] == [
        (0, 1, uid[1], 1),
        (2, 1, uid[3], 2),
        (2, 0, uid[2], 3),
        (0, 0, uid[0], 4),
    ]
