"""Are the means of several groups of numbers different? Arrays in, arrays out; needs scipy.

A sweep has many groups of few seeds, so the variance is pooled over them (as in a one-way analysis
of variance). A group whose variance is far above the others is compared by Welch's test instead.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
LEVEL = 0.05  # of all comparisons together
POWER = 0.8
MANY = 10  # from here on a group's own variance is good enough
NOISY = 0.05  # level of the F test that takes a group out of the pool
MOST_PAIRS_OF = 300  # groups; above, Bonferroni's correction replaces Holm's
MOST_SEEDS = 100
ROUNDING = 8 * float(np.finfo(float).eps)  # relative error of a mean


@dataclass(frozen=True)
class Groups:
    """Sizes, means and variances of k groups, and the variance that they share.

    ``variances`` (k,) are NaN for groups of one number. ``is_pooled`` (k,): the groups that use the
    shared variance ``pooled`` with ``df`` degrees of freedom; 0 if no group has two numbers.
    """

    sizes: NDArray[np.int64]
    means: Floats
    variances: Floats
    is_pooled: NDArray[np.bool_]
    pooled: float
    df: int

    @property
    def has_noise(self) -> bool:
        """Whether any two groups can be compared."""
        return bool((self.sizes > 1).any())


@dataclass(frozen=True)
class Pairs:
    """Tests of pairs (a, b) of groups. ``differences`` (p,) are mean a - mean b.

    ``levels`` (p,): of the confidence interval [low, high], chosen so that it contains 0 exactly
    if the difference is not shown.
    """

    a: NDArray[np.int64]
    b: NDArray[np.int64]
    differences: Floats
    errors: Floats  # standard errors
    df: Floats
    p: Floats
    adjusted: Floats
    levels: Floats
    low: Floats
    high: Floats

    @property
    def is_shown(self) -> NDArray[np.bool_]:
        """(p,): the differences that are real at :data:`LEVEL`, after the correction."""
        return self.adjusted <= LEVEL


def summarise(groups: Sequence[Sequence[float]]) -> Groups:
    """Mean and variance of each group, and the variance pooled over the groups."""
    sizes = np.array([len(group) for group in groups], np.int64)
    owner = np.repeat(np.arange(len(sizes)), sizes)
    values = np.array([value for group in groups for value in group], float)
    means = _sums(owner, values, len(sizes)) / sizes
    squares = _sums(owner, (values - means[owner]) ** 2, len(sizes))
    # Equal numbers may differ from their mean by a rounding error.
    squares[squares <= sizes * (ROUNDING * means) ** 2] = 0.0
    freedom = sizes - 1
    variances = np.full(len(sizes), np.nan)
    np.divide(squares, freedom, out=variances, where=freedom > 0)
    if len(sizes) and sizes.min() >= MANY:
        is_pooled = np.zeros(len(sizes), bool)
    else:
        is_pooled = ~noisy(squares, freedom)
    df = int(freedom[is_pooled].sum())
    pooled = float(squares[is_pooled].sum() / df) if df else float("nan")
    return Groups(sizes, means, variances, is_pooled, pooled, df)


def _sums(owner: NDArray[np.int64], values: Floats, count: int) -> Floats:
    """The sum (count,) of the values of each owner."""
    return np.asarray(np.bincount(owner, values, count), np.float64)


def noisy(squares: Floats, freedom: NDArray[np.int64]) -> NDArray[np.bool_]:
    """(k,): groups whose variance is far above the variance of the other groups (F test).

    ``squares`` (k,): sums of squared differences from the mean. The level is divided by k.
    """
    from scipy.special import fdtrc

    found = np.zeros(len(squares), bool)
    while True:
        rest = np.where(found, 0, freedom).sum() - freedom
        others = np.where(found, 0.0, squares).sum() - squares
        tested = ~found & (freedom > 0) & (rest > 0)
        if not tested.any():
            return found
        ratio = np.full(len(squares), 0.0)
        with np.errstate(divide="ignore", invalid="ignore"):
            own, other = squares / freedom, np.maximum(others, 0.0) / rest
            np.divide(own, other, out=ratio, where=tested & (own > 0))
        p = np.where(tested, fdtrc(np.maximum(freedom, 1), np.maximum(rest, 1), ratio), 1.0)
        more = p < NOISY / len(squares)
        if not more.any():
            return found
        found |= more


def compare(groups: Groups, a: Any, b: Any, tests: int | None = None) -> Pairs:
    """Two-sided t tests of the pairs (a, b), corrected for all of them by Holm's method.

    ``tests``: how many tests Bonferroni's correction counts, instead of Holm's.
    """
    from scipy.special import stdtr, stdtrit

    a, b = np.asarray(a, np.int64), np.asarray(b, np.int64)
    differences = groups.means[a] - groups.means[b]
    differences[np.abs(differences) <= ROUNDING * np.abs(groups.means[a])] = 0.0
    errors, df = standard_errors(groups, a, b)
    with np.errstate(divide="ignore", invalid="ignore"):
        t = np.where(differences == 0, 0.0, np.abs(differences) / errors)
    p = 2 * stdtr(df, -t)
    if tests is None:
        adjusted, levels = holm(p)
    else:
        adjusted, levels = np.minimum(1.0, tests * p), np.full(len(p), LEVEL / tests)
    half = stdtrit(df, 1 - levels / 2) * errors
    low, high = differences - half, differences + half
    return Pairs(a, b, differences, errors, df, p, adjusted, levels, low, high)


def standard_errors(groups: Groups, a: Any, b: Any) -> tuple[Floats, Floats]:
    """Standard error and degrees of freedom of mean a - mean b, for pairs of groups.

    Both groups use the shared variance, or else each its own (Welch-Satterthwaite); a group of one
    number has only the shared variance.
    """
    own_df = np.where(groups.sizes > 1, groups.sizes - 1, groups.df)
    own = np.where(groups.sizes > 1, groups.variances, groups.pooled) / groups.sizes
    with np.errstate(divide="ignore", invalid="ignore"):
        total = own[a] + own[b]
        welch_df = total**2 / (own[a] ** 2 / own_df[a] + own[b] ** 2 / own_df[b])
    # Without any variance the quotient is 0/0, and any number of degrees will do.
    welch_df = np.where(total == 0, own_df[a] + own_df[b], welch_df)
    both = groups.is_pooled[a] & groups.is_pooled[b]
    shared = groups.pooled * (1 / groups.sizes[a] + 1 / groups.sizes[b])
    return np.sqrt(np.where(both, shared, total)), np.where(both, float(groups.df), welch_df)


def holm(p: Floats) -> tuple[Floats, Floats]:
    """p values adjusted by Holm's method (1979), and the level at which each test was made.

    The method stops at the first test that shows nothing, so all later ones get its level.
    """
    count, order = len(p), np.argsort(p, kind="stable")
    factors = np.arange(count, 0, -1)
    stepped = np.minimum(1.0, np.maximum.accumulate(factors * p[order]))
    shown = int((stepped <= LEVEL).sum())
    used = np.maximum(factors, count - shown)
    adjusted, levels = np.empty(count), np.empty(count)
    adjusted[order], levels[order] = stepped, LEVEL / used
    return adjusted, levels


def against_best(groups: Groups, best: int) -> Pairs:
    """Every group against group ``best``.

    The best is chosen by the same numbers, so the correction is for all pairs of groups.
    """
    count = len(groups.means)
    others = np.flatnonzero(np.arange(count) != best)
    if count > MOST_PAIRS_OF:
        return compare(groups, others, np.full(count - 1, best), count * (count - 1) // 2)
    first, second = np.triu_indices(count, 1)
    # Each pair with the best has the best second.
    first, second = np.where(first == best, second, first), np.where(first == best, best, second)
    pairs = compare(groups, first, second)
    mine = np.flatnonzero(second == best)
    mine = mine[np.argsort(first[mine])]
    return Pairs(**{name: value[mine] for name, value in vars(pairs).items()})


def more_seeds(groups: Groups, pairs: Pairs) -> list[int | None]:
    """How many more numbers per group would show each difference with 80 % power.

    0 if it is shown already; None if more than 100, or if there is no difference.
    The difference and the variances are taken as they were measured.
    """
    low = np.zeros(len(pairs.p), np.int64)  # not enough
    high = np.full(len(pairs.p), MOST_SEEDS)
    if not len(pairs.p):
        return []
    possible = _power(groups, pairs, high) >= POWER
    while (high - low > 1).any():
        middle = (low + high) // 2
        enough = _power(groups, pairs, middle) >= POWER
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    found = zip(pairs.is_shown, possible, high, strict=True)
    return [0 if shown else int(n) if enough else None for shown, enough, n in found]


def _power(groups: Groups, pairs: Pairs, more: NDArray[np.int64]) -> Floats:
    """The chance (p,) to show each difference with ``more`` (p,) numbers in each group."""
    from scipy.special import nctdtr, stdtrit

    a, b = pairs.a, pairs.b
    pooled_groups = int(groups.is_pooled.sum())
    shared_df = groups.df + more * pooled_groups
    variances = np.where(groups.sizes > 1, groups.variances, groups.pooled)
    own_a, own_b = variances[a] / (groups.sizes[a] + more), variances[b] / (groups.sizes[b] + more)
    total = own_a + own_b
    freedom_a, freedom_b = groups.sizes[a] + more - 1, groups.sizes[b] + more - 1
    with np.errstate(divide="ignore", invalid="ignore"):
        welch_df = total**2 / (own_a**2 / freedom_a + own_b**2 / freedom_b)
        both = groups.is_pooled[a] & groups.is_pooled[b]
        shared = groups.pooled * (1 / (groups.sizes[a] + more) + 1 / (groups.sizes[b] + more))
        df = np.where(both, shared_df, welch_df)
        centre = np.abs(pairs.differences) / np.sqrt(np.where(both, shared, total))
    critical = stdtrit(df, 1 - pairs.levels / 2)
    power: Floats = 1 - nctdtr(df, centre, critical)
    # scipy has no value far in the tails, where the answer is clear
    known: Floats = np.where(np.isfinite(power), power, centre > critical)
    return known


def intervals(groups: Groups) -> tuple[Floats, Floats]:
    """95 % interval (k,) of each group's mean; NaN where no variance is known."""
    from scipy.special import stdtrit

    df = np.where(groups.is_pooled, groups.df, groups.sizes - 1)
    variance = np.where(groups.is_pooled, groups.pooled, groups.variances)
    half = np.full(len(df), np.nan)
    known = df > 0
    half[known] = stdtrit(df[known], 1 - LEVEL / 2) * np.sqrt((variance / groups.sizes)[known])
    return groups.means - half, groups.means + half


def spearman(x: Sequence[float], y: Sequence[float]) -> float | None:
    """Spearman's rank correlation; None if it is not defined."""
    a, b = _ranks(x), _ranks(y)
    if len(a) < 3 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: Sequence[float]) -> Floats:
    """Ranks from 1; equal values get the mean of their ranks."""
    _, inverse, counts = np.unique(np.asarray(values), return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: Floats = (last - (counts - 1) / 2)[inverse]
    return ranks
