"""Each step is judged by those before it, the same way wherever a run was cut in two."""

import json
import math
from typing import Any

import numpy as np
import pytest

from llm.errors import Diverged, Refused
from llm.training.guard import FEWEST, WINDOW, Guard, stands_out, window

POSITIONS = np.arange(4) * 100
NAN, INF = math.nan, math.inf
UNEVEN = [0.9, 1.1] * (WINDOW // 2)  # mean 1, deviation 0.1: beyond 1.6 is a spike


class Judge(Guard):
    """A guard that keeps what it tells."""

    def __init__(self, most_in_a_row: int = 3, skip_spikes: bool = False, **more: Any) -> None:
        self.told: list[str] = []
        super().__init__(
            most_in_a_row, skip_spikes, lambda message, kind: self.told.append(message), **more
        )

    def judge(self, loss: float, norm: float = 1.0, step: int = 9) -> bool:
        return self.admits(step, loss, norm, POSITIONS)


def experienced(**options: Any) -> Judge:
    """One that has seen uneven losses and norms."""
    guard = Judge(**options)
    assert all(guard.judge(value, value) for value in UNEVEN)
    assert not guard.told
    return guard


def test_a_value_stands_out_beyond_the_mean_and_six_deviations() -> None:
    before = window()
    before.extend(UNEVEN)
    assert [stands_out(value, before) for value in (1.59, 1.61, 1e30)] == [False, True, True]


@pytest.mark.parametrize("value", [0.39, 0.0, -1e9])
def test_a_value_below_the_others_is_good_news(value: float) -> None:
    before = window()
    before.extend(UNEVEN)
    assert not stands_out(value, before)


def test_nothing_stands_out_from_too_few() -> None:
    before = window()
    before.extend(UNEVEN[: FEWEST - 1])
    assert not stands_out(1e9, before)
    before.append(1.0)
    assert stands_out(1e9, before)


def test_a_loss_that_has_settled_is_no_row_of_spikes() -> None:
    before = window()
    before.extend([2.0] * WINDOW)
    assert [stands_out(value, before) for value in (2.0, 2.1, 2.13)] == [False, False, True]


def test_only_the_last_steps_are_looked_back_on() -> None:
    guard = Judge()
    for value in range(300):
        guard.judge(float(value), 1000.0 - value)
    assert list(guard.losses) == list(range(300 - WINDOW, 300))
    assert list(guard.norms) == [1000 - value for value in guard.losses]


@pytest.mark.parametrize("loss", [1.0, NAN, INF, -INF])
@pytest.mark.parametrize("norm", [1.0, NAN, INF])
def test_what_is_no_number_is_left_out_and_leaves_no_trace(loss: float, norm: float) -> None:
    guard = experienced()
    before = [*guard.losses, *guard.norms]
    admitted = guard.judge(loss, norm)
    assert admitted is (loss == norm == 1.0)
    if not admitted:
        assert [*guard.losses, *guard.norms] == before
        assert guard.in_a_row == 1
        assert "not finite, left out (windows at 0, 100, 200, 300)" in guard.told[0]
    # Beside a NaN nothing would stand out, and nothing would be ordinary either.
    assert guard.judge(1.0)
    assert len(guard.told) == (not admitted)
    assert guard.judge(50.0)
    assert guard.told[-1].startswith("step 9: loss 50, gradient norm 1: a spike")


@pytest.mark.parametrize(("loss", "norm"), [(50.0, 1.0), (1.0, 50.0), (50.0, 50.0)])
def test_a_spike_of_either_is_told_with_its_step_and_its_windows(loss: float, norm: float) -> None:
    guard = experienced()
    assert guard.judge(loss, norm, step=130)
    wanted = f"step 130: loss {loss:.4g}, gradient norm {norm:.4g}: a spike"
    assert guard.told == [f"{wanted} (windows at 0, 100, 200, 300)"]


def test_a_spike_is_left_out_where_that_is_asked_for_and_is_no_failure() -> None:
    guard = experienced(skip_spikes=True, most_in_a_row=1)
    assert not guard.judge(50.0)
    assert guard.in_a_row == 0
    assert ": a spike, left out (windows at" in guard.told[0]
    assert guard.judge(1.0)


def test_of_a_large_batch_the_first_windows_are_told() -> None:
    guard = experienced()
    guard.admits(1, 50.0, 1.0, np.arange(100))
    assert guard.told[0].endswith("(windows at 0, 1, 2, 3, 4, 5, 6, 7, ...)")


def test_too_many_in_a_row_end_the_run_with_all_that_is_known() -> None:
    guard = Judge(most_in_a_row=3)
    for loss in (NAN, INF, 1.0, NAN, NAN):  # one that is finite starts the count anew
        guard.judge(loss)
    with pytest.raises(Diverged, match=r"step 9: loss nan, .* 3 steps in a row were not") as end:
        guard.judge(NAN, 2.5)
    facts = end.value.facts
    assert math.isnan(facts.pop("loss"))
    assert facts == {"step": 9, "grad_norm": 2.5, "positions": [0, 100, 200, 300]}
    assert len(guard.told) == 4, "the last one is in the error"


def test_an_overflow_of_float16_is_no_news() -> None:
    guard = Judge(scaled=True)
    assert not guard.judge(1.0, INF)
    assert guard.told == []


@pytest.mark.parametrize("cut", [1, 60, 150, 199])
def test_its_judgements_are_the_same_after_a_checkpoint(cut: int) -> None:
    drawn = np.random.default_rng(0).lognormal(sigma=2.0, size=200).tolist()
    drawn[148:151] = [NAN, NAN, INF]
    whole, first, second = (Judge(most_in_a_row=4, skip_spikes=True) for _ in range(3))
    wanted = [whole.judge(loss) for loss in drawn]
    assert wanted.count(False) > 3, "some spikes too"
    found = [first.judge(loss) for loss in drawn[:cut]]
    second.restore(json.loads(json.dumps(first.to_plain())))
    found += [second.judge(loss) for loss in drawn[cut:]]
    assert found == wanted
    assert first.told + second.told == whole.told
    assert second.to_plain() == whole.to_plain()


def test_the_count_goes_on_after_a_checkpoint() -> None:
    first, second = Judge(), Judge()
    first.judge(NAN)
    first.judge(NAN)
    second.restore(first.to_plain())
    with pytest.raises(Diverged, match="3 steps in a row"):
        second.judge(NAN)


GOOD: dict[str, Any] = {"in_a_row": 0, "losses": [1.0, 2], "norms": []}


@pytest.mark.parametrize(
    "plain",
    [
        None, {}, [], "guard", {"in_a_row": 0, "losses": []},
        GOOD | {"in_a_row": 1.0}, GOOD | {"in_a_row": "1"}, GOOD | {"losses": None},
        GOOD | {"losses": ["1.0"]}, GOOD | {"norms": [None]}, GOOD | {"norms": [True]},
        GOOD | {"norms": {"0": 1.0}},
    ],
    ids=str,
)  # fmt: skip
def test_other_values_are_refused_and_change_nothing(plain: Any) -> None:
    guard = experienced()
    before = guard.to_plain()
    with pytest.raises(Refused, match="the checkpoint has no usable guard"):
        guard.restore(plain)
    assert guard.to_plain() == before
    guard.restore(GOOD)
    assert guard.to_plain() == GOOD
