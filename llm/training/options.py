"""How long, in which portions and how closely watched a run trains, as plain values."""

from dataclasses import dataclass

from llm.errors import require
from llm.model.config import CHECKPOINTED

AT_LEAST_ONE = (
    "max_steps", "batch_size", "micro_batch_size", "eval_interval", "eval_batches", "log_interval",
    "checkpoint_interval", "keep_last", "patience", "sample_interval", "max_skipped",
)  # fmt: skip

LARGEST_BATCH = 1 << 20  # sequences: the places of 64 batches are computed at once


@dataclass
class TrainerOptions:
    """Settings of :class:`llm.training.trainer.Trainer`; intervals in steps, None for never."""

    max_steps: int = 1000
    max_minutes: float | None = None
    batch_size: int = 8  # sequences per optimizer step
    micro_batch_size: int | None = None  # sequences per forward pass; None: batch_size
    grad_clip: float = 1.0  # 0: none
    max_skipped: int = 20  # steps in a row whose loss or gradients are not finite
    skip_spikes: bool = False  # leave out steps that stand out from those before
    rollbacks: int = 0  # how often a run that diverges goes back, at half the rate
    eval_interval: int = 200
    eval_batches: int | None = 40  # of 8 sequences; None: the whole split
    eval_only: bool = False
    log_interval: int = 20
    checkpoint_interval: int | None = 200
    keep_last: int = 2
    patience: int | None = None  # evaluations without a better loss before stopping
    activation_checkpointing: str = "none"
    step_in_backward: bool = False  # each weight is updated as soon as its gradient is there
    compile: bool = False
    profile: bool = False
    device: str = "auto"
    deterministic: bool = False
    sample_interval: int | None = None
    overfit_batches: int = 0  # train on this many batches only: does the loss go to zero?

    @property
    def micro_batch(self) -> int:
        """Sequences per forward pass."""
        return self.micro_batch_size or self.batch_size

    def check(self) -> None:
        """Raise :class:`llm.errors.Refused` naming the first value that makes no sense."""
        for key in AT_LEAST_ONE:
            value = getattr(self, key)
            require(value is None or value >= 1, f"trainer.{key}={value} must be at least 1")
        size = self.batch_size
        require(size <= LARGEST_BATCH, f"trainer.batch_size={size} is more than {LARGEST_BATCH}")
        for key in ("grad_clip", "overfit_batches", "rollbacks"):
            require(
                getattr(self, key) >= 0, f"trainer.{key}={getattr(self, key)} must be 0 or more"
            )
        require(
            self.activation_checkpointing in CHECKPOINTED,
            f"trainer.activation_checkpointing={self.activation_checkpointing} is unknown: "
            f"take one of {', '.join(CHECKPOINTED)}",
        )
        minutes = self.max_minutes
        require(
            minutes is None or minutes > 0, f"trainer.max_minutes={minutes} must be more than 0"
        )
        require(
            self.batch_size % self.micro_batch == 0,
            f"trainer.micro_batch_size={self.micro_batch} does not divide "
            f"trainer.batch_size={self.batch_size}",
        )
        require(
            not self.step_in_backward or self.micro_batch == self.batch_size,
            "trainer.step_in_backward=true cannot sum up the gradients of micro-batches: leave out "
            "trainer.micro_batch_size, or take it and trainer.batch_size alike",
        )
        require(
            not (self.step_in_backward and self.compile),
            "trainer.compile=true computes all gradients at once, before "
            "trainer.step_in_backward=true could use one: take one of the two",
        )
