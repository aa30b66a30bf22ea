"""Groups from edges."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from vlmdata.dedup.components import Edges, components, stars, unite

GRAPHS = st.integers(1, 40).flatmap(
    lambda n: st.tuples(
        st.just(n), st.lists(st.tuples(st.integers(0, n - 1), st.integers(0, n - 1), st.floats(0, 1, width=32)))
    )
)


def reference(n: int, edges: list[tuple[int, int, float]]) -> list[int]:
    """The textbook: paint each group with its smallest row."""
    label = list(range(n))
    for _ in range(n):
        for i, j, _similarity in edges:
            label[i] = label[j] = min(label[i], label[j])
    return label


@given(GRAPHS)
def test_components_are_those_of_the_textbook(graph: tuple[int, list[tuple[int, int, float]]]) -> None:
    n, edges = graph
    i, j = np.array([e[:2] for e in edges], np.int64).reshape(-1, 2).T
    assert components(n, i, j).tolist() == reference(n, edges)


@given(GRAPHS, st.integers(1, 5), st.randoms(use_true_random=False))
def test_blocks_in_any_order_give_the_same_groups_and_similarities(graph, size, random) -> None:  # type: ignore[no-untyped-def]
    n, edges = graph
    blocks = []
    for start in range(0, len(edges), size):
        i, j, similarity = zip(*edges[start : start + size], strict=True)
        blocks.append(Edges(np.array(i), np.array(j), np.array(similarity, np.float32)))
    random.shuffle(blocks)
    labels, best = unite(n, blocks)
    assert labels.tolist() == reference(n, edges)
    for row in range(n):
        assert best[row] == max((s for i, j, s in edges if row in (i, j)), default=0)


def test_many_blocks_are_merged_on_the_way() -> None:
    n = 3_000
    rng = np.random.default_rng(0)
    order = rng.permutation(n)
    # a path through all even rows in shuffled order, so often that the edges are merged several times
    path = order[order % 2 == 0]
    block = Edges(path[:-1], path[1:], np.ones(len(path) - 1, np.float32))
    labels, best = unite(n, (block for _ in range(1_500)))
    assert set(labels[::2].tolist()) == {0}
    assert labels[1::2].tolist() == list(range(1, n, 2))
    assert best.tolist() == [1.0, 0.0] * (n // 2)


def test_a_long_line_and_a_large_star_end_in_one_group() -> None:
    n = 200_000
    shuffled = np.random.default_rng(1).permutation(n)
    assert not components(n, shuffled[:-1], shuffled[1:]).any()
    assert not components(n, np.full(n, n - 1), np.arange(n)).any()


@given(st.lists(st.integers(-1, 5), max_size=30))
def test_stars_join_equal_codes_with_as_few_edges_as_can_be(codes: list[int]) -> None:
    array = np.array(codes, np.int64)
    found = stars(array)
    labels = components(len(codes), found.i, found.j)
    for a, first in enumerate(codes):
        for b, second in enumerate(codes):
            assert (labels[a] == labels[b]) == (a == b or (first == second and first >= 0))
    assert len(found.i) == sum(codes.count(c) - 1 for c in set(codes) if c >= 0)
    assert (found.i < found.j).all()
