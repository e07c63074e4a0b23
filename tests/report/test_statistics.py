"""The statistics of a report equal scipy's, and cover what scipy has no function for."""

import math
from collections.abc import Sequence
from itertools import combinations

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.report.statistics import (
    LEVEL,
    MOST_SEEDS,
    POWER,
    Pairs,
    against_best,
    compare,
    holm,
    intervals,
    more_seeds,
    spearman,
    summarise,
)

EXACT = 1e-9
losses = st.floats(1, 4, allow_nan=False).map(lambda loss: round(loss, 6))
sweeps = st.lists(st.lists(losses, min_size=1, max_size=4), min_size=2, max_size=6)


def drawn(seed: int, *groups: tuple[float, float, int]) -> list[list[float]]:
    """Groups of numbers from their (mean, sd, n)."""
    random = np.random.default_rng(seed)
    return [random.normal(mean, sd, n).tolist() for mean, sd, n in groups]


def pair(one: Sequence[float], other: Sequence[float]) -> Pairs:
    return compare(summarise([one, other]), [0], [1])


@pytest.mark.parametrize("sizes", [(2, 2), (3, 5), (2, 9)])
def test_two_small_groups_are_compared_as_scipy_does_with_equal_variances(
    sizes: tuple[int, int],
) -> None:
    for seed in range(20):
        one, other = drawn(seed, (1.6, 0.01, sizes[0]), (1.61, 0.01, sizes[1]))
        result = scipy.stats.ttest_ind(one, other, equal_var=True)
        interval = result.confidence_interval(1 - LEVEL)
        ours = pair(one, other)
        if not summarise([one, other]).is_pooled.all():
            continue
        assert ours.p[0] == pytest.approx(result.pvalue, rel=EXACT)
        assert ours.df[0] == result.df
        assert (ours.low[0], ours.high[0]) == pytest.approx(tuple(interval), rel=EXACT)


@pytest.mark.parametrize("spread", [0.01, 0.3])
def test_two_large_groups_are_compared_as_scipy_does_by_welch(spread: float) -> None:
    for seed in range(20):
        one, other = drawn(seed, (1.6, 0.01, 10), (1.61, spread, 14))
        result = scipy.stats.ttest_ind(one, other, equal_var=False)
        interval = result.confidence_interval(1 - LEVEL)
        ours = pair(one, other)
        assert ours.p[0] == pytest.approx(result.pvalue, rel=EXACT)
        assert ours.df[0] == pytest.approx(result.df, rel=EXACT)
        assert (ours.low[0], ours.high[0]) == pytest.approx(tuple(interval), rel=EXACT)


def test_a_variance_is_pooled_over_all_groups() -> None:
    groups = drawn(1, (1.6, 0.01, 3), (1.7, 0.01, 4), (1.8, 0.01, 2))
    summary = summarise(groups)
    squares = sum(np.var(group, ddof=1) * (len(group) - 1) for group in groups)
    assert summary.df == 6
    assert summary.pooled == pytest.approx(squares / 6, rel=EXACT)
    error = math.sqrt(squares / 6 * (1 / 3 + 1 / 4))
    t = abs(np.mean(groups[0]) - np.mean(groups[1])) / error
    pairs = compare(summary, [0], [1])
    assert pairs.p[0] == pytest.approx(2 * scipy.stats.t.sf(t, 6), rel=EXACT)


def test_the_interval_of_a_mean_is_that_of_an_analysis_of_variance() -> None:
    groups = drawn(2, (1.6, 0.01, 3), (1.7, 0.01, 4), (1.8, 0.01, 1))
    summary = summarise(groups)
    low, high = intervals(summary)
    for number, group in enumerate(groups):
        scale = math.sqrt(summary.pooled / len(group))
        expected = scipy.stats.t.interval(0.95, summary.df, np.mean(group), scale)
        assert (low[number], high[number]) == pytest.approx(expected, rel=EXACT)


def test_one_seed_beside_several_uses_their_variance() -> None:
    summary = summarise([[1.6], [1.7, 1.71, 1.72]])
    pairs = compare(summary, [0], [1])
    t = (1.71 - 1.6) / math.sqrt(0.01**2 * (1 + 1 / 3))
    assert pairs.p[0] == pytest.approx(2 * scipy.stats.t.sf(t, 2), rel=EXACT)


def test_one_seed_everywhere_has_no_noise() -> None:
    summary = summarise([[1.6], [1.7]])
    assert not summary.has_noise
    assert np.isnan(intervals(summary)).all()


def test_a_group_with_a_far_larger_spread_stays_out_of_the_pool() -> None:
    groups = drawn(3, (1.6, 0.01, 3), (1.6, 0.01, 3), (1.65, 0.01, 3), (2.5, 0.5, 3))
    summary = summarise(groups)
    assert summary.is_pooled.tolist() == [True, True, True, False]
    assert summary.df == 6
    welch = scipy.stats.ttest_ind(groups[3], groups[0], equal_var=False)
    pairs = compare(summary, [3, 2], [0, 0])
    assert pairs.p[0] == pytest.approx(welch.pvalue, rel=EXACT)
    assert pairs.df[1] == 6


def test_equal_numbers_are_not_different() -> None:
    pairs = pair([1.6, 1.6, 1.6], [1.6, 1.6])
    assert pairs.p[0] == 1 and not pairs.is_shown[0]
    assert pair([0.1 + 0.2] * 3, [0.3] * 3).p[0] == 1  # differ by a rounding error
    assert pair([1.6, 1.6], [1.7, 1.7]).p[0] == 0  # the seed changes nothing, the settings do


def test_holm_is_the_step_down_method_of_its_definition() -> None:
    random = np.random.default_rng(4)
    for _ in range(50):
        p = random.uniform(0, 0.1, random.integers(1, 8))
        shown = set()
        for step, index in enumerate(np.argsort(p)):
            if p[index] * (len(p) - step) > LEVEL:
                break
            shown.add(index)
        adjusted, levels = holm(p)
        assert set(np.flatnonzero(adjusted <= LEVEL)) == shown
        assert (levels <= LEVEL + 1e-15).all() and (levels >= LEVEL / len(p) - 1e-15).all()


def test_holm_adjusts_p_values_as_r_does() -> None:
    adjusted, _ = holm(np.array([0.01, 0.04, 0.03, 0.005]))
    assert adjusted == pytest.approx([0.03, 0.06, 0.06, 0.02])  # R: p.adjust(p, "holm")


def test_every_point_is_compared_with_the_best_but_all_pairs_are_counted() -> None:
    groups = drawn(5, (1.6, 0.01, 3), (1.61, 0.01, 3), (1.63, 0.01, 3), (1.65, 0.01, 3))
    summary = summarise(groups)
    best = int(np.argmin(summary.means))
    everything = compare(summary, *zip(*combinations(range(4), 2), strict=True))
    expected = {
        frozenset((a, b)): p
        for a, b, p in zip(everything.a, everything.b, everything.adjusted, strict=True)
    }
    pairs = against_best(summary, best)
    assert pairs.a.tolist() == [number for number in range(4) if number != best]
    for a, adjusted in zip(pairs.a, pairs.adjusted, strict=True):
        assert adjusted == pytest.approx(expected[frozenset((a, best))], rel=EXACT)


def test_very_many_points_are_corrected_by_bonferroni() -> None:
    groups = drawn(6, *[(1.6, 0.01, 2)] * 301)
    summary = summarise(groups)
    pairs = against_best(summary, int(np.argmin(summary.means)))
    assert pairs.adjusted == pytest.approx(np.minimum(1, pairs.p * 301 * 300 / 2))


def simulated_power(n: int, difference: float) -> float:
    """The share of 4,000 pairs of groups of n numbers whose difference scipy calls real."""
    random = np.random.default_rng(7)
    one, other = random.normal(0, 1, (2, 4000, n))
    return float((scipy.stats.ttest_ind(one, other + difference, axis=1).pvalue <= LEVEL).mean())


def test_the_seeds_that_would_show_a_difference_give_a_power_of_80_percent() -> None:
    a = [1.0, 2.0, 3.0]  # sd 1
    b = [2.2, 3.2, 4.2]  # 1.2 standard deviations above
    summary = summarise([a, b])
    pairs = compare(summary, [1], [0])
    assert not pairs.is_shown[0]
    (more,) = more_seeds(summary, pairs)
    assert more is not None
    assert simulated_power(3 + more, 1.2) > POWER - 0.03
    assert simulated_power(3 + more - 2, 1.2) < POWER + 0.01


def test_no_number_of_seeds_is_given_for_a_tiny_difference_or_one_that_is_shown() -> None:
    groups = summarise([[1.0, 1.1, 1.2], [1.001, 1.1, 1.2], [3.0, 3.1, 3.2]])
    assert more_seeds(groups, against_best(groups, 0)) == [None, 0]
    same = summarise([[1.0, 1.1], [1.0, 1.1]])
    assert more_seeds(same, compare(same, [1], [0])) == [None]


@given(sweeps, st.randoms())
@settings(max_examples=100, deadline=None)
def test_the_order_of_numbers_and_groups_changes_nothing(groups: list[list[float]], random) -> None:  # type: ignore[no-untyped-def]
    order = list(range(len(groups)))
    random.shuffle(order)
    shuffled = [random.sample(groups[number], len(groups[number])) for number in order]
    one, other = summarise(groups), summarise(shuffled)
    assert other.is_pooled.tolist() == one.is_pooled[order].tolist()
    if one.has_noise:
        a, b = (
            compare(one, order[:-1], order[1:]),
            compare(other, range(len(order) - 1), range(1, len(order))),
        )
        assert b.p == pytest.approx(a.p, rel=1e-6, abs=1e-9)


@given(sweeps)
@settings(max_examples=100, deadline=None)
def test_an_interval_contains_zero_exactly_if_the_difference_is_not_shown(
    groups: list[list[float]],
) -> None:
    summary = summarise(groups)
    if not summary.has_noise:
        return
    pairs = against_best(summary, int(np.argmin(summary.means)))
    outside = (pairs.low > 0) | (pairs.high < 0)
    clear = np.abs(pairs.adjusted - LEVEL) > 1e-9
    assert (outside == pairs.is_shown)[clear & (pairs.errors > 0)].all()
    for more in more_seeds(summary, pairs):
        assert more is None or 0 <= more <= MOST_SEEDS


@given(st.lists(st.tuples(st.integers(0, 6), losses), min_size=5, max_size=20))
@settings(max_examples=100, deadline=None)
def test_the_rank_correlation_is_scipys(values: list[tuple[int, float]]) -> None:
    x, y = zip(*values, strict=True)
    if len(set(x)) == 1 or len(set(y)) == 1:
        assert spearman(x, y) is None
        return
    expected = scipy.stats.spearmanr(x, y).statistic
    assert spearman(x, y) == pytest.approx(expected, rel=EXACT, abs=EXACT)


def test_two_points_have_no_rank_correlation() -> None:
    assert spearman([1, 2], [5, 6]) is None
