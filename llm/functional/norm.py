"""RMSNorm for CPUs, for which torch has no fused kernel."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x^2) + eps) * weight over the last dimension (arXiv:1910.07467).

    torch's takes twice as long at width 768 on a CPU (python -m benchmarks.functional, rms_norm_*).
    """
    if x.dtype != weight.dtype or x.device.type != "cpu" or torch.compiler.is_compiling():
        return F.rms_norm(x, weight.shape, weight, eps)
    if not torch.is_grad_enabled():  # autograd takes longer than the work of a single token
        return _normalised(x, weight, eps)[0]
    apply: Any = _RMSNorm.apply  # torch has no types for it
    out: Tensor = apply(x, weight, eps)
    return out


def _normalised(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_()
    scale.div_(x.shape[-1]).add_(eps).rsqrt_()
    return (x * scale).mul_(weight), scale


class _RMSNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        out, scale = _normalised(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (x, weight, scale), gradient = ctx.saved_tensors, incoming[0]
        for_weight = None
        if ctx.needs_input_grad[1]:  # not frozen
            for_weight = (gradient * x).mul_(scale).flatten(0, -2).sum(0)
        if not ctx.needs_input_grad[0]:
            return None, for_weight, None
        for_x = gradient * weight
        # No gradient along x, because scaling x does not change the output.
        along = (for_x * x).sum(-1, keepdim=True)
        for_x.mul_(scale).addcmul_(x, along * scale**3, value=-1 / x.shape[-1])
        return for_x, for_weight, None
