"""The counters of a run, and the plain values that a checkpoint saves."""

import contextlib
import math
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from llm.checkpoint.checkpoint import Checkpoint
from llm.device import describe
from llm.errors import Refused
from llm.evaluation.loss import EvaluationProtocol
from llm.options import from_plain, option
from llm.training.guard import Recent
from llm.training.logger import Row
from llm.training.options import TrainerOptions
from llm.training.precision import LossScale
from llm.training.schedule import Horizon

OVERRUN = 2  # times max_minutes: then a run is cut off, although its schedule is not at its end
now = time.perf_counter  # the only clock that a decision of the loop may depend on


@dataclass
class Progress:
    """The counters of a run. Seconds are summed over interruptions."""

    step: int = option(0, at_least=0)  # optimizer steps done
    tokens: int = option(0, at_least=0)  # that the network read, whether their loss counts or not
    val_loss: float | None = None
    best_val_loss: float | None = None
    best_bits_per_byte: float | None = None  # of the evaluation with the best loss
    best_step: int = option(0, at_least=0)
    evaluations_since_best: int = option(0, at_least=0)
    skipped: int = option(0, at_least=0)  # steps that did not change the weights
    rollbacks: int = option(0, at_least=0)  # returns to a checkpoint; each halves the learning rate
    train_seconds: float = option(0.0, at_least=0)
    eval_seconds: float = option(0.0, at_least=0)
    checkpoint_seconds: float = option(0.0, at_least=0)
    evaluation: EvaluationProtocol | None = None  # of val_loss
    # The numbers of this step until they are logged, in case a signal interrupts; None: logged.
    row: Row | None = field(default_factory=dict)
    horizon: Horizon = field(default_factory=Horizon)  # with max_steps=null

    @property
    def seconds(self) -> float:
        """All time spent in the loop."""
        return self.train_seconds + self.eval_seconds + self.checkpoint_seconds

    def last_step(self, options: TrainerOptions) -> int | None:
        """The number of steps of the run; None: not decided yet."""
        return options.max_steps or self.horizon.last_step(options.max_minutes)

    def steps_left(self, options: TrainerOptions) -> int:
        """Steps still to do; a very large number while the last step is not decided."""
        return 0 if options.eval_only else (self.last_step(options) or sys.maxsize) - self.step

    def is_due(self, interval: int | None, is_last: bool = False) -> bool:
        """Whether something that happens every ``interval`` steps, and at the last, is due now."""
        return is_last or (interval is not None and self.step % interval == 0)

    def is_over(self, options: TrainerOptions) -> bool:
        """Whether the steps or the minutes are used up."""
        return self.step >= (self.last_step(options) or math.inf) or self.is_out_of_time(options)

    def is_out_of_time(self, options: TrainerOptions) -> bool:
        """Whether training took ``max_minutes``, or :data:`OVERRUN` times that if they alone are
        given.
        """
        limit = 60 * (options.max_minutes or math.inf)
        return self.train_seconds >= limit * (OVERRUN if options.max_steps is None else 1)

    def is_out_of_patience(self, options: TrainerOptions) -> bool:
        """Whether the validation loss has not improved for too many evaluations."""
        return self.evaluations_since_best >= (options.patience or math.inf)

    def why_ended(self, options: TrainerOptions) -> str | None:
        """The option that ended the run before its last step, if one did."""
        if options.eval_only or self.step >= (self.last_step(options) or math.inf):
            return None
        if self.is_out_of_patience(options):
            return f"trainer.patience={options.patience} evaluations without a better loss"
        if self.is_out_of_time(options):
            minutes = f"trainer.max_minutes={options.max_minutes:g}"
            if options.max_steps is None:
                return f"{minutes}: training took {OVERRUN} times that, its schedule was cut off"
            return f"{minutes} are used up"
        return None

    def take_counts(self, origin: Checkpoint) -> None:
        """Take the steps and tokens of ``origin``, whose weights are evaluated, not trained."""
        before = from_plain(Progress, origin.state.get("progress"), f"{origin.path}: progress.")
        self.step, self.tokens = origin.step, before.tokens

    def record(self, loss: float, bits_per_byte: float | None) -> bool:
        """Count an evaluation; returns whether its loss is the lowest so far."""
        self.val_loss = loss
        is_best = self.best_val_loss is None or loss < self.best_val_loss
        self.evaluations_since_best = 0 if is_best else self.evaluations_since_best + 1
        if is_best:
            self.best_val_loss, self.best_bits_per_byte = loss, bits_per_byte
            self.best_step = self.step
        return is_best

    @property
    def counts(self) -> Row:
        """The first numbers of each row of metrics."""
        return {"step": self.step, "tokens": self.tokens, "train_seconds": self.train_seconds}

    def summary(self) -> dict[str, Any]:
        """The counters as ``summary.json`` names them."""
        return {
            "step": self.step,
            "tokens": self.tokens,
            "best_val_loss": self.best_val_loss,
            "val_loss": self.val_loss,
            "bits_per_byte": self.best_bits_per_byte,
            "evaluation": None if self.evaluation is None else asdict(self.evaluation),
            "tokens_per_second": self.tokens / (self.train_seconds or math.inf),
            "train_seconds": self.train_seconds,
        }

    @contextlib.contextmanager
    def clock(self, counter: str) -> Iterator[None]:
        """Add the seconds spent inside to one of the counters."""
        start = now()
        try:
            yield
        finally:
            setattr(self, counter, getattr(self, counter) + now() - start)

    def rolled_back_from(self, before: "Progress") -> None:
        """After a rollback, take the counters that it must not reset from ``before``."""
        self.rollbacks = before.rollbacks + 1
        for counter in ("train_seconds", "eval_seconds", "checkpoint_seconds"):
            setattr(self, counter, getattr(before, counter))  # discarded steps took time too
        self.horizon = before.horizon  # a decision is taken once
        self.evaluation = self.evaluation or before.evaluation
        if before.best_val_loss is not None and before.best_step > self.best_step:
            # The best weights are still on the disk, and nothing worse may replace them.
            for best in ("best_val_loss", "best_bits_per_byte", "best_step"):
                setattr(self, best, getattr(before, best))


@dataclass
class PlainState:
    """The plain values of a trainer's ``state_dict()``."""

    progress: Progress
    guard: Recent
    loss_scale: LossScale
    groups: list[dict[str, Any]]  # values in param_groups that a custom optimizer changes
    run_id: str  # in W&B
    environment: dict[str, str]


def read_run_id(plain: Any, where: str = "the checkpoint's run_id") -> str:
    """The id of the run in W&B, which becomes part of a path; :class:`llm.errors.Refused` if
    ``plain`` cannot be one.
    """
    if isinstance(plain, str) and re.fullmatch(r"[A-Za-z0-9_-]{1,128}", plain):
        return plain
    raise Refused(f"{where} is not an id of letters, digits, _ and -: {plain!r:.60}")


def environment(device: torch.device) -> dict[str, str]:
    """The versions and hardware on which the last bits of the results depend."""
    return {"torch": str(torch.__version__), "device": describe(device)}
