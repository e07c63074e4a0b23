"""Rotary positions. The backward pass rotates back and needs no tensor of the forward pass."""

from typing import Any

import torch
from torch import Tensor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + D/2) of ``x`` (B, H, T, D) by the angles of their positions.

    ``cos`` and ``sin`` are (T, D), or (B, 1, T, D) if rows differ in their positions. Autograd
    takes about twice as long at width 768 on a CPU (python -m benchmarks.functional, rotate_*).
    """
    if x.dtype == cos.dtype and not torch.compiler.is_compiling():
        apply: Any = _Rotation.apply  # torch has no types for it
        out: Tensor = apply(x, cos, sin)
        return out
    low, high = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-high, low], dim=-1) * sin).to(x.dtype)


class _Rotation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(incoming[0], cos, -sin), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    (low, high), out = x.chunk(2, dim=-1), torch.empty_like(x)
    (c, _), (s, _) = cos.chunk(2, dim=-1), sin.chunk(2, dim=-1)
    new_low, new_high = out.chunk(2, dim=-1)
    torch.mul(low, c, out=new_low).addcmul_(high, s, value=-1)
    torch.mul(high, c, out=new_high).addcmul_(low, s)
    return out
