"""New rows against what is known of earlier ones: the groups of all rows at once."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_dedup_semantic import clustered

from vlmdata import dedup, recipe
from vlmdata.dedup import alike, partitions, perceptual, semantic

EXACT = recipe.ExactDedup(kind="exact")
PERCEPTUAL = recipe.PerceptualDedup(kind="perceptual")
SEMANTIC = recipe.SemanticDedup(kind="semantic", similarity=0.9)


def uids(n: int) -> np.ndarray:
    return np.char.zfill(np.random.default_rng(9).permutation(n).astype("S32"), 32)


def in_steps(options: Any, values: dict[str, np.ndarray], cuts: list[int]) -> dedup.Grouped:
    """Grouped as layers come: the first rows, then those up to each further cut."""
    names = uids(len(next(iter(values.values()))))
    found, before = None, 0
    for cut in [*cuts, len(names)]:
        earlier = dedup.Earlier(before, found.table, found.known) if found else None
        part = {name: column[:cut] for name, column in values.items()}
        found, before = dedup.grouped(options, names[:cut], part, earlier), cut
    assert found is not None
    return found


def at_once(options: Any, values: dict[str, np.ndarray]) -> pa.Table:
    return dedup.groups(options, uids(len(next(iter(values.values())))), values)


def hashes(n: int, seed: int) -> dict[str, np.ndarray]:
    draw = np.random.default_rng(seed)
    found = draw.integers(0, 2**64, n, np.uint64)
    for _ in range(2):
        copies = draw.permutation(n)[: n // 3]
        found[copies] = found[draw.integers(0, n, len(copies))] ^ (
            np.uint64(1) << draw.integers(0, 64, len(copies), np.uint64)
        )
    return {"phash": found, "entropy": np.where(draw.random(n) < 0.1, 0, 7).astype(np.float32)}


@pytest.mark.parametrize("cuts", [[0], [1], [700, 701, 1_500], [2_000]])
@pytest.mark.parametrize("brute_force", [0, 20_000], ids=["bands", "faiss"])
def test_hashes_and_bytes_give_just_the_same(cuts: list[int], brute_force: int, monkeypatch: Any) -> None:
    monkeypatch.setattr(perceptual.pairs, "__defaults__", (None, brute_force, 0))
    values = hashes(2_000, 0)
    want = at_once(PERCEPTUAL, values)
    assert want.num_rows > 500
    assert in_steps(PERCEPTUAL, values, cuts).table.equals(want)
    sha256 = {"sha256": np.random.default_rng(1).integers(0, 1_000, 2_000).astype("S64")}
    assert in_steps(EXACT, sha256, cuts).table.equals(at_once(EXACT, sha256))


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 6)), min_size=2, max_size=40), st.data())
def test_hashes_that_crowd_do_too(drawn: list[tuple[int, int]], data: Any) -> None:
    seeds = [0x0F0F_0F0F_0F0F_0F0F, 0xAAAA_AAAA_AAAA_AAAA, 0x0F0F_0F0F_0F0F_FF0F]
    found = np.array([seeds[seed] ^ (1 << flips) - 1 for seed, flips in drawn], np.uint64)
    values = {"phash": found, "entropy": np.full(len(found), 7, np.float32)}
    cuts = sorted(data.draw(st.lists(st.integers(0, len(found)), max_size=3)))
    assert in_steps(PERCEPTUAL, values, cuts).table.equals(at_once(PERCEPTUAL, values))


@pytest.mark.parametrize("cuts", [[1], [1_500, 1_501], [3_000]])
def test_a_small_set_of_embeddings_is_compared_whole_each_time(cuts: list[int]) -> None:
    vectors = clustered(3_000)
    vectors[2_000:2_100] = vectors[:100]
    want, found = at_once(SEMANTIC, {"vector": vectors}), in_steps(SEMANTIC, {"vector": vectors}, cuts).table
    assert want.num_rows > 800
    assert found.equals(want)


def test_a_large_set_grows_by_its_partitions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "PARTITION", 64)
    vectors = clustered(6_000, seed=1)
    index, _ = semantic.index_of(vectors[:5_000], brute_force=1_000)
    calls = []
    monkeypatch.setattr(partitions, "train", lambda *_: calls.append("trained"))
    grown, edges = semantic.added(vectors, 5_000, index, 0.9)
    found = {(i, j) for block in edges for i, j in zip(block.i.tolist(), block.j.tolist(), strict=True)}
    unit = semantic.unit(vectors, np.arange(6_000)).astype(np.float64)
    want = {(i, j) for i, j in zip(*np.nonzero(np.triu(unit @ unit.T >= 0.9, 1)), strict=True) if j >= 5_000}
    assert len(want) > 300
    assert found <= want
    assert len(found) >= 0.99 * len(want)
    assert not calls
    assert len(grown.rows) == len(grown.near) > len(index.rows)
    assert not sum(len(block.i) for block in semantic.added(vectors, 6_000, grown, 0.9)[1])


def test_the_pairs_of_a_crowd_are_a_small_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alike, "_WRITTEN", 50_000)
    draw = np.random.default_rng(0)
    vectors = (draw.standard_normal(8) + 0.01 * draw.standard_normal((400, 8))).astype(np.float16)
    names = uids(400)
    dedup.grouped(SEMANTIC, names, {"vector": vectors}, near=tmp_path / "near.parquet")
    pairs = pq.read_table(tmp_path / "near.parquet", schema=alike.SCHEMA)
    found = {frozenset(pair) for pair in zip(pairs["uid"].to_pylist(), pairs["other"].to_pylist(), strict=True)}
    assert len(pairs) == len(found) == 400 * 399 // 2
    assert not any(pairs["equal"].to_pylist())
    assert (tmp_path / "near.parquet").stat().st_size < 2 * len(pairs), "two uids a pair are 64 bytes"


def test_what_is_known_goes_through_a_file_and_the_pairs_written_are_the_new_ones(tmp_path: Path) -> None:
    vectors = np.random.default_rng(0).standard_normal((40, 8)).astype(np.float16)
    vectors[30:] = vectors[:10]
    vectors[20] = vectors[0] * 2
    names = uids(40)
    first = dedup.grouped(SEMANTIC, names[:25], {"vector": vectors[:25]}, near=tmp_path / "first.parquet")
    assert pq.read_table(tmp_path / "first.parquet", schema=alike.SCHEMA).num_rows == 1
    np.savez(tmp_path / "known.npz", **first.known)
    with np.load(tmp_path / "known.npz", allow_pickle=False) as known:
        earlier = dedup.Earlier(25, first.table, dict(known))
    dedup.grouped(SEMANTIC, names, {"vector": vectors}, earlier, tmp_path / "second.parquet")
    pairs = pq.read_table(tmp_path / "second.parquet", schema=alike.SCHEMA).to_pylist()
    assert sum(pair["equal"] for pair in pairs) == 10
    told = {frozenset((pair["uid"].encode(), pair["other"].encode())) for pair in pairs}
    assert told >= {frozenset((names[row], names[row - 30])) for row in range(30, 40)}
    assert frozenset((names[20], names[0])) not in told
