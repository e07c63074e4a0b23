"""SwiGLU's activation, with fewer tensors than autograd makes."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def gated(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) * up, of tensors of one shape and type (arXiv:2002.05202).

    Only the two inputs are stored. The incoming gradient is changed in place, so nothing else may
    read it: give the output to matrix products.
    """
    if torch.compiler.is_compiling():
        return F.silu(gate) * up
    if not torch.is_grad_enabled():
        return F.silu(gate).mul_(up)
    apply: Any = _Gated.apply  # torch has no types for it
    out: Tensor = apply(gate, up)
    return out


class _Gated(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return F.silu(gate).mul_(up)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor, Tensor]:
        (gate, up), gradient = ctx.saved_tensors, incoming[0]
        for_up = F.silu(gate).mul_(gradient)
        silu_backward: Any = torch.ops.aten.silu_backward.grad_input  # torch has no types for it
        for_gate: Tensor = silu_backward(gradient.mul_(up), gate, grad_input=gradient)
        return for_gate, for_up
