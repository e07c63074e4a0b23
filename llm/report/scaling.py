"""A scaling law L = E + A N^-alpha of the loss in the number of parameters.

The form is Kaplan et al.'s (2020) with the floor E of Hoffmann et al. (2022). Per size the best
point counts, and all sizes have the same weight.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from llm.report.measure import Measure
from llm.report.points import Point
from llm.sealed import Plain
from llm.units import format_count

FEWEST_SIZES = 4  # one more than the law has numbers
LEAST_SPAN = 4  # the largest size / the smallest
ALPHAS = np.geomspace(0.01, 3, 400)  # exponents to try
VAGUE = 0.5  # width of the interval of E, relative to the lowest loss
DRAWS, MOST_NUMBERS = 1000, 10**6  # of the bootstrap, fewer draws for very many sizes
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scaling:
    """The fitted law; ``low`` and ``high``: the 95 % interval of each of its numbers."""

    a: float
    e: float
    alpha: float
    low: dict[str, float]
    high: dict[str, float]
    points: list[tuple[float, float]]
    sentence: str


def of_points(points: Sequence[Point], measure: Measure) -> Scaling | str | None:
    """The law, or why the points do not allow one; None if they do not differ in size."""
    chosen: dict[float, Point] = {}
    for point in points:
        size = point.parameters
        if size and (size not in chosen or point.mean < chosen[size].mean):
            chosen[size] = point
    sizes = np.array(sorted(chosen))
    best = [chosen[size] for size in sizes]
    losses = np.array([point.mean for point in best])
    if len(sizes) < 2:
        return None
    if len(sizes) < FEWEST_SIZES:
        return f"a scaling law needs {FEWEST_SIZES} sizes, and these points have {len(sizes)}"
    span = sizes[-1] / sizes[0]
    if span < LEAST_SPAN:
        return f"the largest size is only {span:.2g} times the smallest; {LEAST_SPAN} are needed"
    if np.polyfit(np.log(sizes), losses, 1)[0] >= 0:
        return "the loss does not fall with the number of parameters"
    return _law(sizes, losses, _errors(best), measure)


def _errors(points: Sequence[Point]) -> tuple[float, int]:
    """The squared standard error of a mean by the spread of the seeds, and its freedom."""
    repeated = [point for point in points if point.sd is not None]
    df = sum(point.n - 1 for point in repeated)
    squares = sum((point.n - 1) * (point.sd or 0.0) ** 2 for point in repeated)
    n = np.mean([point.n for point in points])
    return (float(squares / df / n), df) if df else (0.0, 0)


def _law(
    sizes: Floats, losses: Floats, seeds: tuple[float, int], measure: Measure
) -> Scaling | str:
    centre = float(np.exp(np.log(sizes).mean()))
    relative = sizes / centre
    e, b, alpha = fit(relative, losses)
    fitted = e + b * relative**-alpha
    # The noise of a mean: from the seeds or from the misfit, whichever is larger
    freedom = len(sizes) - 3
    misfit = float(((losses - fitted) ** 2).sum() / freedom)
    square, df = max((misfit, freedom), seeds)
    draws = min(DRAWS, max(200, MOST_NUMBERS // len(sizes)))
    noise = np.random.default_rng(0).standard_t(df, (draws, len(sizes)))
    drawn = fit_many(relative, fitted + np.sqrt(square) * noise)
    lows, highs = np.quantile(drawn, [0.025, 0.975], axis=1)
    count = f"{len(sizes)} sizes from {format_count(sizes[0])} to {format_count(sizes[-1])}"
    is_vague = lows[0] <= 0 or highs[0] - lows[0] > VAGUE * losses.min()
    if is_vague or lows[2] <= ALPHAS[1] or highs[2] >= ALPHAS[-2]:
        slope = -np.polyfit(np.log(sizes), np.log(losses), 1)[0]
        return (
            f"the {count} parameters do not determine the floor E (95 % interval {lows[0]:.2f} to "
            f"{highs[0]:.2f}); between them the loss falls about as N^-{slope:.3f}"
        )
    amounts = drawn[1] * centre ** drawn[2]
    low_a, high_a = np.quantile(amounts, [0.025, 0.975])
    law = Scaling(
        a=float(b * centre**alpha), e=e, alpha=alpha,
        low={"a": float(low_a), "e": float(lows[0]), "alpha": float(lows[2])},
        high={"a": float(high_a), "e": float(highs[0]), "alpha": float(highs[2])},
        points=list(zip(sizes.tolist(), losses.tolist(), strict=True)),
        sentence=(
            f"{measure.name[0].upper()}{measure.name[1:]} = {e:.3f} + {b * centre**alpha:.3g} "
            f"N^-{alpha:.3f} over {count} parameters N (95 % intervals by bootstrap: E "
            f"{lows[0]:.3f} to {highs[0]:.3f}, alpha {lows[2]:.3f} to {highs[2]:.3f})."
        ),
    )  # fmt: skip
    return law


def fit(sizes: Floats, losses: Floats) -> tuple[float, float, float]:
    """E, A and alpha of least squares, with E >= 0. ``sizes`` should be near 1."""
    from scipy.optimize import least_squares

    e, a, alpha = fit_many(sizes, losses[None])[:, 0]

    def residuals(values: Floats) -> Floats:
        difference: Floats = values[0] + np.exp(values[1] - np.exp(values[2]) * logs) - losses
        return difference

    logs = np.log(sizes)
    bounds = ([0.0, -np.inf, np.log(ALPHAS[0])], [losses.max(), np.inf, np.log(ALPHAS[-1])])
    start = np.clip([e, np.log(a), np.log(alpha)], *bounds)
    found = least_squares(residuals, start, bounds=bounds, xtol=1e-12, ftol=1e-12, gtol=1e-12).x
    return float(found[0]), float(np.exp(found[1])), float(np.exp(found[2]))


def fit_many(sizes: Floats, losses: Floats) -> Floats:
    """E, A and alpha (3, S) of S rows of ``losses`` (S, n), by trying each of ``ALPHAS``.

    A parabola through the squared errors of the best alpha and its neighbours refines alpha.
    """
    errors = _errors_of(sizes ** -ALPHAS[:, None], losses)
    middle = np.clip(errors.argmin(1), 1, len(ALPHAS) - 2)[:, None]
    left, centre, right = (np.take_along_axis(errors, middle + n, 1) for n in (-1, 0, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        curvature = left - 2 * centre + right
        shift = np.clip((left - right) / curvature / 2, -1, 1)
    shift[~np.isfinite(shift)] = 0.0
    step = np.log(ALPHAS[1] / ALPHAS[0])
    alphas = ALPHAS[middle] * np.exp(step * shift)
    e, a = _linear(sizes**-alphas, losses)
    return np.array([e, np.maximum(a, 1e-12), alphas[:, 0]])


def _errors_of(x: Floats, losses: Floats) -> Floats:
    """The squared errors (S, G) of L = E + A x with the best E >= 0 and A, for each x (G, n)."""
    centred = x - x.mean(1, keepdims=True)
    mean = losses.mean(1, keepdims=True)
    spread, squares = (centred**2).sum(1), (x**2).sum(1)
    a, bare = losses @ centred.T / spread, losses @ x.T / squares
    error = ((losses - mean) ** 2).sum(1, keepdims=True) - a**2 * spread
    bare_error = (losses**2).sum(1, keepdims=True) - bare**2 * squares
    found: Floats = np.where(mean - a * x.mean(1) < 0, bare_error, error)
    return np.where(a <= 0, np.inf, found)


def _linear(x: Floats, losses: Floats) -> tuple[Floats, Floats]:
    """The best E >= 0 and A (S,) of L = E + A x, for rows x (S, n)."""
    centred = x - x.mean(1, keepdims=True)
    a = (losses * centred).sum(1) / (centred**2).sum(1)
    e = losses.mean(1) - a * x.mean(1)
    bare = (losses * x).sum(1) / (x**2).sum(1)
    return np.maximum(e, 0.0), np.where(e < 0, bare, a)


def as_plain(scaling: Scaling | str | None) -> Plain | None:
    """The law for ``report.json``."""
    if isinstance(scaling, str):
        return {"why_not": scaling}
    return None if scaling is None else dict(vars(scaling))
