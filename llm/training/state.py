"""Everything that training changes, as tensors and plain values: what a resume needs."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


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
