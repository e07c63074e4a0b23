"""Rates rise over the warm-up, never rise again, and are those worked out by hand."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.errors import Refused
from llm.training.schedule import WSD, Constant, Cosine, Schedule

KINDS: dict[str, type[Schedule]] = {"constant": Constant, "cosine": Cosine, "wsd": WSD}


@pytest.mark.parametrize(
    ("step", "share"),
    [
        (1, 1 / 3), (2, 2 / 3),  # two steps of warm-up, after which the rate would be full
        (4, 0.1 + 0.9 * (1 + math.sqrt(0.5)) / 2), (6, 0.55), (10, 0.1), (11, 0.1), (500, 0.1),
    ],
)  # fmt: skip
def test_cosine_by_hand(step: int, share: float) -> None:
    schedule = Cosine("cosine", warmup_steps=2, min_lr_ratio=0.1)
    assert schedule(step, max_steps=10) == pytest.approx(share)


@pytest.mark.parametrize(
    ("step", "share"), [(1, 0.5), (2, 1.0), (6, 1.0), (7, 0.75), (8, 0.5), (10, 0.0), (99, 0.0)]
)
def test_wsd_by_hand(step: int, share: float) -> None:
    schedule = WSD("wsd", warmup_steps=1, min_lr_ratio=0.0, cooldown_fraction=0.4)
    assert schedule(step, max_steps=10) == pytest.approx(share)


def test_wsd_ends_at_the_least_rate_and_without_cooldown_at_the_full_one() -> None:
    assert WSD("wsd", 0, min_lr_ratio=0.25)(10, 10) == pytest.approx(0.25)
    assert WSD("wsd", 0, cooldown_fraction=0.0)(10, 10) == 1.0
    assert WSD("wsd", 5, min_lr_ratio=0.0, cooldown_fraction=1.0)(6, 10) == pytest.approx(0.8)


@pytest.mark.parametrize(("step", "share"), [(1, 0.25), (3, 0.75), (4, 1.0), (10, 1.0), (99, 1.0)])
def test_constant_by_hand(step: int, share: float) -> None:
    assert Constant("constant", warmup_steps=3)(step, max_steps=10) == pytest.approx(share)


@pytest.mark.parametrize(
    ("max_steps", "warmup"), [(1, 0), (9, 0), (10, 1), (999, 99), (1000, 100), (50_000, 100)]
)
def test_without_warmup_steps_it_is_a_tenth_of_the_run_but_at_most_100(
    max_steps: int, warmup: int
) -> None:
    assert Cosine("cosine").warmup(max_steps) == warmup
    assert Cosine("cosine", warmup_steps=7).warmup(max_steps) == 7


@settings(max_examples=100, deadline=None)
@given(data=st.data(), kind=st.sampled_from(sorted(KINDS)), max_steps=st.integers(1, 60))
def test_after_the_warmup_the_rate_never_rises_and_stays_between_least_and_full(
    data: st.DataObject, kind: str, max_steps: int
) -> None:
    schedule = KINDS[kind](
        kind,
        warmup_steps=data.draw(st.none() | st.integers(0, max_steps - 1)),
        min_lr_ratio=data.draw(st.floats(0, 1)),
        cooldown_fraction=data.draw(st.floats(0, 1)),
    )
    schedule.check(max_steps)
    warmup = schedule.warmup(max_steps)
    shares = [schedule(step, max_steps) for step in range(1, max_steps + 10)]
    rising, falling = shares[:warmup], shares[warmup:]
    assert all(0 < low < high for low, high in pairwise(rising))
    assert all(high >= low - 1e-12 for high, low in pairwise(falling))
    assert all(schedule.min_lr_ratio - 1e-12 <= share <= 1 + 1e-12 for share in falling)
    assert set(shares[max_steps:]) == {shares[max_steps - 1]}  # past the end: as at the end


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"warmup_steps": 10}, r"schedule\.warmup_steps=10 .* trainer\.max_steps=10"),
        ({"warmup_steps": -1}, r"schedule\.warmup_steps=-1"),
        ({"min_lr_ratio": 1.5}, r"schedule\.min_lr_ratio=1\.5"),
        ({"min_lr_ratio": -0.1}, r"schedule\.min_lr_ratio=-0\.1"),
        ({"cooldown_fraction": 2.0}, r"schedule\.cooldown_fraction=2\.0"),
        ({"cooldown_fraction": math.nan}, r"schedule\.cooldown_fraction=nan"),
    ],
)
def test_values_that_do_not_fit_the_run_are_refused_by_name(
    options: dict[str, float], named: str
) -> None:
    with pytest.raises(Refused, match=named):
        Cosine("cosine", **options).check(max_steps=10)
