"""Importance of keys, and the table of learning rates by size."""

from itertools import product

import pytest

from llm.report.importance import of_keys, transfer
from llm.report.points import Point

RATE, WIDTH = "optimizer.lr", "model.n_embed"


def points(*rows: tuple[dict[str, str], float]) -> list[Point]:
    return [
        Point(number, str(values), values, [number], [1], 1, mean)
        for number, (values, mean) in enumerate(rows)
    ]


def grid(means: dict[tuple[str, str], float]) -> list[Point]:
    return points(*(({WIDTH: w, RATE: r}, mean) for (w, r), mean in means.items()))


def test_a_full_grid_is_split_into_main_effects() -> None:
    effects = {"64": 0.3, "128": 0.1}, {"0.01": 0.1, "0.02": 0.0, "0.04": 0.2}
    made = grid({(w, r): 1 + effects[0][w] + effects[1][r] for w, r in product(*effects)})
    first, second = of_keys([WIDTH, RATE], made)
    assert first.key == WIDTH and first.n == 6
    assert first.share == pytest.approx(0.01 / (0.01 + 0.02 / 3))
    assert second.share is not None and first.share is not None
    assert first.share + second.share == pytest.approx(1)  # without an interaction
    assert first.correlation is not None and first.correlation < -0.7


def test_without_a_full_grid_there_is_no_share() -> None:
    made = points(({WIDTH: "64", RATE: "1"}, 1.0), ({WIDTH: "128", RATE: "2"}, 2.0))
    assert [one.share for one in of_keys([WIDTH, RATE], made)] == [None, None]
    some = points(({WIDTH: "64"}, 1.0), ({RATE: "2"}, 2.0))
    assert [one.n for one in of_keys([WIDTH, RATE], some)] == [1, 1]


def test_words_have_no_correlation() -> None:
    made = points(*(({"optimizer": name}, mean) for name, mean in (("adamw", 1.0), ("muon", 2.0))))
    assert [one.correlation for one in of_keys(["optimizer"], made)] == [None]


def test_what_could_only_be_1_is_not_stated() -> None:
    (alone,) = of_keys([WIDTH], points(*(({WIDTH: str(n)}, 2 - n / 10) for n in range(3))))
    assert (alone.correlation, alone.share) == (pytest.approx(-1), None)
    (two,) = of_keys([WIDTH], points(({WIDTH: "64"}, 1.0), ({WIDTH: "128"}, 2.0)))
    assert (two.correlation, two.share) == (None, None)


def test_the_best_rate_at_each_size() -> None:
    made = grid({
        ("64", "0.01"): 1.8, ("64", "0.02"): 1.7, ("64", "0.04"): 1.75,
        ("128", "0.01"): 1.5, ("128", "0.02"): 1.52, ("128", "0.04"): 1.6,
    })  # fmt: skip
    table = transfer([WIDTH, RATE], made)
    assert table is not None
    assert [(row.size, row.best) for row in table.rows] == [("64", "0.02"), ("128", "0.01")]
    assert table.sentence == (
        "The rate with the lowest mean changes (not tested): 0.02 at n_embed=64, 0.01 at "
        "n_embed=128. At n_embed=128, 0.02 is 0.0200 worse than 0.01."
    )
    assert table.as_plain()["rows"][0]["means"] == {"0.01": 1.8, "0.02": 1.7, "0.04": 1.75}


def test_a_rate_that_is_best_everywhere_transfers() -> None:
    made = grid({
        (w, r): float(w) + float(r) for w, r in product(("64", "128"), ("0.01", "0.02"))
    })  # fmt: skip
    table = transfer([WIDTH, RATE], made)
    assert (
        table is not None
        and table.sentence == "Rate 0.01 has the lowest mean at every n_embed (not tested)."
    )


def test_a_table_needs_a_rate_and_a_size_with_several_rates_each() -> None:
    made = points(({WIDTH: "64", RATE: "0.01"}, 1.0), ({WIDTH: "128", RATE: "0.02"}, 2.0))
    assert transfer([WIDTH, RATE], made) is None
    assert transfer([RATE], made) is None and transfer([WIDTH], made) is None
