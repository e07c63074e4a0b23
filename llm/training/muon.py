"""Muon for the matrices of the layers, AdamW for everything else, as one optimizer.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) replaces the momentum of a
matrix by the nearest orthogonal one: every direction is then learned at the same rate, not only
the few that dominate the gradient.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw as adamw_step

# Each iteration maps a singular value s to a s + b s^3 + c s^5. These numbers, from Jordan's page,
# raise small ones fastest and leave all within about 0.7 to 1.2, as good as 1 for learning.
QUINTIC = (3.4445, -4.7750, 2.0315)


@torch.no_grad()
def orthogonalise(matrices: Tensor, ns_steps: int) -> Tensor:
    """The orthogonal factors of ``matrices`` (N, rows, columns), nearly: Newton-Schulz iteration.

    All of a shape at once and in their own precision: torch.optim.Muon takes them one by one in
    bfloat16, which most CPUs compute slower than float32 (benchmarks/muon.py measures both).
    """
    a, b, c = QUINTIC
    wide = matrices.shape[-2] <= matrices.shape[-1]
    x = matrices if wide else matrices.mT
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(ns_steps):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x if wide else x.mT


class Muon(torch.optim.Optimizer):
    """Steps the groups with ``"muon": True`` by Muon, one shape a group, and the rest by AdamW."""

    def __init__(self, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, defaults={})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]  # torch has overloads for a closure
        """Update all parameters that have a gradient; a ``closure`` is not supported."""
        if closure is not None:
            raise ValueError("Muon takes no closure")
        for group in self.param_groups:
            with_gradient = [p for p in group["params"] if p.grad is not None]
            if with_gradient:
                update = self._muon_step if group["muon"] else self._adamw_step
                update(group, with_gradient)

    def _muon_step(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        momentum = group["momentum"]
        gradient = torch.stack([p.grad for p in parameters if p.grad is not None]).float()
        running = [self._state(p, "momentum") for p in parameters]
        mean = torch.stack(running).lerp_(gradient, 1 - momentum)
        torch._foreach_copy_(running, list(mean))
        # Nesterov: the gradient once more, as if the next one were the same.
        direction = orthogonalise(gradient.lerp_(mean, momentum), group["ns_steps"])
        rows, columns = direction.shape[-2:]
        # A step of spectral norm sqrt(rows / columns) changes the output as much at every width, so
        # that rates carry over (Yang et al. 2023, arXiv:2310.17813). Jordan's form: where a matrix
        # has more columns than rows, 1 instead.
        size = group["lr"] * max(1.0, rows / columns) ** 0.5
        torch._foreach_mul_(parameters, 1 - group["lr"] * group["weight_decay"])
        torch._foreach_add_(parameters, list(direction.to(parameters[0].dtype)), alpha=-size)

    def _adamw_step(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        adamw_step(
            parameters,
            [p.grad for p in parameters if p.grad is not None],
            [self._state(p, "exp_avg") for p in parameters],
            [self._state(p, "exp_avg_sq") for p in parameters],
            [],
            [self._state(p, "step", scalar=True) for p in parameters],
            fused=group["fused"],
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=1e-10,
            maximize=False,
        )

    def _state(self, parameter: Tensor, key: str, scalar: bool = False) -> Tensor:
        """A value kept for a parameter from step to step, zero at first."""
        state, size = self.state[parameter], () if scalar else parameter.shape
        if key not in state:
            state[key] = torch.zeros(size, dtype=torch.float32, device=parameter.device)
        value: Tensor = state[key]
        return value


def split(model: nn.Module) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """Trained parameters of a model: matrices of its layers, embeddings, head, all others."""
    kinds: dict[str, list[Tensor]] = {"matrix": [], "embedding": [], "head": [], "other": []}
    seen: set[Tensor] = set()
    for name, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad or parameter in seen:
                continue
            seen.add(parameter)
            kind = "other"
            if own == "weight" and isinstance(module, nn.Embedding):
                kind = "embedding"
            elif own == "weight" and isinstance(module, nn.Linear):
                kind = "head" if name == "head" else "matrix"
            kinds[kind].append(parameter)
    return kinds["matrix"], kinds["embedding"], kinds["head"], kinds["other"]
