"""Groups of pairs whose images have the same bytes, and the table of groups."""

import hashlib

import numpy as np
import pyarrow as pa
import pytest

from vlmdata import dedup, recipe
from vlmdata.dedup import exact
from vlmdata.schemas import table_schema

EXACT = recipe.ExactDedup(kind="exact")


def uid(n: int) -> str:
    return f"{n:032x}"


def test_groups_are_named_by_their_smallest_uid_and_sorted() -> None:
    uids = [uid(n) for n in (9, 3, 5, 1, 7, 2)]
    found = dedup.groups(EXACT, pa.array(uids), {"sha256": pa.array(["a", "b", "a", "c", "a", "b"])})
    assert found.schema == table_schema("duplicates")
    assert found["uid"].to_pylist() == [uid(2), uid(3), uid(5), uid(7), uid(9)]
    assert found["dup_group"].to_pylist() == [uid(2), uid(2), uid(5), uid(5), uid(5)]
    assert set(found["dup_method"].to_pylist()) == {"exact"}
    assert found["similarity"].to_pylist() == [1.0] * 5


@pytest.mark.parametrize("n", [0, 1])
def test_without_duplicates_the_table_is_empty_and_has_its_columns(n: int) -> None:
    found = dedup.groups(EXACT, np.array([uid(k) for k in range(n)], "S32"), {"sha256": pa.array(["a"] * n)})
    assert found.num_rows == 0
    assert found.schema == table_schema("duplicates")


def test_null_is_equal_to_nothing() -> None:
    found = dedup.groups(EXACT, pa.array([uid(n) for n in range(4)]), {"sha256": pa.array([None, "a", None, "a"])})
    assert found["uid"].to_pylist() == [uid(1), uid(3)]


def test_arrow_numpy_and_chunks_give_the_same_in_every_order() -> None:
    rng = np.random.default_rng(0)
    uids = np.array([uid(n) for n in rng.permutation(5_000)], "S32")
    values = np.array([f"{n:064x}" for n in rng.integers(0, 3_000, 5_000)], "S64")
    want = dedup.groups(EXACT, uids, {"sha256": values})
    order = rng.permutation(5_000)
    text = pa.array(values[order]).cast(pa.string())
    chunks = pa.chunked_array([text.slice(0, 100), text.slice(100)])
    assert dedup.groups(EXACT, pa.array(uids[order]).cast(pa.string()), {"sha256": chunks}).equals(want)
    members = {}
    for who, value in zip(uids.tolist(), values.tolist(), strict=True):
        members.setdefault(value, []).append(who.decode())
    groups = {min(m): sorted(m) for m in members.values() if len(m) > 1}
    assert want["dup_group"].to_pylist() == [g for g in sorted(groups) for _ in groups[g]]
    assert want["uid"].to_pylist() == [who for g in sorted(groups) for who in groups[g]]


def test_many_rows_of_one_image_make_no_square_of_edges() -> None:
    n = 300_000  # all pairs would be 45 thousand million
    uids = np.char.zfill(np.arange(n).astype("S32"), 32)
    found = dedup.groups(EXACT, uids, {"sha256": pa.array(["a"]).take(pa.array(np.zeros(n, int)))})
    assert found.num_rows == n
    assert found["dup_group"].unique().to_pylist() == ["0" * 32]


def test_each_method_says_what_it_reads() -> None:
    assert dedup.reads(EXACT) == ("images", ["sha256"])
    assert dedup.reads(recipe.PerceptualDedup(kind="perceptual")) == ("image", ["phash", "entropy"])
    semantic = recipe.SemanticDedup(kind="semantic", embeddings="clip_b")
    assert dedup.reads(semantic) == ("embeddings_clip_b", ["vector"])


def test_digests_of_different_beginnings_are_looked_at_in_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    uids = np.array([uid(n) for n in range(5_000)], "S32")
    digests = np.array([hashlib.sha256(b"%d" % n).hexdigest() for n in rng.integers(0, 3_000, 5_000)], "S64")
    want = dedup.groups(EXACT, uids, {"sha256": digests})
    assert want.num_rows > 2_000
    monkeypatch.setattr(exact, "BLOCK", 500)
    blocks = list(exact.pairs(digests))
    assert 8 < len(blocks) <= 10
    assert max(len(np.union1d(block.i, block.j)) for block in blocks) < 600
    assert dedup.groups(EXACT, uids, {"sha256": digests}).equals(want)
