"""Everything that training changes, as tensors and plain values: what a resume needs."""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, get_args

import torch
from torch import Tensor, nn

from llm.device import peak_memory_bytes, reserved_memory_bytes
from llm.errors import require
from llm.model.gpt import GPT
from llm.training.optimizer import Layout, Optimizer
from llm.training.options import TrainerOptions
from llm.training.random_state import random_tensors, restore_random


@dataclass
class Progress:
    """The counters of a run. Seconds are summed over interruptions."""

    step: int = 0  # optimizer steps done
    tokens: int = 0  # targets trained on
    val_loss: float | None = None
    best_val_loss: float | None = None
    best_bits_per_byte: float | None = None  # of the evaluation with that loss
    best_step: int = 0
    evaluations_since_best: int = 0
    skipped: int = 0  # steps that the weights did not take
    rollbacks: int = 0  # times that the run went back to a checkpoint; each halves the rate
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    checkpoint_seconds: float = 0.0

    @classmethod
    def from_plain(cls, plain: Any) -> "Progress":
        """From the values of a checkpoint; :class:`llm.errors.Refused` if these are others."""
        types = {field.name: field.type for field in fields(cls)}
        same = isinstance(plain, dict) and set(plain) == set(types)
        require(same, "the checkpoint has no usable progress")
        for key, value in plain.items():
            kind: Any = types[key]
            right = type(value) in (get_args(kind) or (kind,))
            right = right and (value is None or value >= 0)
            require(right, f"the checkpoint has progress.{key}={value!r}")
        return cls(**plain)

    @property
    def seconds(self) -> float:
        """Time spent in the loop, in all."""
        return self.train_seconds + self.eval_seconds + self.checkpoint_seconds

    def is_out_of_time(self, options: TrainerOptions) -> bool:
        """Whether the minutes are used up."""
        return self.seconds >= 60 * (options.max_minutes or math.inf)

    def is_out_of_patience(self, options: TrainerOptions) -> bool:
        """Whether the validation loss has not improved for too many evaluations."""
        return self.evaluations_since_best >= (options.patience or math.inf)

    @contextlib.contextmanager
    def clock(self, counter: str) -> Iterator[None]:
        """Add the seconds spent inside to one of the counters."""
        start = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, counter, getattr(self, counter) + time.perf_counter() - start)


def outcome(progress: Progress, model: GPT, device: torch.device) -> dict[str, Any]:
    """What ``summary.json`` says of a run; ``bits_per_byte`` is that of the best loss."""
    return {
        "step": progress.step,
        "tokens": progress.tokens,
        "parameters": model.n_parameters(),
        "best_val_loss": progress.best_val_loss,
        "val_loss": progress.val_loss,
        "bits_per_byte": progress.best_bits_per_byte,
        "tokens_per_second": progress.tokens / (progress.train_seconds or math.inf),
        "peak_memory_bytes": peak_memory_bytes(device),
        "reserved_memory_bytes": reserved_memory_bytes(device),
        "train_seconds": progress.train_seconds,
    }


def why_ended(progress: Progress, options: TrainerOptions) -> str | None:
    """Which option ended a run before ``max_steps``; None if no option did."""
    if options.eval_only or progress.step >= options.max_steps:
        return None
    if progress.is_out_of_patience(options):
        return f"trainer.patience={options.patience} evaluations without a better loss"
    if progress.is_out_of_time(options):
        return f"trainer.max_minutes={options.max_minutes:g} are used up"
    return None


def training_tensors(
    model: nn.Module, optimizer: Optimizer, device: torch.device
) -> dict[str, Tensor]:
    """The optimizer's state by parameter name, and the state of each random generator."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    # Once there is some state, also that of what has had no finite gradient yet.
    tensors = {
        f"optimizer/{names[parameter]}/{key}": value
        for parameter in (optimizer.group_of if optimizer.state else ())
        for key, value in optimizer.kept(parameter).items()
    }
    return tensors | random_tensors(device)


def training_bytes(optimizer: Optimizer) -> int:
    """What the optimizer's part of the tensors above will take, told before the first step."""
    return sum(
        math.prod(shape) * dtype.itemsize
        for parameter in optimizer.group_of
        for shape, dtype in optimizer.layout(parameter).values()
    )


def restore_training(
    tensors: dict[str, Tensor], model: nn.Module, optimizer: Optimizer, device: torch.device
) -> None:
    """Undo :func:`training_tensors`; ``optimizer`` keeps the hyperparameters it was built with.

    Raises :class:`llm.errors.Refused` for the state of another optimizer, or a part of one's.
    """
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    state: dict[str, dict[str, Tensor]] = {names[p]: {} for p in optimizer.group_of}
    unusable = "the checkpoint holds no usable state of this optimizer"
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "optimizer":
            parameter, _, key = rest.rpartition("/")
            require(parameter in state, unusable)
            state[parameter][key] = tensor
    found = [{n: (tuple(t.shape), t.dtype) for n, t in kept.items()} for kept in state.values()]
    if any(found):  # an optimizer that has not stepped has no state
        if not optimizer.is_own:
            wanted = [optimizer.layout(parameter) for parameter in optimizer.group_of]
            bits, own = _bits(found), _bits(wanted)
            advice = f"the checkpoint's state has {bits} bits: set optimizer.state_bits={bits}"
            require(bits == own, f"optimizer.state_bits={own}, and {advice}")
        require(optimizer.accepts(found), unusable)
    optimizer.restore(state.values())
    restore_random(tensors, device)


def _bits(layouts: list[Layout]) -> int:
    types = {dtype for layout in layouts for _, dtype in layout.values()}
    return 8 if torch.uint8 in types else 32
