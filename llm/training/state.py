"""Everything that training changes, as tensors and plain values: what a resume needs."""

import contextlib
import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from llm.device import peak_memory_bytes
from llm.evaluation.loss import bits_per_byte
from llm.model.gpt import GPT


@dataclass
class Progress:
    """The counters of a run. Seconds are summed over interruptions."""

    step: int = 0  # optimizer steps done
    tokens: int = 0  # targets trained on
    val_loss: float | None = None
    best_val_loss: float | None = None
    best_step: int = 0
    evaluations_since_best: int = 0
    train_seconds: float = 0.0
    eval_seconds: float = 0.0
    checkpoint_seconds: float = 0.0

    @property
    def seconds(self) -> float:
        """Time spent in the loop, in all."""
        return self.train_seconds + self.eval_seconds + self.checkpoint_seconds

    @contextlib.contextmanager
    def clock(self, counter: str) -> Iterator[None]:
        """Add the seconds spent inside to one of the counters."""
        start = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, counter, getattr(self, counter) + time.perf_counter() - start)


def outcome(
    progress: Progress, model: GPT, bytes_per_token: float, device: torch.device
) -> dict[str, Any]:
    """What ``summary.json`` says of a run; ``bits_per_byte`` is that of the best loss."""
    best = progress.best_val_loss
    return {
        "step": progress.step,
        "tokens": progress.tokens,
        "parameters": model.n_parameters(),
        "best_val_loss": best,
        "val_loss": progress.val_loss,
        "bits_per_byte": None if best is None else bits_per_byte(best, bytes_per_token),
        "tokens_per_second": progress.tokens / (progress.train_seconds or math.inf),
        "peak_memory_bytes": peak_memory_bytes(device),
        "train_seconds": progress.train_seconds,
    }


def training_tensors(
    model: nn.Module, optimizer: torch.optim.Optimizer, device: torch.device
) -> dict[str, Tensor]:
    """The optimizer's state by parameter name, and the random state that dropout draws from."""
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    tensors = {
        f"optimizer/{names[parameter]}/{key}": value
        for parameter, state in optimizer.state.items()
        for key, value in state.items()
    }
    tensors["random/cpu"] = torch.get_rng_state()
    if device.type == "cuda":
        tensors["random/cuda"] = torch.cuda.get_rng_state(device)
    elif device.type == "mps":
        tensors["random/mps"] = torch.mps.get_rng_state()
    return tensors


def restore_training(
    tensors: dict[str, Tensor],
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    device: torch.device,
) -> None:
    """Undo :func:`training_tensors`; ``optimizer`` keeps the hyperparameters it was built with."""
    index = {
        parameter: place
        for place, parameter in enumerate(
            p for group in optimizer.param_groups for p in group["params"]
        )
    }
    by_name = dict(model.named_parameters())
    state: dict[int, dict[str, Any]] = {}
    for name, tensor in tensors.items():
        kind, _, rest = name.partition("/")
        if kind == "optimizer":
            parameter, _, key = rest.rpartition("/")
            state.setdefault(index[by_name[parameter]], {})[key] = tensor
    optimizer.load_state_dict(
        {"state": state, "param_groups": optimizer.state_dict()["param_groups"]}
    )
    torch.set_rng_state(tensors["random/cpu"])
    if device.type == "cuda" and "random/cuda" in tensors:
        torch.cuda.set_rng_state(tensors["random/cuda"], device)
    elif device.type == "mps" and "random/mps" in tensors:
        torch.mps.set_rng_state(tensors["random/mps"])
