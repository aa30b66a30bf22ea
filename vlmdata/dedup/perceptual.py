"""Near-duplicates by perceptual hash: all pairs within a Hamming distance, exactly.

Small sets by FAISS's binary index, which compares all with all; large ones by multi-index hashing (Norouzi, Punjani and
Fleet 2012, "Fast Search in Hamming Space with Multi-Index Hashing"): 64 bits cut into m bands; two hashes within
distance r differ by at most r // m bits in one band at least, so only hashes whose band is that near are compared.
"""

from collections.abc import Iterator, Mapping
from itertools import combinations, pairwise
from math import comb

import numpy as np

from vlmdata import recipe
from vlmdata.dedup.components import Compared, Edges, since, stars

MIN_ENTROPY = 0.25
MIN_BITS = 12
BRUTE_FORCE = 20_000  # up to so many different hashes all are compared with all
_QUERIES = 1024  # of FAISS's search at once: all may be alike, and its answer is in memory
_CANDIDATES = 1 << 22  # compared at once


def reads(options: recipe.PerceptualDedup) -> tuple[str, list[str]]:
    """The table and the columns of it that the method compares."""
    return "image", ["phash", "entropy"]


def compare(
    options: recipe.PerceptualDedup, values: Mapping[str, np.ndarray], earlier: int = 0, known: object = None
) -> Compared:
    """The edges between rows whose hashes are within the distance of the options, of which one is not among the
    `earlier` first."""
    hashes, entropy = np.asarray(values["phash"]), np.asarray(values["entropy"])
    return Compared(pairs(hashes, options.distance, entropy, earlier=earlier), {})


def pairs(
    hashes: np.ndarray,
    distance: int,
    entropy: np.ndarray | None = None,
    brute_force: int = BRUTE_FORCE,
    earlier: int = 0,
) -> Iterator[Edges]:
    """The edges between hashes that differ in `distance` bits or fewer; similarity: the share of equal bits.

    hashes: uint64 [n]. entropy: bits of the grey histogram, float [n], where it is known.
    Rows of one hash are joined to their first; between different hashes all pairs are given, once.
    Of pairs among the `earlier` first rows none is given, and what only they have is not looked for.
    Images without content do not join a group: see `telling`.
    """
    rows = np.flatnonzero(telling(hashes, entropy))
    distinct, first, inverse = np.unique(hashes[rows], return_index=True, return_inverse=True)
    same = stars(inverse)
    yield since(same._replace(i=rows[same.i], j=rows[same.j]), earlier)
    rows = rows[first]
    fresh = rows >= earlier
    for a, b, differing in _near(distinct, distance, brute_force, fresh):
        i, j = rows[a], rows[b]
        yield Edges(np.minimum(i, j), np.maximum(i, j), (1 - differing / 64).astype(np.float32))


def telling(hashes: np.ndarray, entropy: np.ndarray | None = None) -> np.ndarray:
    """bool [n]: which images have enough in them to be compared by their hash.

    Not those with an entropy below MIN_ENTROPY (nearly one grey value), nor those whose hash has fewer than MIN_BITS of
    at most 32 bits set (more than half of the coefficients are zero: flat images and mere stripes, whose hashes are
    alike whatever they show).
    """
    enough = np.bitwise_count(hashes) >= MIN_BITS
    return enough if entropy is None else enough & (entropy >= MIN_ENTROPY)  # false for NaN too


def _near(
    hashes: np.ndarray, distance: int, brute_force: int, fresh: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Places of all pairs of different hashes within the distance of which one at least is `fresh`, once each, and
    their distance."""
    if distance == 0 or len(hashes) < 2 or not fresh.any():
        return
    if len(hashes) <= brute_force:
        yield from _all_near(hashes, distance, fresh)
        return
    keys, widths, within = _bands(hashes, distance)
    for band, key in enumerate(keys):
        for a, b in _candidates(key, widths[band], within, fresh):
            differing = np.bitwise_count(hashes[a] ^ hashes[b])
            near = differing <= distance
            a, b, differing = a[near], b[near], differing[near]
            # a pair that an earlier band has found is not given again
            new = np.ones(len(a), np.bool_)
            for earlier in keys[:band]:
                new &= np.bitwise_count(earlier[a] ^ earlier[b]) > within
            yield a[new], b[new], differing[new]


def _all_near(
    hashes: np.ndarray, distance: int, fresh: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """As `_near`, by FAISS's binary index."""
    import faiss

    codes = hashes.view(np.uint8).reshape(-1, 8)
    index = faiss.IndexBinaryFlat(64)
    index.add(codes)
    asked = np.flatnonzero(fresh)
    for start in range(0, len(asked), _QUERIES):
        places = asked[start : start + _QUERIES]
        # FAISS finds what is nearer than the radius
        limits, differing, found = index.range_search(codes[places], distance + 1)
        a = np.repeat(places, (limits[1:] - limits[:-1]).astype(np.int64))
        once = (a < found) | ~fresh[found]
        yield a[once], found[once], differing[once].astype(np.int64)


def _bands(hashes: np.ndarray, distance: int) -> tuple[list[np.ndarray], list[int], int]:
    """The bands for which the fewest look-ups and comparisons are to be expected of these hashes.

    Returns the hashes' bits in each band (int64), the bands' widths, and how many bits may differ in one of them.
    """
    best, least = None, np.inf
    # from 3 bands on a band's 22 bits index a table that fits into memory
    for bands in range(3, max(3, distance + 1) + 1):
        cuts = [64 * band // bands for band in range(bands + 1)]
        widths = [high - low for low, high in pairwise(cuts)]
        keys = [
            (hashes >> np.uint64(low)).astype(np.int64) & (1 << width) - 1
            for low, width in zip(cuts, widths, strict=False)
        ]
        within = distance // bands
        cost = 0.0
        for key, width in zip(keys, widths, strict=True):
            looked_up = sum(comb(width, flipped) for flipped in range(within + 1))
            # half of the squares are pairs, and a comparison costs about two look-ups
            cost += looked_up * (len(key) + np.square(np.bincount(key).astype(np.float64)).sum())
        if cost < least:
            best, least = (keys, widths, within), cost
    assert best is not None
    return best


def _candidates(key: np.ndarray, width: int, within: int, fresh: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places of all pairs whose keys of `width` bits differ in `within` bits or fewer, of which one at least is
    `fresh`, in blocks of bounded size."""
    order = np.argsort(key, kind="stable")
    ordered, asked = key[order], fresh[order]
    every = asked.all()
    place = np.arange(len(key))
    size = np.bincount(key, minlength=1 << width)
    start = np.cumsum(size) - size
    for flipped in range(within + 1):
        for bits in combinations(range(width), flipped):
            other = ordered ^ sum(1 << bit for bit in bits)
            if not every:
                for a, b in _ranges(start[other], np.where(asked, size[other], 0)):
                    once = ~asked[b] | (a < b)
                    yield order[a[once]], order[b[once]]
                continue
            # each pair once: in one bucket the later places, of two buckets from the smaller key's
            begin = start[other] if flipped else place + 1
            count = np.where(other > ordered, size[other], 0) if flipped else start[ordered] + size[ordered] - begin
            for a, b in _ranges(begin, count):
                yield order[a], order[b]


def _ranges(begin: np.ndarray, count: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """All (place, x) with begin <= x < begin + count of the place, about _CANDIDATES at once."""
    places = np.flatnonzero(count)
    total = np.cumsum(count[places])
    done = 0
    while done < len(places):
        before = total[done - 1] if done else 0
        stop = max(done + 1, int(np.searchsorted(total, before + _CANDIDATES, side="right")))
        here = places[done:stop]
        a = np.repeat(here, count[here])
        offset = np.repeat(total[done:stop] - count[here] - before, count[here])
        yield a, begin[a] + np.arange(len(a)) - offset
        done = stop
