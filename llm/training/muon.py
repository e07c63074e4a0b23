"""Muon, for the matrices of the layers.

Muon (Jordan et al. 2024, https://kellerjordan.github.io/posts/muon) replaces the momentum of a
matrix by the nearest orthogonal matrix: every direction is then learned at the same rate, not only
the few that dominate the gradient.
"""

from typing import Any

import torch
from torch import Tensor, nn

from llm.functional.sizes import STACKED
from llm.training.rounding import in_float32, portions

# Each iteration maps a singular value s to a s + b s^3 + c s^5. These numbers, from Jordan's page,
# raise small ones fastest and leave all within about 0.7 to 1.2, as good as 1 for learning.
QUINTIC = (3.4445, -4.7750, 2.0315)


def orthogonalise(x: Tensor, ns_steps: int) -> Tensor:
    """The orthogonal factors of matrices (N, rows, columns), nearly: Newton-Schulz iteration.

    Iterates on the whole stack and in float32: torch.optim.Muon takes one matrix after another and
    bfloat16, in which most CPUs are slower (benchmarks/muon.py measures both).
    """
    a, b, c = QUINTIC
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(ns_steps):
        square = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(square, square, square, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def muon_step(parameters: list[Tensor], momenta: list[Tensor], group: dict[str, Any]) -> None:
    """One step from the gradients of matrices of one shape; changes their ``momenta`` in place.

    A stack has up to ``STACKED`` numbers: many small matrices at once for speed, few large ones to
    save memory.
    """
    count = max(1, STACKED // parameters[0].numel())
    for start in range(0, len(parameters), count):
        part = slice(start, start + count)
        _step_together(parameters[part], momenta[part], group)


def _step_together(parameters: list[Tensor], momenta: list[Tensor], group: dict[str, Any]) -> None:
    # No variable refers to the average, so that orthogonalise can free it once it is normalised.
    directions = orthogonalise(averaged(parameters, momenta, group["momentum"]), group["ns_steps"])
    rows, columns = directions.shape[-2:]
    # A step of spectral norm sqrt(rows / columns) changes the output equally at every width, so
    # that learning rates transfer (Yang et al. 2023, arXiv:2310.17813). Jordan's factor is at least
    # 1.
    size = group["lr"] * max(1.0, rows / columns) ** 0.5
    decay = 1 - group["lr"] * group["weight_decay"]
    for parameter, direction in zip(parameters, directions, strict=True):
        for weights, change in portions(parameter, direction.contiguous()):
            with in_float32(weights) as wide:
                wide.mul_(decay).add_(change, alpha=-size)


def averaged(parameters: list[Tensor], momenta: list[Tensor], momentum: float) -> Tensor:
    """Nesterov's average of the gradients (N, rows, columns) in float32; updates ``momenta``.

    The current gradient counts twice, as if the next one were the same.
    """
    like = momenta[0]
    stack = torch.empty((len(parameters), *like.shape), dtype=like.dtype, device=like.device)
    gradients = list(stack)
    torch._foreach_copy_(gradients, [p.grad for p in parameters if p.grad is not None])
    torch._foreach_lerp_(momenta, gradients, 1 - momentum)
    torch._foreach_lerp_(gradients, momenta, momentum)
    return stack


def split(model: nn.Module) -> tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]:
    """The trained parameters: matrices of the layers, embeddings, head, all others.

    Adapters are among the others: B starts at zero and A B has a low rank, so an orthogonal step of
    A or of B alone would not be one of their product.
    """
    kinds: dict[str, list[Tensor]] = {"matrix": [], "embedding": [], "head": [], "other": []}
    for name, module in model.named_modules():
        for own, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            kind = "other"
            if own == "weight" and isinstance(module, nn.Embedding):
                kind = "embedding"
            elif own == "weight" and isinstance(module, nn.Linear):
                kind = "head" if name == "head" else "matrix"
            kinds[kind].append(parameter)
    return kinds["matrix"], kinds["embedding"], kinds["head"], kinds["other"]
