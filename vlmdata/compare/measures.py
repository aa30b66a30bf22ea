"""Recall with its uncertainty: over the seeds of training and over the pairs of the test.

Every hit of a query counts 0 or 1. `mean` is a pair's mean over recall at 1, 5 and 10 in both directions.
"""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from vlmdata.evaluate.retrieval import KS

DIRECTIONS = ("image_to_text", "text_to_image")
METRICS = ("mean", *(f"{direction}/R@{k}" for direction in DIRECTIONS for k in KS))
ROUNDS = 4000
METHOD = (
    "95 %: half the width is the root of the sum of two squares: that of Student's t interval over the seeds' means "
    f"(none with one seed), and half the width of the percentile bootstrap over the test's pairs ({ROUNDS} rounds, the "
    "hits averaged over seeds). A difference is taken pair by pair and seed by seed, then treated alike."
)


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval; seeds_half and pairs_half are the two half widths that it is made of."""

    value: float
    low: float
    high: float
    seeds_half: float
    pairs_half: float
    by_seed: list[float]


def hits(ranks: list[dict[str, list[float]]]) -> np.ndarray:
    """float64 [seeds, 7, pairs], in the order of METRICS. ranks: of a seed: direction -> the rank of each own item."""
    found = np.stack(
        [[np.less_equal(of[direction], k).astype(np.float64) for direction in DIRECTIONS for k in KS] for of in ranks]
    )
    return np.concatenate([found.mean(1, keepdims=True), found], 1)


def intervals(values: np.ndarray) -> list[Interval]:
    """An interval for each metric of float64 [seeds, metrics, pairs]; see METHOD."""
    from scipy.stats import t

    seeds = len(values)
    by_seed = values.mean(2)
    spread = by_seed.std(0, ddof=1) / np.sqrt(seeds) * t.ppf(0.975, seeds - 1) if seeds > 1 else by_seed[0] * 0
    low, high = np.percentile(_bootstrap(values.mean(0)), [2.5, 97.5], axis=1)
    found = []
    for place, mean in enumerate(by_seed.mean(0)):
        seeds_half, pairs_half = float(spread[place]), float(high[place] - low[place]) / 2
        half = float(np.hypot(seeds_half, pairs_half))
        every = [float(value) for value in by_seed[:, place]]
        found.append(Interval(float(mean), float(mean) - half, float(mean) + half, seeds_half, pairs_half, every))
    return found


def _bootstrap(rows: np.ndarray) -> np.ndarray:
    """float64 [m, ROUNDS]: the means of float64 [m, pairs] over pairs drawn with replacement, the same for all rows."""
    pairs = rows.shape[1]
    random = np.random.default_rng(0)
    means = [rows @ random.multinomial(pairs, np.full(pairs, 1 / pairs), 50).T / pairs for _ in range(ROUNDS // 50)]
    return np.concatenate(means, 1)


def compared(measured: dict[str, np.ndarray]) -> dict[str, Any]:
    """Every selection's metrics, and the last one against each other: by `mean`, and by all metrics.

    measured: selection -> `hits`. The last one is the selection in question.
    """
    metrics = {name: _named(intervals(values)) for name, values in measured.items()}
    *others, candidate = measured
    differences = {other: _named(intervals(measured[candidate] - measured[other])) for other in others}
    return {
        "metrics": metrics,
        "candidate": candidate,
        "best_other": max(others, key=lambda other: metrics[other]["mean"]["value"], default=None),
        "differences": differences,
        "better_than": [other for other in others if differences[other]["mean"]["low"] > 0],
        "method": METHOD,
    }


def _named(found: list[Interval]) -> dict[str, Any]:
    return {metric: asdict(interval) for metric, interval in zip(METRICS, found, strict=True)}


def table(result: dict[str, Any]) -> list[str]:
    """Lines of text: a selection a line, then what the last one is ahead of each other."""
    named = result["metrics"]
    width = max(len(name) for name in ["selection", *named])
    heads = [
        "mean recall",
        "",
        *(metric.replace("image_to_text", "i2t").replace("text_to_image", "t2i") for metric in METRICS[1:]),
    ]
    lines = [
        f"{'selection':<{width}}{'pairs':>9}" + f"{heads[0]:>13}{'95 %':>18}" + "".join(f"{h:>10}" for h in heads[2:])
    ]
    for name, found in named.items():
        mean = found["mean"]
        between = f"[{mean['low']:.3f}, {mean['high']:.3f}]"
        cells = "".join(f"{found[metric]['value']:>10.3f}" for metric in METRICS[1:])
        lines.append(
            f"{name:<{width}}{result['selections'][name]['pairs']:>9,}{mean['value']:>13.3f}{between:>18}{cells}"
        )
    for other, found in result["differences"].items():
        mean = found["mean"]
        said = "better" if mean["low"] > 0 else "worse" if mean["high"] < 0 else "no difference that can be told"
        lines.append(
            f"{result['candidate']} - {other}: {mean['value']:+.3f} [{mean['low']:+.3f}, {mean['high']:+.3f}]: {said}"
        )
    return lines
