"""An adapter's two thin products. Their gradients are faster than autograd's."""

from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from llm.functional.linear import product


class Packed(Protocol):
    """A matrix in few bits: see :mod:`llm.model.quantised`."""

    def dense(self) -> Tensor:
        """The matrix in float32."""


def dense(weight: Tensor | Packed) -> Tensor:
    """The matrix, in full precision if it is quantised."""
    return weight if isinstance(weight, Tensor) else weight.dense()


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


def adapted(
    x: Tensor, weight: Tensor | Packed, low: Tensor, b: Tensor, bias: Tensor | None = None
) -> Tensor:
    """x (N, in) @ weight (out, in).T + bias + low (N, rank) @ b (out, rank).T, in low's type.

    Weight and bias get no gradient. Nothing goes through save_for_backward, so a recomputed MLP
    (llm/functional/recompute.py) stops before this product; ``low`` stays until the graph is freed.
    b must not change before the backward pass.
    """
    if torch.compiler.is_compiling() and isinstance(weight, Tensor):
        return F.linear(x, weight, bias) + F.linear(low, b)
    apply: Any = _Adapted.apply
    out: Tensor = apply(x, weight, low, b, bias)
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


class _Adapted(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | Packed, low: Tensor, b: Tensor, bias: Tensor | None
    ) -> Tensor:
        ctx.weight, ctx.low, ctx.b = weight, low, b
        out = product(x.to(low.dtype), dense(weight).to(low.dtype))
        if bias is not None:
            out += bias.to(out.dtype)
        return out.addmm_(low, b.to(out.dtype).t())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        gradient, for_x = incoming[0], None
        if ctx.needs_input_grad[0]:
            for_x = product(gradient, dense(ctx.weight).to(gradient.dtype).t())
        # Reads the large gradient row by row, unlike gradient.T @ low.
        for_b = (ctx.low.t() @ gradient).t().to(ctx.b.dtype)
        return for_x, None, gradient @ ctx.b.to(gradient.dtype), for_b, None
