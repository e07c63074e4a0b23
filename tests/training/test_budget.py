"""A run with a budget in minutes uses it, cools down, and ends with the same bits if resumed.

No test depends on the speed of the machine: a fake clock says how long each step takes.
"""

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm.errors import Interrupted
from llm.options import from_plain
from llm.settings.build import CustomSchedule
from llm.training.budget import StepBudget
from llm.training.options import TrainerOptions
from llm.training.schedule import WSD, Constant, Cosine, Horizon, Schedule
from llm.training.state import Progress
from tests.custom_classes import halving
from tests.training.conftest import HandBuilt, MakeTrainer, Notebook, assert_same_bits, signalled
from tests.training.test_divergence import disturb, nan_loss

Pace = Callable[[int], float]  # seconds of a step
MINUTE: dict[str, Any] = {
    "max_steps": None, "max_minutes": 1, "log_interval": 1, "eval_interval": 10, "dropout": 0.1,
}  # fmt: skip
SCHEDULES: dict[str, Callable[[], Schedule]] = {
    "wsd": lambda: WSD(min_lr_ratio=0.0, cooldown_fraction=0.4),
    "cosine": lambda: Cosine(min_lr_ratio=0.0),
    "constant": lambda: Constant(),
    "custom": lambda: CustomSchedule("schedule", linear, {}),
}


def linear(step: int, max_steps: int) -> float:
    return 1 - step / (max_steps + 1)


def steady(step: int) -> float:
    return 1.0


def slow_start(step: int) -> float:
    return 5.0 if step == 1 else 1.0


class SlowNotebook(Notebook):
    """Each evaluation and each save takes an hour, which a budget does not count."""

    def __init__(self, clock: list[float]) -> None:
        super().__init__()
        self.clock = clock

    @contextlib.contextmanager
    def doing(self, what: str) -> Iterator[None]:
        self.clock[0] += 3600
        with super().doing(what):
            yield

    def each(self, what: str, items: Iterable[Any], count: int = 0) -> Iterator[Any]:
        self.clock[0] += 3600
        return super().each(what, items, count)


Timed = Callable[..., HandBuilt]


@pytest.fixture
def make_timed(make_trainer: MakeTrainer, monkeypatch: pytest.MonkeyPatch) -> Timed:
    """Trainers whose steps take as many seconds as ``pace`` says."""
    clock = [0.0]
    monkeypatch.setattr("llm.training.state.now", lambda: clock[0])

    def inner(run: str = "run", kind: str = "wsd", pace: Pace = steady, **more: Any) -> HandBuilt:
        trainer = make_trainer(run, schedule=SCHEDULES[kind](), **MINUTE | more)
        trainer.logger = trainer.budget.logger = SlowNotebook(clock)
        take_step = trainer.optimizer_step

        def timed(step: int) -> tuple[float, float]:
            clock[0] += pace(step)
            return take_step(step)

        trainer.optimizer_step = timed
        return trainer

    return inner


def resumed(before: HandBuilt, make_timed: Timed, run: str = "parts", **options: Any) -> HandBuilt:
    """Another trainer at the last checkpoint of ``before``."""
    trainer = make_timed(run, weights=9, **options)
    trainer.resume(before.newest)
    trainer.logger.rows = list(before.logger.rows)
    return trainer


def rates(trainer: HandBuilt) -> list[float]:
    """The share of the full learning rate at each step."""
    return [rate / 1e-2 for rate in trainer.logger.column("lr").values()]


def test_wsd_begins_its_cooldown_when_as_much_time_is_left_as_it_needs(make_timed: Timed) -> None:
    trainer = make_timed(pace=slow_start)
    progress = trainer.fit()
    assert (progress.step, progress.train_seconds) == (56, 60)  # the first step takes 5 s
    assert progress.eval_seconds > 3600 and progress.checkpoint_seconds > 3600
    assert trainer.logger.ends == [(56, "the schedule ends at step 56: 1 minute at 1 steps/s")]
    shares = rates(trainer)
    assert shares[:8] == pytest.approx([1 / 101, 2 / 101, 3 / 101, 0.35, 0.68, 1, 1, 1], abs=0.01)
    assert shares[5:33] == [1.0] * 28
    cooldown = 0.4 * 56  # steps
    assert shares[33:] == pytest.approx([left / (cooldown + 1) for left in range(23, 0, -1)])
    assert trainer.outcome()["reason"] is None


@pytest.mark.parametrize("kind", SCHEDULES)
def test_each_schedule_uses_its_time_and_comes_to_its_end(make_timed: Timed, kind: str) -> None:
    trainer = make_timed(kind=kind, pace=slow_start)
    progress = trainer.fit()
    assert (progress.step, progress.train_seconds) == (56, 60)
    (end,) = trainer.logger.ends
    assert end[0] == 56
    last = rates(trainer)[-1]
    assert last == 1.0 if kind == "constant" else last < 0.05
    assert trainer.newest.step == 56 and 56 in trainer.logger.column("val/loss")


def drive(
    budget: StepBudget, progress: Progress, pace: Pace, most: int = 100_000
) -> Iterator[float]:
    """The shares of the full rate at the steps of a run, without a network."""
    budget.start(progress)
    while not progress.is_over(budget.options) and progress.step < most:
        yield budget.share(progress.step + 1, progress)
        progress.step += 1
        progress.train_seconds += pace(progress.step)
        budget.update(progress)


@given(
    kind=st.sampled_from(["wsd", "cosine", "constant"]),
    minutes=st.floats(1e-4, 2),
    steps=st.integers(1, 2000),
    slow=st.floats(1, 20),
    warmup=st.none() | st.integers(0, 30),
    cooldown=st.floats(0, 1),
)
def test_the_rate_rises_once_falls_once_and_does_not_jump(
    kind: str, steps: int, minutes: float, slow: float, warmup: int | None, cooldown: float
) -> None:
    schedule, seconds = SCHEDULES[kind](), 60 * minutes / steps
    schedule.warmup_steps, schedule.cooldown_fraction = warmup, cooldown
    options = TrainerOptions(max_steps=None, max_minutes=minutes)
    budget, progress = StepBudget(options, schedule, Notebook()), Progress()
    shares = list(drive(budget, progress, lambda step: seconds * (slow if step == 1 else 1)))
    last = progress.last_step(options)
    assert last == progress.step == len(shares)
    over = progress.train_seconds - 60 * minutes
    assert over <= 3 * seconds * slow, "only a run of a few steps may take longer"
    if last > 3:
        assert abs(over) <= 1.01 * seconds
    assert all(0 < share <= 1 for share in shares)
    peak = shares.index(max(shares))
    assert shares[: peak + 1] == sorted(shares[: peak + 1])
    assert shares[peak:] == sorted(shares[peak:], reverse=True)
    if last >= 100:
        rise = 1 / 3 if warmup is None else 1 / (warmup + 1)
        rises = [after - before for before, after in pairwise(shares)]
        assert max(rises) < rise + 1e-9
        assert kind == "wsd" or min(rises) > -0.05
        assert max(shares) == 1.0


@pytest.mark.parametrize("seconds", [0.1, 1.0])
def test_the_warm_up_is_a_tenth_of_a_short_run_and_100_steps_of_a_long_one(seconds: float) -> None:
    options = TrainerOptions(max_steps=None, max_minutes=5)
    progress = Progress()
    shares = list(drive(StepBudget(options, Cosine(), Notebook()), progress, lambda _: seconds))
    warmup = 100 if seconds == 0.1 else 30
    assert progress.horizon.warmup_steps == warmup
    assert shares.index(1.0) == warmup
    if seconds == 0.1:
        assert shares == pytest.approx([Cosine()(step, 3000) for step in range(1, 3001)])


def test_a_custom_schedule_goes_on_smoothly_where_its_length_is_decided() -> None:
    options = TrainerOptions(max_steps=None, max_minutes=5)
    schedule = CustomSchedule("schedule", linear, {})
    shares = list(drive(StepBudget(options, schedule, Notebook()), Progress(), lambda _: 0.1))
    assert len(shares) == 3000
    assert all(abs(a - b) < 0.01 for a, b in pairwise(shares))
    stairs = CustomSchedule("schedule", halving, {"every": 1000})
    shares = list(drive(StepBudget(options, stairs, Notebook()), Progress(), lambda _: 0.1))
    assert [shares[step] for step in (0, 1000, 2999)] == [1, 0.5, 0.25]


@pytest.mark.parametrize(
    ("kind", "step"),
    [
        ("wsd", 1), ("wsd", 10), ("wsd", 18), ("wsd", 19), ("cosine", 2), ("cosine", 10),
        ("custom", 1), ("constant", 29),
    ],
)  # fmt: skip
def test_a_resumed_run_ends_with_the_bits_of_an_uninterrupted_one(
    make_timed: Timed, kind: str, step: int
) -> None:
    options = {"kind": kind, "pace": lambda step: 2.0}
    whole = make_timed("whole", **options)
    whole.fit()
    assert whole.progress.step == 30, "the cooldown of wsd is decided after step 18"
    first = make_timed("parts", **options)
    first.stop_after(step)
    second = resumed(first, make_timed, **options)
    second.fit()
    assert_same_bits(second.everything(), whole.everything())
    for key in ("train/loss", "val/loss", "lr", "tokens"):
        assert second.logger.column(key) == whole.logger.column(key), key
    assert second.progress.horizon == whole.progress.horizon
    assert second.progress.train_seconds == whole.progress.train_seconds == 60


def test_after_the_decision_the_steps_rule_and_not_the_clock(make_timed: Timed) -> None:
    whole = make_timed("whole")
    whole.fit()
    first = make_timed("parts")
    first.stop_after(45)
    second = resumed(first, make_timed, pace=lambda step: 2.5)  # a slower machine
    second.fit()
    assert_same_bits(second.everything(), whole.everything())
    assert second.progress.train_seconds == 45 + 15 * 2.5
    assert second.logger.ends == [(60, "")]


def test_a_run_that_becomes_much_slower_is_cut_off_and_says_so(make_timed: Timed) -> None:
    trainer = make_timed(pace=lambda step: 1.0 if step < 50 else 20.0)
    progress = trainer.fit()
    assert (progress.step, progress.train_seconds) == (53, 129)
    reason = "trainer.max_minutes=1: training took 2 times that, its schedule was cut off"
    assert trainer.outcome()["reason"] == reason
    assert trainer.newest.step == 53 and 53 in trainer.logger.column("val/loss")


@pytest.mark.parametrize(("kind", "first_rate"), [("wsd", 1.0), ("cosine", 0.53), ("custom", 0.5)])
def test_a_finished_run_with_more_minutes_decides_anew(
    make_timed: Timed, kind: str, first_rate: float
) -> None:
    first = make_timed("parts", kind)
    first.fit()
    second = resumed(first, make_timed, kind=kind, max_minutes=2)
    progress = second.fit()
    assert (progress.step, progress.train_seconds) == (120, 120)
    shares = rates(second)
    assert shares[:60] == rates(first), "the warm-up stays as it was"
    assert shares[60] == pytest.approx(first_rate, abs=0.03)
    assert shares[-1] < 0.03
    less = resumed(second, make_timed, kind=kind, max_minutes=0.5)
    assert less.fit().step == 120


@pytest.mark.parametrize(("failing", "back_to"), [(15, 12), (50, 48)])
@pytest.mark.parametrize("kind", ["wsd", "cosine"])
def test_a_rollback_keeps_the_decision_and_ends(
    make_timed: Timed, kind: str, failing: int, back_to: int
) -> None:
    trainer = make_timed(kind=kind, rollbacks=2, max_skipped=1, checkpoint_interval=4)
    disturb(trainer, nan_loss, lambda step: step >= failing and trainer.progress.rollbacks == 0)
    decided: list[Horizon] = []
    trainer.logger.rewind = lambda step: decided.append(replace(trainer.progress.horizon))
    progress = trainer.fit()
    assert progress.rollbacks == 1
    lost = failing - back_to
    is_decided = failing > (36 if kind == "wsd" else 3)
    assert progress.step == (60 if is_decided else 60 - lost)
    assert progress.train_seconds == (60 + lost if is_decided else 60)
    assert (decided[0].max_steps is not None) is is_decided


def test_budgets_of_a_few_steps_end_in_order(make_timed: Timed) -> None:
    for minutes, steps in ((1e-9, 1), (1 / 60, 1), (2 / 60, 2), (4 / 60, 4)):
        for kind in SCHEDULES:
            trainer = make_timed(f"run-{steps}-{kind}", kind, max_minutes=minutes)
            assert trainer.fit().step == steps
            assert trainer.outcome()["reason"] is None
            assert trainer.newest.step == steps


def test_a_warm_up_that_takes_all_steps_is_reported(make_timed: Timed) -> None:
    trainer = make_timed(max_minutes=0.2)
    trainer.schedule.warmup_steps = 40
    trainer.fit()
    assert trainer.logger.warnings == ["schedule.warmup_steps=40 takes all of the 12 steps"]


def test_a_limit_of_minutes_beside_the_steps_counts_training_only(make_timed: Timed) -> None:
    trainer = make_timed(max_steps=100, max_minutes=0.5)
    assert trainer.fit().step == 30
    assert trainer.outcome()["reason"] == "trainer.max_minutes=0.5 are used up"
    assert trainer.logger.ends == [] and trainer.progress.horizon == Horizon()


def test_patience_profile_and_eval_only_work_without_a_number_of_steps(make_timed: Timed) -> None:
    trainer = make_timed(lr=0.0, patience=2, eval_interval=5, profile=True)
    assert trainer.fit().step == 10
    assert "trainer.patience=2" in trainer.outcome()["reason"]
    assert (trainer.folder.parent / "profile.txt").exists()
    only = resumed(trainer, make_timed, "other", eval_only=True)
    assert only.fit().step == 10
    assert only.logger.ends == only.logger.seconds == []


def test_a_signal_in_the_evaluation_of_the_last_step_loses_nothing(make_timed: Timed) -> None:
    first = make_timed("parts")
    evaluate = first.evaluate

    def signalled_at_the_end() -> Any:
        if first.progress.step == 60:
            signalled()
        return evaluate()

    first.evaluate = signalled_at_the_end
    with pytest.raises(Interrupted, match="at step 60"):
        first.fit()
    second = resumed(first, make_timed)
    assert second.fit().step == 60
    assert 60 in second.logger.column("val/loss")


def test_a_decision_comes_back_from_a_checkpoint() -> None:
    progress = Progress(step=4, horizon=Horizon(90, 1.5, 36, warmup_steps=9, warmup_decided_at=3))
    assert from_plain(Progress, asdict(progress), "") == progress
