"""Rotary positions. The backward pass rotates back and needs no tensor of the forward pass."""

import math
from typing import Any

import torch
from torch import Tensor


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + D/2) of ``x`` (B, H, T, D) by the angles of their positions.

    ``cos`` and ``sin`` are (T, D), or (B, 1, T, D) if rows differ in their positions. Autograd
    takes about twice as long at width 768 on a CPU (python -m benchmarks.functional, rotate_*).
    """
    if x.dtype == cos.dtype and not torch.compiler.is_compiling():
        if not torch.is_grad_enabled():  # autograd takes longer than the work of a single token
            return _rotated(x, cos, sin)
        apply: Any = _Rotation.apply  # torch has no types for it
        out: Tensor = apply(x, cos, sin)
        return out
    low, high = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-high, low], dim=-1) * sin).to(x.dtype)


def frequencies(base: float, D: int) -> Tensor:
    """The unscaled frequencies (D / 2,), in radians per position: 1 / base^(2i / D) in float32.

    Llama's code and transformers round in this order too. base^(-2i / D) differs in the last bit,
    and after 2,000 positions by 1e-4 in the logits.
    """
    exponent = torch.arange(0, D, 2, dtype=torch.float32) / D
    return 1.0 / torch.pow(base, exponent)


def scaled(
    frequency: Tensor, base: float, scaling: str, factor: float, original: int, low: float,
    high: float,
) -> tuple[Tensor, float]:  # fmt: skip
    """The frequencies (D / 2,) for texts ``factor`` times as long as the ``original`` tokens that
    the network was trained on, and a factor of cosine and sine.

    ``linear`` divides all by ``factor`` (Chen et al. 2023, arXiv:2306.15595). With ``llama3``
    (arXiv:2407.21783) and ``yarn`` (Peng et al. 2023, arXiv:2309.00071) those that turn more than
    ``high`` times in ``original`` tokens stay, and those that turn less than ``low`` times are
    divided; between them there is a ramp, over the turns or over the numbers of the frequencies.
    """
    if scaling == "none":
        return frequency, 1.0
    divided = frequency / factor
    if scaling == "linear":
        return divided, 1.0
    if scaling == "llama3":
        turns = original * frequency / (2 * math.pi)
        kept = ((turns - low) / (high - low)).clamp(0, 1)
        return kept * frequency + (1 - kept) * divided, 1.0
    D = 2 * len(frequency)

    def number(turns: float) -> float:
        """Which frequency turns so often."""
        return D * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

    first, last = max(math.floor(number(high)), 0), min(math.ceil(number(low)), D - 1)
    ramp = torch.arange(D // 2, dtype=torch.float32) - first
    kept = 1 - (ramp / (last - first or 0.001)).clamp(0, 1)
    return kept * frequency + (1 - kept) * divided, 0.1 * math.log(factor) + 1


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
