"""An adapter's two thin products. Their gradients are faster than autograd's."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def narrowed(x: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
    """x (N, in) @ a (rank, in).T, and x itself for one other matrix product.

    Autograd would make two gradients of x and add them. Here the gradient that comes from the other
    product is changed in place, so nothing else may read the second output.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return F.linear(x, a), x
    apply: Any = _Narrowed.apply  # torch has no types for it
    low, same = apply(x, a)
    return low, same


def widened(low: Tensor, b: Tensor, bias: Tensor | None = None) -> Tensor:
    """low (N, rank) @ b (out, rank).T + bias, which gets no gradient.

    The gradient of b is computed as low.T @ gradient, which reads the large gradient row by row.
    """
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return F.linear(low, b, bias)
    apply: Any = _Widened.apply
    out: Tensor = apply(low, b, bias)
    return out


class _Narrowed(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(x, a)
        if not ctx.needs_input_grad[0]:
            ctx.mark_non_differentiable(x)
        return F.linear(x, a), x

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, Tensor]:
        (x, a), (for_low, for_x) = ctx.saved_tensors, incoming
        for_a = (for_low.t() @ x.to(for_low.dtype)).to(a.dtype)
        if not ctx.needs_input_grad[0]:
            return None, for_a
        return for_x.addmm_(for_low.to(for_x.dtype), a.to(for_x.dtype)), for_a


class _Widened(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, low: Tensor, b: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(low, b)
        return F.linear(low, b, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor, Tensor, None]:
        (low, b), gradient = ctx.saved_tensors, incoming[0]
        for_b = (low.t() @ gradient).t().to(b.dtype)
        return gradient @ b.to(gradient.dtype), for_b, None
