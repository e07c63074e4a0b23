"""Learning rate schedules: pure functions of the step, so that resuming needs no state.

Each is called with an optimizer step (from 1) and the number of steps, and returns the share of
``optimizer.lr`` to use. The share is 1 at the first step after the warm-up, and would reach
``min_lr_ratio`` one step after the last, so that it is above 0 at every step. Steps after the last
one have the rate of the last one.

A run with a budget in minutes learns its number of steps on the way: :meth:`Schedule.in_time`.
"""

import math
from dataclasses import dataclass

from llm.errors import require
from llm.options import option

LONGEST_WARMUP = 100  # steps, if schedule.warmup_steps is null
EARLY = 0.02  # of the time; the speed is known by then, and a cosine has fallen by a thousandth


@dataclass
class Horizon:
    """The length of a run with a budget in minutes, decided once from the measured speed."""

    max_steps: int | None = option(None, at_least=1)  # None: not decided yet
    minutes: float | None = option(None, more_than=0)  # the budget for which it was decided
    full_until: int = option(0, at_least=0)  # a cooldown begins after this step at the earliest
    warmup_steps: int = option(LONGEST_WARMUP, at_least=0)
    warmup_decided_at: int = option(0, at_least=0)  # a step; 0: not decided yet

    def last_step(self, minutes: float | None) -> int | None:
        """``max_steps`` if it was decided for this budget; another budget needs a new decision."""
        return self.max_steps if self.minutes == minutes else None


@dataclass
class Schedule:
    """Linear warm-up, then :meth:`after_warmup`."""

    name: str = "cosine"
    warmup_steps: int | None = option(None, at_least=0)  # None: min(100, max_steps // 10)
    min_lr_ratio: float = option(0.1, at_least=0, at_most=1)
    cooldown_fraction: float = option(0.2, at_least=0, at_most=1)

    def check(self, max_steps: int | None) -> None:
        """Raise :class:`llm.errors.Refused` if the warm-up takes all ``max_steps``, if known."""
        require(
            max_steps is None or self.warmup(max_steps) < max_steps,
            f"schedule.warmup_steps={self.warmup_steps} must be less than "
            f"trainer.max_steps={max_steps}",
        )

    def warmup(self, max_steps: int) -> int:
        """Steps of warm-up in a run of ``max_steps``."""
        longest = min(LONGEST_WARMUP, max_steps // 10)
        return longest if self.warmup_steps is None else self.warmup_steps

    def __call__(self, step: int, max_steps: int) -> float:
        """Share of the full rate at ``step`` (1 .. max_steps)."""
        step, warmup = min(step, max_steps), self.warmup(max_steps)
        if step <= warmup:
            return step / (warmup + 1)
        share = self.after_warmup(step, warmup, max_steps)
        return share + self.min_lr_ratio * (1 - share)

    @property
    def decided_after(self) -> float:
        """The share of the time after which a run with a budget in minutes fixes ``max_steps``."""
        return EARLY

    def in_time(self, step: int, max_steps: int | None, horizon: Horizon) -> float:
        """Share of the full rate at ``step`` of a run with a budget in minutes.

        Until ``max_steps`` is decided (None), the rate stays full after the warm-up.
        """
        if self.warmup_steps is None:
            warmup, decided_at = horizon.warmup_steps, horizon.warmup_decided_at
        else:
            warmup, decided_at = self.warmup_steps, 0
        if step <= warmup:
            # Until the decision the warm-up is assumed to be the longest. From there a steeper line
            # leads to the full rate, without a jump.
            share = min(step, decided_at) / (LONGEST_WARMUP + 1)
            if step <= decided_at:
                return share
            return share + (1 - share) * (step - decided_at) / (warmup + 1 - decided_at)
        if max_steps is None:
            return 1.0
        full_until = max(warmup, horizon.full_until)
        share = 1.0 if step <= full_until else self.after_warmup(step, full_until, max_steps)
        return share + self.min_lr_ratio * (1 - share)

    def after_warmup(self, step: int, warmup: int, max_steps: int) -> float:
        """From 1 (full rate) at step ``warmup + 1`` towards 0 (``min_lr_ratio``), which it would
        reach at step ``max_steps + 1``.
        """
        raise NotImplementedError


class Constant(Schedule):
    """The full rate to the end."""

    @property
    def decided_after(self) -> float:
        """All of the time."""
        return 1.0

    def after_warmup(self, step: int, warmup: int, max_steps: int) -> float:
        """1 at every step."""
        return 1.0


class Cosine(Schedule):
    """Half a cosine down to the end (Loshchilov & Hutter 2016, arXiv:1608.03983).

    Equal to nanoGPT's ``get_lr`` at each step; its iterations count from 0.
    """

    def after_warmup(self, step: int, warmup: int, max_steps: int) -> float:
        """(1 + cos(pi x)) / 2 for x from 0 towards 1."""
        left = (max_steps + 1 - step) / (max_steps - warmup)  # 1 - x
        # As a square it does not round to 0 near the end of a very long run.
        return math.sin(0.5 * math.pi * left) ** 2


class WSD(Schedule):
    """Warm-up, stable, decay: full rate, then a straight line down to the end.

    The line takes the last ``cooldown_fraction`` of the steps, but begins after the first step that
    follows the warm-up (Hu et al. 2024, arXiv:2404.06395; Hägele et al. 2024, arXiv:2405.18392).
    """

    @property
    def decided_after(self) -> float:
        """Where the cooldown begins."""
        return max(EARLY, 1 - self.cooldown_fraction)

    def after_warmup(self, step: int, warmup: int, max_steps: int) -> float:
        """1, then a line over the steps of the cooldown."""
        cooldown = min(self.cooldown_fraction * max_steps, max_steps - warmup - 1)
        return min(1.0, (max_steps + 1 - step) / (cooldown + 1))
