"""Skips each step whose loss or gradient norm is not finite.

A step whose loss or gradient norm lies more than six standard deviations above the mean of the
earlier steps is a spike (the rule of OLMo's trainer). It is reported, and skipped on request.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from llm.errors import Diverged
from llm.options import option

WINDOW, FEWEST, SIGMAS = 128, 32, 6.0  # earlier steps to compare with, at most and at least
# The least standard deviation, as a share of the mean. A settled loss deviates by less, so that
# without it every step would be a spike.
LEAST_DEVIATION = 0.01


@dataclass
class Recent:
    """The finite losses and norms of the latest steps, oldest first."""

    losses: list[float] = field(default_factory=list)
    norms: list[float] = field(default_factory=list)
    skipped_in_a_row: int = option(0, at_least=0)  # steps that were not finite


@dataclass
class Guard:
    """Judges each step by its loss and its gradient norm."""

    max_skipped: int  # the run ends after this many steps in a row that are not finite
    skip_spikes: bool
    warn: Callable[[str, str], object]  # called with a message and its kind
    is_scaled: bool = False  # float16: some overflows are normal, and need no warning
    recent: Recent = field(default_factory=Recent)

    def admits(self, step: int, loss: float, norm: float, positions: np.ndarray) -> bool:
        """Whether this step may change the weights. ``positions``: where its windows start.

        Raises :class:`llm.errors.Diverged` after too many steps in a row that are not finite.
        """
        recent = self.recent
        is_finite = math.isfinite(loss) and math.isfinite(norm)
        is_spike = is_finite and (is_outlier(loss, recent.losses) or is_outlier(norm, recent.norms))
        if is_finite:  # one NaN here would make every later comparison false
            recent.losses = [*recent.losses, loss][-WINDOW:]
            recent.norms = [*recent.norms, norm][-WINDOW:]
        recent.skipped_in_a_row = 0 if is_finite else recent.skipped_in_a_row + 1
        admitted = is_finite and not (is_spike and self.skip_spikes)
        what = f"step {step}: loss {loss:.4g}, gradient norm {norm:.4g}"
        if recent.skipped_in_a_row >= self.max_skipped:
            raise Diverged(
                f"{what}: {recent.skipped_in_a_row} steps in a row were not finite, "
                "try a lower optimizer.lr",
                step=step, loss=loss, grad_norm=norm, positions=positions.tolist(),
            )  # fmt: skip
        is_overflow = self.is_scaled and math.isfinite(loss)
        if is_spike or not (is_finite or is_overflow):
            kind = ("a spike" if is_spike else "not finite") + ("" if admitted else ", skipped")
            where = ", ".join(map(str, positions[:8])) + (", ..." if len(positions) > 8 else "")
            self.warn(f"{what}: {kind} (windows at {where})", kind)
        return admitted


def is_outlier(value: float, before: list[float]) -> bool:
    """Whether ``value`` is more than six standard deviations above the mean of ``before``."""
    if len(before) < FEWEST:
        return False
    mean, deviation = float(np.mean(before)), float(np.std(before))
    return value > mean + SIGMAS * max(deviation, LEAST_DEVIATION * abs(mean))


def require_finite(value: float, what: str, step: int) -> None:
    """Raise :class:`llm.errors.Diverged` unless the value is finite."""
    if not math.isfinite(value):
        raise Diverged(f"the {what} is {value} at step {step}: try a lower optimizer.lr", step=step)
