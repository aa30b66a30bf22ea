"""Near-duplicates by perceptual hash: all pairs within a Hamming distance, exactly.

Small sets by FAISS's binary index, which compares all with all; large ones by multi-index hashing (Norouzi, Punjani and
Fleet 2012, "Fast Search in Hamming Space with Multi-Index Hashing"): 64 bits cut into m bands; two hashes within
distance r differ by at most r // m bits in one band at least, so only hashes whose band is that near are compared.
"""

from collections.abc import Iterator, Mapping
from itertools import chain, combinations, pairwise
from math import comb
from typing import Any, NamedTuple

import numpy as np

from vlmdata import recipe
from vlmdata.dedup.components import Compared, Edges, since

MIN_ENTROPY = 0.25
MIN_BITS = 12
BRUTE_FORCE = 20_000  # up to so many different hashes all are compared with all
_QUERIES = 1024  # of FAISS's search at once: all may be alike, and its answer is in memory
_CANDIDATES = 1 << 20  # compared at once
_SLICE = 1 << 17  # rows whose candidates are looked up at once


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
    rows = np.flatnonzero(telling(hashes, entropy)).astype(_place(len(hashes)))
    rows = rows[np.argsort(hashes[rows], kind="stable")]
    ordered = hashes[rows]
    new = np.ones(len(rows), np.bool_)
    new[1:] = ordered[1:] != ordered[:-1]
    again = np.flatnonzero(~new)
    hub = np.flatnonzero(new)[np.cumsum(new)[again] - 1]
    same = Edges(rows[hub].astype(np.int64), rows[again].astype(np.int64), np.ones(len(again), np.float32), equal=True)
    yield since(same, earlier)
    rows, distinct = rows[new], ordered[new]
    del ordered, new
    for a, b, differing in _near(distinct, distance, brute_force, rows >= earlier):
        i, j = rows[a].astype(np.int64), rows[b].astype(np.int64)
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
    cut = bands(hashes, distance)
    for place in range(len(cut.bands)):
        yield from in_band(hashes, cut, place, distance, fresh)


def in_band(
    hashes: np.ndarray, cut: "Bands", place: int, distance: int, fresh: np.ndarray
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """The pairs of different hashes within the distance that one band finds and none before it, as places and their
    distance; one at least is `fresh`, bool [n]."""
    band = cut.bands[place]
    for a, b in _candidates(bits(hashes, band), band.width, cut.within, fresh):
        apart = hashes[a] ^ hashes[b]
        near = np.bitwise_count(apart) <= distance
        a, b, apart = a[near], b[near], apart[near]
        new = np.ones(len(a), np.bool_)
        for earlier in cut.bands[:place]:
            new &= np.bitwise_count(bits(apart, earlier)) > cut.within
        yield a[new], b[new], np.bitwise_count(apart[new])


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


class Band(NamedTuple):
    """Some of a hash's bits: the lowest of them, and how many."""

    low: int
    width: int


class Bands(NamedTuple):
    """All bits of a hash, and how many may differ in one of the bands."""

    bands: list[Band]
    within: int


def bands(hashes: np.ndarray, distance: int, times: float = 1) -> Bands:
    """The bands for which the fewest look-ups and comparisons are to be expected of these hashes, or of so many `times`
    as many of which these are a sample."""
    best, least = None, np.inf
    # from 3 bands on a band's 22 bits index a table that fits into memory
    for count in range(3, max(3, distance + 1) + 1):
        cut = [Band(low, high - low) for low, high in pairwise(64 * band // count for band in range(count + 1))]
        within = distance // count
        cost = 0.0
        for band in cut:
            looked_up = sum(comb(band.width, flipped) for flipped in range(within + 1))
            sizes = np.diff(_starts(bits(hashes, band), band.width)).astype(np.float32) * times
            # half of the squares are pairs, and a comparison costs about two look-ups
            cost += looked_up * (len(hashes) * times + float(sizes @ sizes))
        if cost < least:
            best, least = Bands(cut, within), cost
    assert best is not None
    return best


def bits(hashes: np.ndarray, band: Band) -> np.ndarray:
    """int32 [n]: a band's bits of each hash."""
    found = np.empty(len(hashes), np.int32)
    for start in range(0, len(hashes), _SLICE):
        part = slice(start, start + _SLICE)
        found[part] = (hashes[part] >> np.uint64(band.low)) & np.uint64((1 << band.width) - 1)
    return found


def _starts(key: np.ndarray, width: int) -> np.ndarray:
    """[2**width + 1]: where each key begins among the n keys in their order; the last is n."""
    size = np.bincount(key, minlength=1 << width).astype(_place(len(key)))
    return np.concatenate([np.zeros(1, size.dtype), np.cumsum(size, dtype=size.dtype)])


def _candidates(key: np.ndarray, width: int, within: int, fresh: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Places of all pairs whose keys of `width` bits differ in `within` bits or fewer, of which one at least is
    `fresh`, in blocks of bounded size. Beside a few numbers a row in memory stand those of _SLICE rows."""
    order = np.argsort(key, kind="stable").astype(_place(len(key)))
    start = _starts(key, width)
    ordered = key[order]
    every = fresh.all()
    for bits in chain.from_iterable(combinations(range(width), flipped) for flipped in range(within + 1)):
        for low in range(0, len(order), _SLICE):
            mine = ordered[low : low + _SLICE]
            other = mine ^ np.int32(sum(1 << bit for bit in bits))
            begin, stop = start[other].astype(np.int64), start[other + 1]
            if not every:
                for a, b in _ranges(begin, np.where(fresh[order[low : low + _SLICE]], stop - begin, 0)):
                    a, b = order[a + low], order[b]
                    once = ~fresh[b] | (a < b)
                    yield a[once], b[once]
                continue
            # each pair once: in one bucket the later places, of two buckets from the smaller key's
            begin = begin if bits else np.arange(low + 1, low + 1 + len(mine))
            for a, b in _ranges(begin, stop - begin if not bits else np.where(other > mine, stop - begin, 0)):
                yield order[a + low], order[b]


def _place(rows: int) -> type[np.signedinteger[Any]]:
    """What holds a place among so many rows."""
    return np.int32 if rows < 1 << 31 else np.int64


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
