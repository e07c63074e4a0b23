"""The options of the training loop, as plain values."""

from dataclasses import dataclass

from llm.errors import require
from llm.model.config import CHECKPOINTED
from llm.options import option

LARGEST_BATCH = 1 << 20  # sequences: the positions of 64 batches are computed at once


@dataclass
class TrainerOptions:
    """Settings of :class:`llm.training.trainer.Trainer`; intervals in steps, None for never.

    conf/trainer/default.yaml explains each key.
    """

    max_steps: int | None = option(1000, at_least=1)  # None: max_minutes decides
    max_minutes: float | None = option(None, more_than=0)
    batch_size: int = option(8, at_least=1, at_most=LARGEST_BATCH)
    micro_batch_size: int | None = option(None, at_least=1)
    grad_clip: float = option(1.0, at_least=0)
    max_skipped: int = option(20, at_least=1)
    skip_spikes: bool = False
    rollbacks: int = option(0, at_least=0)
    eval_interval: int = option(200, at_least=1)
    eval_batches: int | None = option(40, at_least=1)
    eval_only: bool = False
    log_interval: int = option(20, at_least=1)
    checkpoint_interval: int | None = option(200, at_least=1)
    keep_last: int = option(2, at_least=1)
    patience: int | None = option(None, at_least=1)
    activation_checkpointing: str = option("none", one_of=CHECKPOINTED)
    step_in_backward: bool = False
    compile: bool = False
    profile: bool = False
    device: str = "auto"
    deterministic: bool = False
    sample_interval: int | None = option(None, at_least=1)
    overfit_batches: int = option(0, at_least=0)

    @property
    def micro_batch(self) -> int:
        """Sequences per forward pass."""
        return self.micro_batch_size or self.batch_size

    def cross_check(self) -> None:
        """Raise :class:`llm.errors.Refused` for values that do not go together."""
        require(
            self.max_steps is not None or self.max_minutes is not None,
            "trainer.max_steps=null needs a budget: set trainer.max_minutes",
        )
        require(
            self.batch_size % self.micro_batch == 0,
            f"trainer.micro_batch_size={self.micro_batch} does not divide "
            f"trainer.batch_size={self.batch_size}",
        )
        require(
            not self.step_in_backward or self.micro_batch == self.batch_size,
            "trainer.step_in_backward=true cannot add up the gradients of micro-batches: leave out "
            "trainer.micro_batch_size, or set it to trainer.batch_size",
        )
        require(
            not (self.step_in_backward and self.compile),
            "trainer.compile=true computes all gradients at once, so that "
            "trainer.step_in_backward=true saves nothing: take one of the two",
        )
