"""Percentile bootstrap (Efron 1979): how far a metric would move had other samples been drawn for the test set."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from vlmdata.recipe import Evaluation

LEVEL = 0.95
_AT_ONCE = 4_000_000  # drawn places in memory; 32 MB


def draws(n: int, resamples: int, seed: int, strata: np.ndarray | None = None) -> Iterator[np.ndarray]:
    """Places of `resamples` samples of n, drawn with replacement: blocks int64 [r, n], a function of the seed.

    strata: int [n]; of each stratum as many are drawn as it has, from itself alone.
    """
    rng = np.random.default_rng(seed)
    block = max(1, _AT_ONCE // n)
    if strata is not None:
        order = np.argsort(strata, kind="stable")
        _, starts, sizes = np.unique(strata[order], return_index=True, return_counts=True)
        start, size = np.repeat(starts, sizes), np.repeat(sizes, sizes)
    for first in range(0, resamples, block):
        rows = min(block, resamples - first)
        if strata is None:
            yield rng.integers(0, n, (rows, n))
        else:
            yield order[start + (rng.random((rows, n)) * size).astype(np.int64)]


def interval(
    statistic: Callable[[np.ndarray], np.ndarray],
    n: int,
    resamples: int,
    seed: int,
    strata: np.ndarray | None = None,
) -> list[float]:
    """The bounds that leave 2.5 % of the resampled statistic out on either side: [low, high].

    statistic: from drawn places, int64 [r, n], to the metric of each draw, float [r].
    strata: as in `draws`. Raises ValueError for n or resamples below 1.
    """
    values = np.concatenate([statistic(drawn) for drawn in draws(n, resamples, seed, strata)])
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return [float(low), float(high)]


def measured(
    name: str,
    statistic: Callable[[np.ndarray], np.ndarray],
    n: int,
    options: Evaluation,
    strata: np.ndarray | None = None,
    **beside: float,
) -> dict[str, Any]:
    """A metric of n samples with its interval, and further numbers such as `chance`: {"R@1": 0.4, "R@1/interval":
    [0.3, 0.5], "R@1/chance": 0.01}. `statistic` as in `interval`; over all places once it gives the metric itself."""
    found: dict[str, Any] = {name: float(statistic(np.arange(n)[None])[0])}
    if options.resamples:
        found[f"{name}/interval"] = interval(statistic, n, options.resamples, options.seed, strata)
    return found | {f"{name}/{what}": value for what, value in beside.items()}


def mean(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The statistic of a metric that is the mean of values, float or bool [n]."""
    if values.dtype == bool:
        return lambda drawn: np.count_nonzero(values[drawn], axis=1) / drawn.shape[1]
    return lambda drawn: values[drawn].mean(1)


def ratio(sums: np.ndarray, sizes: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """The statistic of a mean over the members of units that are drawn whole: of each unit the sum and the number."""
    return lambda drawn: sums[drawn].sum(1) / sizes[drawn].sum(1)
