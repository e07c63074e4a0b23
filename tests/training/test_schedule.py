"""Learning rates rise over the warm-up, never rise again, and are as computed by hand."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm.config.compose import read_settings
from llm.errors import Refused
from llm.settings.build import build
from llm.settings.schema import TrainSettings
from llm.training.schedule import WSD, Constant, Cosine, Schedule
from tests.command_line import composed

KINDS: dict[str, type[Schedule]] = {"constant": Constant, "cosine": Cosine, "wsd": WSD}


@pytest.mark.parametrize(
    ("step", "share"), [(1, 0.5), (2, 1.0), (6, 1.0), (7, 0.8), (8, 0.6), (10, 0.2), (99, 0.2)]
)
def test_wsd_by_hand(step: int, share: float) -> None:
    schedule = WSD("wsd", warmup_steps=1, min_lr_ratio=0.0, cooldown_fraction=0.4)
    assert schedule(step, max_steps=10) == pytest.approx(share)


def test_wsd_with_no_cooldown_stays_and_with_only_cooldown_falls_at_once() -> None:
    assert WSD("wsd", 0, cooldown_fraction=0.0)(10, 10) == 1.0
    falling = WSD("wsd", 5, min_lr_ratio=0.0, cooldown_fraction=1.0)
    assert [falling(step, 10) for step in (6, 7, 10)] == pytest.approx([1.0, 0.8, 0.2])
    assert WSD("wsd", 5, min_lr_ratio=0.5, cooldown_fraction=1.0)(10, 10) == pytest.approx(0.6)


def nanogpt_lr(it: int) -> float:
    """The formula of nanoGPT's ``get_lr`` with config/train_shakespeare_char.py."""
    learning_rate, min_lr, warmup_iters, lr_decay_iters = 1e-3, 1e-4, 100, 5000
    if it < warmup_iters:
        return learning_rate * (it + 1) / (warmup_iters + 1)
    if it > lr_decay_iters:
        return min_lr
    decay_ratio = (it - warmup_iters) / (lr_decay_iters - warmup_iters)
    coefficient = 0.5 * (1.0 + math.cos(math.pi * decay_ratio))
    return min_lr + coefficient * (learning_rate - min_lr)


def test_nanogpts_recipe_has_nanogpts_rate_at_every_step() -> None:
    settings = read_settings(composed("train", "experiment=nanogpt_char"), TrainSettings)
    schedule, max_steps = build(settings.schedule), settings.trainer.max_steps
    found = [settings.optimizer.lr * schedule(step, max_steps) for step in range(1, max_steps + 1)]
    assert found == pytest.approx([nanogpt_lr(it) for it in range(max_steps)], rel=1e-12)


@settings(deadline=None)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    max_steps=st.integers(1, 10**9),
    part=st.floats(0, 1),
    least=st.floats(0, 1),
    cooldown=st.floats(0, 1),
)
def test_every_step_learns_and_the_warm_up_ends_at_exactly_the_full_rate(
    kind: str, max_steps: int, part: float, least: float, cooldown: float
) -> None:
    warmup = int(part * (max_steps - 1))
    schedule = KINDS[kind](kind, warmup, least, cooldown)
    schedule.check(max_steps)
    assert schedule(warmup + 1, max_steps) == 1.0
    assert schedule(1, max_steps) > 0 and schedule(max_steps, max_steps) > 0


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
    assert all(0 < low < high for low, high in pairwise([*rising, falling[0]]))
    assert falling[0] == 1.0 and all(share > 0 for share in shares)
    assert all(high >= low - 1e-12 for high, low in pairwise(falling))
    assert all(schedule.min_lr_ratio - 1e-12 <= share <= 1 + 1e-12 for share in falling)
    assert set(shares[max_steps:]) == {shares[max_steps - 1]}  # past the end: as at the end


def test_a_warm_up_as_long_as_the_run_is_refused() -> None:
    with pytest.raises(Refused, match=r"schedule\.warmup_steps=10 .* trainer\.max_steps=10"):
        Cosine(warmup_steps=10).check(max_steps=10)


@pytest.mark.parametrize("schedule", [Constant, Cosine, WSD])
def test_a_run_made_shorter_than_its_warm_up_keeps_the_rate_of_its_last_step(
    schedule: type[Schedule],
) -> None:
    shorter = schedule(warmup_steps=100)
    assert shorter(120, 100) == shorter(100, 100) == 100 / 101
