"""Equal points are seldom called different; more seeds find a true difference more often."""

import pytest

from benchmarks.significance import EQUAL, GAINS, Case, found, main, rows

SWEEPS = 250


@pytest.mark.parametrize("case", EQUAL[::4], ids=lambda case: case.name)
def test_at_most_one_in_twenty_sweeps_of_equal_points_shows_a_difference(case: Case) -> None:
    assert found(case, SWEEPS) <= 0.05 + 3 * (0.05 * 0.95 / SWEEPS) ** 0.5


def test_a_noisy_point_does_not_make_the_others_different() -> None:
    assert found(Case((5,) * 5, noisy=True), SWEEPS) <= 0.06


def test_more_seeds_find_a_difference_more_often() -> None:
    powers = [found(case, SWEEPS) for case in GAINS[:3]]
    assert powers == sorted(powers) and powers[-1] > 0.7


def test_the_benchmark_prints_both_tables(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--sweeps", "3"])
    assert capsys.readouterr().out.count("2 points, 2 seeds") == 2
    assert [row.id for row in rows(3)] == ["false_differences", "power_2sd_5_seeds"]
