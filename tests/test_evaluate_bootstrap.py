"""Intervals that hold the true value about as often as they say, and are a function of the seed."""

import numpy as np
import pytest

from vlmdata.evaluate import bootstrap
from vlmdata.recipe import Evaluation


def coverage(statistic, draw, truth: float, trials: int = 400) -> float:
    held = 0
    for trial in range(trials):
        rng = np.random.default_rng([7, trial])
        values = draw(rng)
        low, high = bootstrap.interval(statistic(values), len(values), 400, trial)
        held += low <= truth <= high
    return held / trials


def test_about_95_of_100_intervals_hold_the_true_share() -> None:
    found = coverage(bootstrap.mean, lambda rng: rng.random(120) < 0.4, 0.4)
    assert 0.92 <= found <= 0.98


def test_about_95_of_100_intervals_hold_the_true_mean() -> None:
    found = coverage(bootstrap.mean, lambda rng: rng.exponential(2.0, 150), 2.0)
    assert 0.90 <= found <= 0.98


def test_units_drawn_whole_give_the_interval_that_their_likeness_asks_for() -> None:
    """Five queries of an image that all hit or all miss tell no more than one."""

    def whole(values: np.ndarray):
        return bootstrap.ratio(values * 5, np.full(len(values), 5))

    assert 0.92 <= coverage(whole, lambda rng: rng.random(100) < 0.4, 0.4) <= 0.98
    hits = np.random.default_rng(0).random(100) < 0.4
    narrow = bootstrap.interval(bootstrap.mean(np.repeat(hits, 5)), 500, 1000, 0)
    wide = bootstrap.interval(whole(hits), 100, 1000, 0)
    assert wide[1] - wide[0] > 1.8 * (narrow[1] - narrow[0])


def test_the_interval_is_a_function_of_the_seed_and_not_of_the_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    statistic = bootstrap.mean(np.random.default_rng(1).random(50))
    one = bootstrap.interval(statistic, 50, 200, 3)
    assert one == bootstrap.interval(statistic, 50, 200, 3)
    assert one != bootstrap.interval(statistic, 50, 200, 4)
    monkeypatch.setattr(bootstrap, "_AT_ONCE", 50 * 7)
    assert one == bootstrap.interval(statistic, 50, 200, 3)


def test_every_stratum_is_drawn_as_often_as_it_has_members_from_itself_alone() -> None:
    strata = np.array([2, 0, 2, 1, 2, 0])
    drawn = np.concatenate(list(bootstrap.draws(6, 300, 0, strata)))
    assert drawn.shape == (300, 6)
    assert all((np.sort(strata[row]) == [0, 0, 1, 2, 2, 2]).all() for row in drawn)
    assert set(drawn.ravel()) == set(range(6))
    assert len({tuple(row) for row in drawn}) > 30


def test_no_resamples_give_no_interval() -> None:
    values = np.array([0.0, 1.0, 1.0, 0.0])
    assert bootstrap.measured("R@1", bootstrap.mean(values), 4, Evaluation(resamples=0), chance=0.25) == {
        "R@1": 0.5,
        "R@1/chance": 0.25,
    }
    found = bootstrap.measured("R@1", bootstrap.mean(values), 4, Evaluation(resamples=100))
    assert 0 <= found["R@1/interval"][0] < 0.5 < found["R@1/interval"][1] <= 1
