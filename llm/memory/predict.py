"""How many bytes a run will hold at its peak, from its options alone and without torch."""

import math
from dataclasses import dataclass

from llm.checkpoint.shapes import weight_shapes
from llm.model.config import GPTConfig

Lines = dict[str, int]  # what takes how many bytes


@dataclass(frozen=True)
class Setup:
    """Everything that the memory of a run depends on."""

    model: GPTConfig  # resolved
    optimizer: str = "adamw"  # or muon
    state_bits: int = 32  # of AdamW's running means
    precision: str = "fp32"  # fp32 | bf16 | fp16 | bf16_weights
    batch_size: int = 8  # sequences per optimizer step
    micro_batch: int = 8  # sequences per forward pass
    activation_checkpointing: str = "none"
    step_in_backward: bool = False
    clipped: bool = True  # trainer.grad_clip > 0
    compile: bool = False
    device: str = "cpu"  # or cuda
    samples: bool = False  # whether text is written during training


@dataclass(frozen=True)
class Prediction:
    """Bytes at the peak of each kind of work, line by line; ``reserve`` comes on top of each."""

    moments: dict[str, Lines]  # "training step", "evaluation", "sample", "checkpoint"
    reserve: Lines

    @property
    def peak(self) -> str:
        """The kind of work that takes most."""
        return max(self.moments, key=lambda name: sum(self.moments[name].values()))

    @property
    def lines(self) -> Lines:
        """What is held at the peak."""
        return self.moments[self.peak] | self.reserve

    @property
    def total(self) -> int:
        """Bytes at the peak, the reserve among them."""
        return sum(self.lines.values())


def predict(setup: Setup, reserve: Lines) -> Prediction:
    """The peak of ``setup``. ``reserve``: what is no tensor, as named lines."""
    n = sum(map(math.prod, weight_shapes(setup.model).values()))  # to be made exact
    return Prediction({"training step": {"weights": 4 * n, "optimizer state": 8 * n}}, reserve)
