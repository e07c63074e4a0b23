"""A scaling law is fitted where the points determine it, and refused in words where not."""

import numpy as np
import pytest
from scipy.optimize import curve_fit

from llm.report.measure import LOSSES
from llm.report.points import Point
from llm.report.scaling import Scaling, as_plain, fit, of_points

LOSS = LOSSES["best"]
E, A, ALPHA = 1.2, 20.0, 0.3


def points(sizes: list[float], losses: list[float], sd: float | None = None) -> list[Point]:
    n = 1 if sd is None else 3
    return [
        Point(number, "", {}, [], [], n, loss, sd, parameters=size)
        for number, (size, loss) in enumerate(zip(sizes, losses, strict=True))
    ]


def law(sizes: list[float], noise: float = 0.0, seed: int = 0) -> list[float]:
    draws = np.random.default_rng(seed).normal(0, noise, len(sizes))
    return (E + A * np.array(sizes) ** -ALPHA + draws).tolist()


SIZES = np.geomspace(1e5, 1e7, 6).tolist()


def test_an_exact_law_is_found() -> None:
    found = of_points(points(SIZES, law(SIZES)), LOSS)
    assert isinstance(found, Scaling)
    assert (found.e, found.a, found.alpha) == pytest.approx((E, A, ALPHA), rel=1e-4)
    assert found.sentence.startswith(
        "Best validation loss = 1.200 + 20 N^-0.300 over 6 sizes from 100k to 10M parameters N"
    )


def test_the_fit_is_that_of_scipys_curve_fit() -> None:
    losses = law(SIZES, 0.003)
    relative = np.array(SIZES) / 1e6
    expected, _ = curve_fit(
        lambda n, e, a, alpha: e + a * n**-alpha, relative, losses, p0=(1.0, 0.3, 0.3)
    )
    assert fit(relative, np.array(losses)) == pytest.approx(expected, rel=1e-4)


def test_the_interval_contains_the_true_exponent_nearly_always() -> None:
    inside, known = 0, 0
    for seed in range(40):
        found = of_points(points(SIZES, law(SIZES, 0.003, seed), 0.003 * 3**0.5), LOSS)
        if isinstance(found, Scaling):
            known += 1
            inside += found.low["alpha"] <= ALPHA <= found.high["alpha"]
    assert known >= 35 and inside >= 0.85 * known


def test_per_size_the_best_point_counts() -> None:
    losses = law(SIZES)
    worse = [loss + 0.5 for loss in losses]
    found = of_points(points(SIZES, losses) + points(SIZES, worse), LOSS)
    assert isinstance(found, Scaling)
    assert found.points == list(zip(SIZES, losses, strict=True))


@pytest.mark.parametrize(
    "sizes, losses, reason",
    [
        ([1e5, 1e6, 1e7], [3.0, 2.0, 1.5], "a scaling law needs 4 sizes, and these points have 3"),
        ([1e6, 1.1e6, 1.2e6, 1.3e6], [2.0, 1.9, 1.8, 1.7], "only 1.3 times the smallest"),
        ([1e5, 3e5, 1e6, 3e6], [1.5, 1.6, 1.7, 1.8], "does not fall with the number"),
        (SIZES, law(SIZES, 0.3, 1), "do not determine the floor E"),
    ],
)  # fmt: skip
def test_where_the_points_allow_no_law_the_report_says_why(
    sizes: list[float], losses: list[float], reason: str
) -> None:
    found = of_points(points(sizes, losses), LOSS)
    assert isinstance(found, str) and reason in found
    assert as_plain(found) == {"why_not": found}


def test_points_of_one_size_need_no_reason() -> None:
    assert of_points(points([1e6, 1e6], [1.5, 1.6]), LOSS) is None
    assert of_points([], LOSS) is None and as_plain(None) is None


def test_ten_thousand_sizes_are_fitted() -> None:
    sizes = np.geomspace(1e5, 1e8, 10_000).tolist()
    found = of_points(points(sizes, law(sizes, 0.01)), LOSS)
    assert isinstance(found, Scaling) and found.alpha == pytest.approx(ALPHA, abs=0.02)
