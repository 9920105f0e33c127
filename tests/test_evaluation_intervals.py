"""Confidence intervals and the paired comparison, checked against their definitions."""

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfpo_verl.evaluation import compare_paired, confidence_intervals


def tail(ones: int, problems: int, share: float) -> float:
    """Return the probability of at least this many ones."""
    return sum(comb(problems, i) * share**i * (1 - share) ** (problems - i) for i in range(ones, problems + 1))


@given(problems=st.integers(1, 40), data=st.data())
def test_the_exact_interval_ends_where_the_data_become_unlikely(problems, data):
    ones = data.draw(st.integers(0, problems))
    [interval] = confidence_intervals(np.repeat([[1.0], [0.0]], [ones, problems - ones], axis=0))
    assert interval.kind == "exact"
    if ones:
        assert tail(ones, problems, interval.low) == pytest.approx(0.025, abs=1e-9)
    else:
        assert interval.low == 0
    if ones < problems:
        assert 1 - tail(ones + 1, problems, interval.high) == pytest.approx(0.025, abs=1e-9)
    else:
        assert interval.high == 1


def test_all_right_is_not_certainty():
    [interval] = confidence_intervals(np.ones((30, 1)))
    assert (interval.low, interval.high) == (pytest.approx(0.025 ** (1 / 30)), 1)


def test_the_bootstrap_holds_the_mean_as_often_as_it_says():
    """About 95 percent of the intervals of 300 samples of 100 problems contain the true mean, 1/3."""
    rng = np.random.default_rng(0)
    held = 0
    for seed in range(300):
        [interval] = confidence_intervals(rng.beta(1, 2, size=(100, 1)), resamples=500, seed=seed)
        assert interval.kind == "bootstrap"
        held += interval.low < 1 / 3 < interval.high
    assert 0.91 < held / 300 < 0.98


def test_the_bootstrap_is_as_wide_as_the_normal_distribution():
    values = np.random.default_rng(3).normal(size=(1000, 1))
    [interval] = confidence_intervals(values, resamples=4000)
    error = values.std() / np.sqrt(1000)
    assert interval.low == pytest.approx(values.mean() - 1.96 * error, abs=0.1 * error)
    assert interval.high == pytest.approx(values.mean() + 1.96 * error, abs=0.1 * error)


def test_measures_share_the_draws_and_drawing_in_parts_changes_nothing(monkeypatch):
    values = np.random.default_rng(1).random((50, 1))
    table = np.hstack([values, 2 * values, np.ones((50, 1))])
    once = confidence_intervals(table, resamples=100)
    assert once[1].low == pytest.approx(2 * once[0].low)
    assert [interval.kind for interval in once] == ["bootstrap", "bootstrap", "exact"]
    monkeypatch.setattr("cfpo_verl.evaluation.intervals._DRAWN_AT_ONCE", 1000)
    assert confidence_intervals(table, resamples=100) == once


@pytest.mark.parametrize("values", [np.ones(3), np.empty((0, 2)), [[np.nan]]], ids=["flat", "empty", "nan"])
def test_what_has_no_mean_is_refused(values):
    with pytest.raises(ValueError, match="values must be finite numbers of at least one problem"):
        confidence_intervals(values)


def test_a_comparison_worked_by_hand():
    paired = compare_paired([0.5, 0.0, 0.25, 1.0, 0.5], [0.75, 0.5, 0.5, 1.0, 0.25])
    assert (paired.better, paired.worse, paired.equal) == (3, 1, 1)
    assert paired.difference == pytest.approx(0.15)
    # Three or more of four, or one or fewer: (4 + 1 + 4 + 1) / 16.
    assert paired.p_value == pytest.approx(10 / 16)
    assert paired.low < 0.15 < paired.high


@given(better=st.integers(0, 30), worse=st.integers(0, 30))
def test_the_sign_test_is_two_sided_and_exact(better, worse):
    second = np.array([1.0] * better + [-1.0] * worse + [0.0] * 3)
    p_value = compare_paired(np.zeros(len(second)), second, resamples=10).p_value
    n = better + worse
    at_least = sum(comb(n, i) for i in range(max(better, worse), n + 1)) / 2**n
    assert p_value == pytest.approx(min(1, 2 * at_least) if n else 1)


def test_pairing_takes_out_what_problems_have_in_common():
    """Easy to hard problems, and a second model that is slightly better on nearly all of them."""
    rng = np.random.default_rng(0)
    first = rng.random(60) * 0.8
    second = first + 0.05 + 0.02 * rng.normal(size=60)
    paired = compare_paired(first, second)
    assert 0.03 < paired.low < paired.difference < paired.high < 0.07
    one, other = confidence_intervals(np.stack([first, second], axis=1))
    assert other.low < one.high  # unpaired, the intervals overlap
    assert paired.p_value < 1e-6


def test_the_interval_of_a_difference_is_as_wide_as_the_normal_distribution():
    second = np.random.default_rng(4).normal(size=1000)
    paired = compare_paired(np.zeros(1000), second, resamples=4000)
    error = second.std() / np.sqrt(1000)
    assert paired.low == pytest.approx(second.mean() - 1.96 * error, abs=0.1 * error)
    assert paired.high == pytest.approx(second.mean() + 1.96 * error, abs=0.1 * error)


def test_the_same_estimate_in_another_order_is_equal():
    paired = compare_paired([0.1 + 0.2], [0.3])
    assert (paired.better, paired.worse, paired.equal, paired.p_value) == (0, 0, 1, 1.0)


def test_other_problems_cannot_be_compared():
    with pytest.raises(ValueError, match="one value for each problem of both models"):
        compare_paired([0.5, 1.0], [0.5])
    with pytest.raises(ValueError, match="finite"):
        compare_paired([np.nan], [0.5])
