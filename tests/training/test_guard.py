"""Each step is judged by the steps before it."""

import math
from typing import Any

import numpy as np
import pytest

from llm.errors import Diverged
from llm.training.guard import FEWEST, WINDOW, Guard, is_outlier

POSITIONS = np.arange(4) * 100
NAN, INF = math.nan, math.inf
UNEVEN = [0.9, 1.1] * (WINDOW // 2)  # mean 1, deviation 0.1: above 1.6 is a spike


class Judge(Guard):
    """A guard that remembers its warnings."""

    def __init__(self, max_skipped: int = 3, skip_spikes: bool = False, **more: Any) -> None:
        self.warnings: list[str] = []
        super().__init__(
            max_skipped, skip_spikes, lambda message, kind: self.warnings.append(message), **more
        )

    def judge(self, loss: float, norm: float = 1.0, step: int = 9) -> bool:
        return self.admits(step, loss, norm, POSITIONS)


def experienced(**options: Any) -> Judge:
    """A guard that has seen uneven losses and norms."""
    guard = Judge(**options)
    assert all(guard.judge(value, value) for value in UNEVEN)
    assert not guard.warnings
    return guard


def test_an_outlier_lies_above_the_mean_and_six_deviations() -> None:
    values = (1.59, 1.61, 1e30, 0.39, 0.0, -1e9)
    assert [is_outlier(value, UNEVEN) for value in values] == [False, True, True, *[False] * 3]


def test_nothing_is_an_outlier_among_too_few() -> None:
    assert not is_outlier(1e9, UNEVEN[: FEWEST - 1])
    assert is_outlier(1e9, UNEVEN[:FEWEST])


def test_a_settled_loss_has_no_spikes() -> None:
    assert not is_outlier(3.1, [3.0] * WINDOW)
    assert is_outlier(3.2, [3.0] * WINDOW)


def test_old_steps_are_forgotten() -> None:
    guard = experienced()
    for _ in range(WINDOW):
        guard.judge(100.0, 100.0)
    assert guard.recent.losses == guard.recent.norms == [100.0] * WINDOW


@pytest.mark.parametrize(("loss", "norm"), [(NAN, 1.0), (1.0, NAN), (INF, 1.0), (1.0, -INF)])
def test_a_step_that_is_not_finite_is_skipped_and_not_remembered(loss: float, norm: float) -> None:
    guard = experienced()
    assert not guard.judge(loss, norm)
    assert guard.recent.losses == UNEVEN
    (warning,) = guard.warnings
    assert warning.startswith("step 9: loss ")
    assert warning.endswith("not finite, skipped (windows at 0, 100, 200, 300)")


def test_too_many_in_a_row_end_the_run_with_all_facts() -> None:
    guard = Judge(max_skipped=3)
    for loss in (NAN, INF, 1.0, NAN, NAN):  # a finite one restarts the count
        guard.judge(loss)
    with pytest.raises(Diverged, match=r"step 9: loss nan, .* 3 steps in a row were not") as end:
        guard.judge(NAN, 2.5)
    facts = end.value.facts
    assert math.isnan(facts.pop("loss"))
    assert facts == {"step": 9, "grad_norm": 2.5, "positions": [0, 100, 200, 300]}
    assert len(guard.warnings) == 4, "the last one is in the error"


def test_an_overflow_of_float16_is_no_news() -> None:
    guard = Judge(is_scaled=True)
    assert not guard.judge(1.0, INF)
    assert guard.warnings == []
