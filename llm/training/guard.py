"""Keeps one bad step from ruining a run: where loss or gradients are not finite, no weight changes.

A step whose loss or gradient norm stands out from those before it, beyond their mean and six
standard deviations (as OLMo's trainer has it), is a spike: it is reported, and left
out if that is asked for.
"""

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from llm.errors import Diverged, Refused

WINDOW, FEWEST, SIGMAS = 128, 32, 6.0  # steps that are looked back on, at most and at least
STEADY = 0.01  # of the mean: a loss that has settled deviates by less, and would always stand out


def window() -> deque[float]:
    """The last values of something, oldest first."""
    return deque(maxlen=WINDOW)


@dataclass
class Guard:
    """Judges each step by its loss and its gradient norm. Its values are part of a checkpoint."""

    most_in_a_row: int  # steps left out, until the run is given up
    skip_spikes: bool
    tell: Callable[[str, str], object]  # a message, and its kind
    scaled: bool = False  # float16: an overflow now and then is how its loss scale is found
    in_a_row: int = 0
    losses: deque[float] = field(default_factory=window)
    norms: deque[float] = field(default_factory=window)

    def admits(self, step: int, loss: float, norm: float, positions: np.ndarray) -> bool:
        """Whether the weights may take this step. ``positions``: where its windows start.

        Raises :class:`llm.errors.Diverged` after too many in a row that they may not take.
        """
        finite = math.isfinite(loss) and math.isfinite(norm)
        spikes = finite and (stands_out(loss, self.losses) or stands_out(norm, self.norms))
        if finite:  # one NaN in a window would make every later comparison false
            self.losses.append(loss)
            self.norms.append(norm)
        admitted = finite and not (spikes and self.skip_spikes)
        self.in_a_row = 0 if finite else self.in_a_row + 1
        what = f"step {step}: loss {loss:.4g}, gradient norm {norm:.4g}"
        if self.in_a_row >= self.most_in_a_row:
            raise Diverged(
                f"{what}: {self.in_a_row} steps in a row were not finite, try a lower optimizer.lr",
                step=step, loss=loss, grad_norm=norm, positions=positions.tolist(),
            )  # fmt: skip
        overflows = self.scaled and math.isfinite(loss)
        if spikes or not (finite or overflows):
            where = ", ".join(map(str, positions[:8])) + (", ..." if len(positions) > 8 else "")
            how = "a spike" if spikes else "not finite"
            left_out = "" if admitted else ", left out"
            self.tell(f"{what}: {how}{left_out} (windows at {where})", f"{how}{left_out}")
        return admitted

    def to_plain(self) -> dict[str, object]:
        """The values that later judgements depend on."""
        return {
            "in_a_row": self.in_a_row,
            "losses": list(self.losses),
            "norms": list(self.norms),
        }

    def restore(self, plain: object) -> None:
        """Undo :meth:`to_plain`; :class:`llm.errors.Refused` if these are other values."""
        match plain:
            case {"in_a_row": int(row), "losses": list(losses), "norms": list(norms)}:
                counted = type(row) is int and row >= 0  # a bool is an int to Python
                if counted and all(type(x) in (int, float) for x in [*losses, *norms]):
                    self.in_a_row = row
                    self.losses, self.norms = deque(losses, WINDOW), deque(norms, WINDOW)
                    return
        raise Refused("the checkpoint has no usable guard")


def stands_out(value: float, before: deque[float]) -> bool:
    """Whether ``value`` is more than six standard deviations above the mean of those before."""
    if len(before) < FEWEST:
        return False
    values = np.array(before)
    mean, deviation = float(values.mean()), float(values.std())
    return value > mean + SIGMAS * max(deviation, STEADY * abs(mean))
