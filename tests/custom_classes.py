"""Custom optimizers, schedules and loggers, as a user would write them."""

from pathlib import Path
from typing import Any

import torch
from torch import Tensor


class Lion(torch.optim.Optimizer):
    """Chen et al. 2023, arXiv:2302.06675, with numbers of every kind in its state."""

    def __init__(
        self, params: Any, lr: float, betas: Any = (0.9, 0.99), weight_decay: float = 0.0
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "weight_decay": weight_decay, "k": 0, "d": 1.0}
        super().__init__(params, defaults)

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch's returns a loss
        """A step of the same size for each weight, along the sign of the mean."""
        for group in self.param_groups:
            group["k"] += 1
            group["d"] *= 0.99
            for p in group["params"]:
                if p.grad is not None:
                    self.update(p, p.grad, group, self.state[p])

    def update(self, p: Tensor, gradient: Tensor, group: Any, state: Any) -> None:
        if not state:
            state |= {"mean": torch.zeros_like(p), "count": 0, "sum": 0.0, "nothing": None}
        state["count"] += 1
        state["sum"] += 0.1
        if state["count"] == 5:  # missing in the first steps
            state["slow"] = p.detach().clone()
        rate = group["lr"] * group["d"] * (1 + 0.01 * (group["k"] % 3) + 1e-3 * state["sum"])
        first, second = group["betas"]
        direction = state["mean"].mul(first).add(gradient, alpha=1 - first).sign_()
        p.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-rate)
        if "slow" in state:
            p.lerp_(state["slow"], 0.01)
        state["mean"].mul_(second).add_(gradient, alpha=1 - second)


class Factored(torch.optim.Optimizer):
    """Keeps the mean square of rows and columns only (Shazeer & Stern 2018, arXiv:1804.04235)."""

    def __init__(self, params: Any, lr: float) -> None:
        super().__init__(params, {"lr": lr})

    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # torch's returns a loss
        """Scale the gradient by the product of both."""
        for group in self.param_groups:
            for p in group["params"]:
                square = p.grad.square() + 1e-12
                state = self.state[p]
                if p.dim() == 2:
                    state["row"], state["column"] = square.mean(1), square.mean(0)
                    square = torch.outer(state["row"], state["column"]) / state["row"].mean()
                p.sub_(p.grad * square.rsqrt(), alpha=group["lr"])


class NeedsClosure(Lion):
    """Its step needs a closure, as in L-BFGS."""

    def step(self, closure: Any) -> None:  # type: ignore[override]
        """Call ``closure``."""
        closure()


class KeepsAList(Lion):
    """Its state has a list, which no checkpoint can hold."""

    def update(self, p: Tensor, gradient: Tensor, group: Any, state: Any) -> None:
        state["history"] = [gradient]


class Blocks(Lion):
    """Its state has a shape that does not follow from the weight's."""

    def update(self, p: Tensor, gradient: Tensor, group: Any, state: Any) -> None:
        state["blocks"] = torch.zeros(-(-p.numel() // 256))


class Hoards(Lion):
    """Its state holds 20 copies of each weight."""

    def update(self, p: Tensor, gradient: Tensor, group: Any, state: Any) -> None:
        state["copies"] = torch.stack([gradient] * 20)


def halving(step: int, max_steps: int, every: int) -> float:
    """A schedule as a function."""
    return float(0.5 ** ((step - 1) // every))


class Linear:
    """A schedule as a class."""

    def __init__(self, end: float) -> None:
        self.end = end

    def __call__(self, step: int, max_steps: int) -> float:
        return 1 - (1 - self.end) * step / max_steps


class Lines:
    """A logger that writes the losses into a file of the run folder."""

    def __init__(self, file: str, folder: Path, config: dict[str, Any]) -> None:
        self.path = folder / file
        self.name = config["optimizer"]["option"]

    def log(self, row: dict[str, Any]) -> None:
        """A line for each evaluation."""
        if "val/loss" in row:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(f"{self.name} {row['step']} {row['val/loss']}\n")

    def close(self, exit_code: int) -> None:
        """Write the exit code."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(f"end {exit_code}\n")


class Fails:
    """A logger whose server is gone."""

    def log(self, row: dict[str, Any]) -> None:
        """Raise."""
        raise ConnectionError("no route to host")
