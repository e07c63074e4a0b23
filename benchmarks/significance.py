"""How often a report calls noise a difference: python -m benchmarks.significance [--json FILE]

Simulated sweeps of equal points, and the chance to find a true difference. Nothing is trained.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.rows import Parser, Row, write_json
from llm.report.statistics import LEVEL, against_best, summarise

SWEEPS = 1000  # per case
WIDE = 20.0  # the spread of a noisy point, in standard deviations of the others


@dataclass(frozen=True)
class Case:
    """A sweep: the number of seeds of each point, and the kind of the points."""

    sizes: tuple[int, ...]
    noisy: bool = False  # the first point has a far larger spread
    gain: float = 0.0  # by which the first point is better, in standard deviations

    @property
    def name(self) -> str:
        """``5 points, 3 seeds``"""
        seeds = "/".join(map(str, sorted(set(self.sizes))))
        noisy = f", one {WIDE:g} times as noisy" if self.noisy else ""
        return f"{len(self.sizes)} points, {seeds} seeds{noisy}"


POINTS, SEEDS = (2, 3, 5, 10, 20), (2, 3, 5)
EQUAL = [Case((n,) * k) for k in POINTS for n in SEEDS]
EQUAL += [Case((5, *(2,) * (k - 1))) for k in POINTS] + [Case((1, *(3,) * (k - 1))) for k in POINTS]
NOISY = [Case((n,) * k, noisy=True) for k in (3, 10) for n in SEEDS]
GAINS = [Case((n,) * k, gain=2.0) for k in POINTS for n in SEEDS]


def found(case: Case, sweeps: int = SWEEPS) -> float:
    """The share of sweeps in which a difference with the best is called real.

    If the first point is better, it must be the best one, and the second point counts alone: it
    stands for any point that is worse by the gain.
    """
    random = np.random.default_rng(0)
    hits = 0
    for _ in range(sweeps):
        groups = [random.normal(0.0, 1.0, n).tolist() for n in case.sizes]
        if case.noisy:
            groups[0] = [WIDE * value for value in groups[0]]
        groups[0] = [value - case.gain for value in groups[0]]
        summary = summarise(groups)
        best = int(np.argmin(summary.means))
        shown = against_best(summary, best).is_shown
        hits += bool(shown[0] and best == 0 if case.gain else shown.any())
    return hits / sweeps


def rows(sweeps: int = SWEEPS) -> Iterator[Row]:
    """The largest share of sweeps with a false difference, and the power at 5 seeds."""
    shares = [found(case, sweeps) for case in EQUAL]
    what = f"share of {sweeps:,} sweeps of equal points with a false difference; other: the level"
    yield _row("false_differences", what, shares)
    powers = [found(case, sweeps) for case in GAINS if case.sizes[0] == 5]
    what = "power at a difference of 2 standard deviations and 5 seeds, by the number of points"
    yield _row("power_2sd_5_seeds", what, powers)


def _row(id: str, what: str, shares: Sequence[float]) -> Row:
    """The worst case is the ratio of the first row, and the spread is over the cases."""
    worst = max(shares) if id == "false_differences" else min(shares)
    return Row(id, what, worst, LEVEL, worst, min(shares), max(shares))


def main(arguments: list[str] | None = None) -> None:
    """Print both tables."""
    parser = Parser("How often noise is called a difference", repeats=0)
    parser.add_argument("--sweeps", type=int, default=SWEEPS, help=f"per case ({SWEEPS:,})")
    typed = parser.parse_args(arguments)
    print(f"{typed.sweeps:,} simulated sweeps per case, at a level of {LEVEL:.0%}\n")
    print("sweeps of equal points in which a difference with the best is called real")
    for case in (*EQUAL, *NOISY):
        print(f"  {case.name:<50}{found(case, typed.sweeps):>7.1%}")
    print("\nchance to show that a point is worse by two standard deviations")
    for case in GAINS:
        print(f"  {case.name:<50}{found(case, typed.sweeps):>7.1%}")
    if typed.json is not None:
        write_json(list(rows(typed.sweeps)), typed.json)


if __name__ == "__main__":
    main()
