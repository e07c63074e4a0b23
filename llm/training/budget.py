"""A budget in minutes (``trainer.max_steps=null``) becomes a number of steps.

It counts the seconds of training only, not of evaluation, saving, compiling and starting. The
number is decided once, from the measured speed, and saved in the checkpoint. From then on it is
fixed, so the learning rate falls to its end and a resumed run ends with the same bits. Only a run
that takes :data:`llm.training.state.OVERRUN` times its budget is cut off.
"""

from llm.training.logger import Logger
from llm.training.options import TrainerOptions
from llm.training.schedule import EARLY, LONGEST_WARMUP, Schedule
from llm.training.state import Progress
from llm.units import minutes, plural

FEWEST = 3  # steps before the speed is known; the first one of a process is slower
ENOUGH = 20  # steps of a resumed run that say more about its speed than all of its steps


class StepBudget:
    """Knows the learning rate of each step, and decides the last step if only minutes are given."""

    def __init__(self, options: TrainerOptions, schedule: Schedule, logger: Logger) -> None:
        self.options, self.schedule, self.logger = options, schedule, logger
        self.minutes = options.max_minutes if options.max_steps is None else None
        self.steps = 0  # in this process, or since a rollback
        # (step, seconds of training) after 1, 2, 4, 8 ... of these steps: the latest two
        self.marks: list[tuple[int, float]] = []

    def share(self, step: int, progress: Progress) -> float:
        """Share of the full learning rate at ``step``."""
        if self.options.max_steps is not None:
            return self.schedule(step, self.options.max_steps)
        max_steps = progress.last_step(self.options)
        return self.schedule.in_time(step, max_steps, progress.horizon)

    def start(self, progress: Progress) -> None:
        """Called where the loop starts, also after a rollback."""
        self.marks, self.steps = [], 0
        if self.minutes is None or self.options.eval_only:
            return
        if max_steps := progress.last_step(self.options):
            self.logger.ends_at(max_steps)
        else:  # with a new budget, a resumed run may know enough to decide at once
            self._decide(progress)

    def update(self, progress: Progress) -> None:
        """Called after each step: measures the speed, and decides when it is time."""
        self.steps += 1
        is_power_of_two = self.steps & (self.steps - 1) == 0
        if is_power_of_two:
            self.marks = [*self.marks, (progress.step, progress.train_seconds)][-2:]
        if self.minutes is not None and progress.last_step(self.options) is None:
            self._decide(progress)

    def _decide(self, progress: Progress) -> None:
        """Fix the warm-up after the first seconds, and the last step when the schedule needs it."""
        assert self.minutes is not None
        step, seconds, budget = progress.step, progress.train_seconds, 60 * self.minutes
        self.logger.timed(seconds, budget)
        if seconds < EARLY * budget or (step < FEWEST and seconds < budget):
            return
        speed = self._speed(progress)
        max_steps = step + max(0, round((budget - seconds) * speed))
        horizon, schedule = progress.horizon, self.schedule
        if not horizon.warmup_decided_at:
            # At least two more steps, so that the rate does not jump.
            horizon.warmup_steps = min(LONGEST_WARMUP, max(step + 2, max_steps // 10))
            horizon.warmup_decided_at = step
        if seconds < schedule.decided_after * budget:
            return
        horizon.max_steps, horizon.minutes = max_steps, self.minutes
        horizon.full_until = step if schedule.decided_after > EARLY else 0
        why = f"{minutes(self.minutes)} at {speed:.3g} steps/s"
        self.logger.ends_at(max_steps, f"the schedule ends at step {max_steps:,}: {why}")
        warmup = schedule.warmup_steps
        if warmup is not None and warmup >= max_steps:
            steps = plural(max_steps, "step")
            self.logger.warn(f"schedule.warmup_steps={warmup} takes all of the {steps}")

    def _speed(self, progress: Progress) -> float:
        """Steps per second: of the later steps of this process, or of the whole run if this process
        has made too few of them.
        """
        is_enough = self.steps >= max(2, min(ENOUGH, progress.step))
        step, seconds = self.marks[0] if is_enough else (0, 0.0)
        return (progress.step - step) / max(1e-9, progress.train_seconds - seconds)
