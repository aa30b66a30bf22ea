"""Near-duplicates by the cosine of embeddings: compared with comparing all with all."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from vlmdata import dedup, recipe
from vlmdata.dedup import partitions, semantic


def clustered(n: int, d: int = 64, seed: int = 0) -> np.ndarray:
    """float16 [n, d]: topics of uneven size, as embeddings have them, and a third of all a changed copy of another."""
    rng = np.random.default_rng(seed)
    originals = n - n // 3
    topics = rng.normal(size=(40, d)) * rng.uniform(0.3, 1.5, d)
    topic = np.minimum(rng.geometric(0.1, originals) - 1, 39)
    vectors = topics[topic] + 0.8 * rng.normal(size=(originals, d))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    noise = rng.normal(size=(n // 3, d)) / np.sqrt(d) * rng.uniform(0.01, 0.5, (n // 3, 1))
    vectors = np.concatenate([vectors, vectors[rng.integers(0, originals, n // 3)] + noise])
    return rng.permutation(vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float16)


def found_pairs(vectors: np.ndarray, similarity: float, **options: int) -> dict[tuple[int, int], float]:
    found: dict[tuple[int, int], float] = {}
    for i, j, cosine, _ in semantic.pairs(vectors, similarity, **options):
        for pair in zip(i.tolist(), j.tolist(), cosine.tolist(), strict=True):
            assert pair[0] < pair[1]
            assert pair[:2] not in found
            found[pair[:2]] = pair[2]
    return found


def compared_all(vectors: np.ndarray, similarity: float) -> dict[tuple[int, int], float]:
    unit = vectors.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    cosine = unit @ unit.T
    i, j = np.nonzero(np.triu(cosine >= similarity, 1))
    return {(int(a), int(b)): float(cosine[a, b]) for a, b in zip(i, j, strict=True)}


def test_a_small_set_is_compared_whole() -> None:
    vectors = clustered(3_000)
    want = compared_all(vectors, 0.9)
    found = found_pairs(vectors, 0.9)
    assert len(want) > 500
    assert found.keys() == want.keys()
    assert all(abs(found[pair] - want[pair]) < 1e-5 for pair in want)


@pytest.mark.parametrize("similarity", [0.9, 0.95])
def test_partitions_find_99_of_100_pairs_and_no_others(similarity: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "PARTITION", 64)  # many partitions, as in a larger set
    vectors = clustered(6_000, seed=1)
    want = compared_all(vectors, similarity)
    found = found_pairs(vectors, similarity, brute_force=1_000)
    assert len(want) > 1_000
    assert found.keys() <= want.keys()
    assert len(found) >= 0.99 * len(want)


def test_partitions_that_a_pair_lies_across_give_it_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partitions, "PARTITION", 8)
    monkeypatch.setattr(partitions, "NEAREST", 2)
    vectors = clustered(1_500, d=6)
    want = compared_all(vectors, 0.95)
    found = found_pairs(vectors, 0.95, brute_force=0)
    assert 0.8 * len(want) < len(found) < len(want)
    assert found.keys() <= want.keys()


def test_a_crowd_of_vectors_that_are_nearly_one_is_one_group() -> None:
    rng = np.random.default_rng(0)
    vectors = (rng.normal(size=16) + 0.001 * rng.normal(size=(6_000, 16))).astype(np.float16)
    options = recipe.SemanticDedup(kind="semantic", similarity=0.95)
    found = dedup.groups(options, pa.array([f"{k:032x}" for k in range(6_000)]), {"vector": vectors})
    assert found.num_rows == 6_000
    assert found["dup_group"].unique().to_pylist() == ["0" * 32]


def test_lengths_do_not_matter_and_unusable_rows_have_no_edges() -> None:
    base = np.random.default_rng(0).normal(size=8)
    vectors = np.stack([base, 3 * base, base * 1e-3, np.zeros(8), np.full(8, np.nan), np.full(8, np.inf), -base])
    found = found_pairs(vectors.astype(np.float32), 0.999)
    assert found.keys() == {(0, 1), (0, 2), (1, 2)}


def test_rows_of_one_vector_are_joined_without_a_square_of_edges() -> None:
    vectors = np.tile(np.random.default_rng(0).normal(size=(2, 16)).astype(np.float16), (20_000, 1))
    blocks = list(semantic.pairs(vectors, 0.99))
    assert sum(len(block.i) for block in blocks) == 39_998
    zeros = np.array([[0.0, 1.0], [-0.0, 1.0]], np.float16)
    assert found_pairs(zeros, 0.99) == {(0, 1): 1.0}


def test_groups_know_their_most_similar_member() -> None:
    angles = np.radians([0, 10, 12, 90, 90, 200])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    options = recipe.SemanticDedup(kind="semantic", similarity=0.97)
    uids = np.array([str(n) * 32 for n in (5, 4, 3, 2, 1, 0)], "S32")
    found = dedup.groups(options, uids, {"vector": vectors})
    assert found["uid"].to_pylist() == [str(n) * 32 for n in (1, 2, 3, 4, 5)]
    assert found["dup_group"].to_pylist() == [str(n) * 32 for n in (1, 1, 3, 3, 3)]
    near, far = np.cos(np.radians(2)), np.cos(np.radians(10))
    assert found["similarity"].to_pylist() == pytest.approx([1, 1, near, near, far], abs=1e-6)


def test_vectors_mapped_from_a_file_give_the_same(tmp_path: Path) -> None:
    vectors = clustered(2_000)
    np.save(tmp_path / "vectors.npy", vectors)
    mapped = np.load(tmp_path / "vectors.npy", mmap_mode="r")
    assert found_pairs(mapped, 0.9, brute_force=500) == found_pairs(vectors, 0.9, brute_force=500)


def test_the_number_of_threads_changes_nothing() -> None:
    program = """
import hashlib, sys
import faiss
sys.path.insert(0, sys.argv[1])
from test_dedup_semantic import clustered
from vlmdata.dedup import partitions, semantic
faiss.omp_set_num_threads(int(sys.argv[2]))
blocks = list(semantic.pairs(clustered(6_000), 0.9, brute_force=1_000))
digest = hashlib.sha256(b"".join(column.tobytes() for block in blocks for column in block[:3]))
print(sum(len(block.i) for block in blocks), digest.hexdigest())
"""
    here = str(Path(__file__).parent)
    answers = []
    for threads in ("1", "2"):
        environment = {"OMP_NUM_THREADS": threads, "OPENBLAS_NUM_THREADS": threads, "PATH": ""}
        run = subprocess.run(
            [sys.executable, "-c", program, here, threads], env=environment, capture_output=True, text=True, check=True
        )
        answers.append(run.stdout)
    assert answers[0] == answers[1]
    assert int(answers[0].split()[0]) > 1_000


def test_no_rows_and_one_row_are_no_groups() -> None:
    options = recipe.SemanticDedup(kind="semantic")
    for n in (0, 1):
        uids = pa.array([f"{k:032x}" for k in range(n)], pa.string())
        assert dedup.groups(options, uids, {"vector": np.ones((n, 4), np.float16)}).num_rows == 0
