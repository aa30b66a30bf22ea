"""Which samples a batch holds and what is drawn for each: functions of (seed, number of the batch, place in it)."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from vlmdata.errors import InputError


def positions(n: int, batch: int, seed: int, number: int) -> np.ndarray:
    """The samples of batch `number` (from 0) of an endless training, int64 [batch], all different.

    Every epoch is another permutation, a function of (seed, epoch); what does not fill a batch at its end is left out.
    Raises InputError where there are fewer samples than a batch.
    """
    if n < batch:
        raise InputError(f"the shards hold {n} samples and a batch is {batch}: make `batch` smaller")
    epoch, place = divmod(number, n // batch)
    return _permutation(n, seed, epoch)[place * batch : (place + 1) * batch]


def mixed_positions(
    sources: Sequence[np.ndarray], weights: Sequence[float], batch: int, seed: int, number: int
) -> np.ndarray:
    """The samples of batch `number` where several sources share a batch by weight, int64 [batch].

    sources: of each its places among all samples, int64. Of one alone it is `positions`. Of several each gives, up to
    any batch, its share of all samples to less than one sample, in epochs of its own.
    Raises InputError where a source's share of a batch is less than one sample, or a source has fewer than its share.
    """
    if len(sources) == 1:
        return sources[0][positions(len(sources[0]), batch, seed, number)]
    edges = np.cumsum([0.0, *weights]) / sum(weights)

    def before(batches: int) -> np.ndarray:
        """How many samples each source gave before a batch."""
        return np.diff(np.round(edges * (batches * batch)).astype(np.int64))

    chosen = []
    for place, (start, stop) in enumerate(zip(before(number), before(number + 1), strict=True)):
        n, share = len(sources[place]), batch * weights[place] / sum(weights)
        if share < 1 or n < share:
            raise InputError(
                f"mix: of a batch of {batch}, {share:.1f} samples come from source {place + 1}, which has {n}: change "
                "its weight or `batch`"
            )
        epochs, rest = np.divmod(np.arange(start, stop), n)
        for epoch in np.unique(epochs):
            order = _permutation(n, seed + place * 1_000_003, int(epoch))
            chosen.append(sources[place][order[rest[epochs == epoch]]])
    return np.concatenate(chosen)


def derangement(n: int, seed: int) -> np.ndarray:
    """A random cycle through n places, int64 [n]: none stays where it is (Sattolo 1986), but for one alone."""
    order, draw = np.arange(n), np.random.default_rng(seed)
    for last in range(n - 1, 0, -1):
        chosen = int(draw.integers(last))
        order[[last, chosen]] = order[[chosen, last]]
    return order


def seeds(seed: int, number: int, slots: range) -> np.ndarray:
    """A seed for each place in batch `number`, uint64 [len(slots)], whatever process draws it."""
    first = np.random.SeedSequence([seed, number]).generate_state(1, np.uint64)
    return _mixed(first + np.arange(slots.start, slots.stop, dtype=np.uint64) * _GOLDEN)


def uniform(seeds: np.ndarray, k: int) -> np.ndarray:
    """k numbers in [0, 1) from each seed, float64 [len(seeds), k]."""
    steps = np.arange(1, k + 1, dtype=np.uint64) * _GOLDEN
    return (_mixed(seeds[:, None] + steps) >> np.uint64(11)).astype(np.float64) / 2**53


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mixed(x: np.ndarray) -> np.ndarray:
    """SplitMix64's output function (Steele 2014, "Fast splittable pseudorandom number generators")."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@lru_cache(maxsize=16)  # reading ahead needs two epochs of each source
def _permutation(n: int, seed: int, epoch: int) -> np.ndarray:
    return np.random.default_rng([seed, epoch]).permutation(n)
