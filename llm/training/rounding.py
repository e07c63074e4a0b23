"""Weights in bfloat16: updated in float32, portion by portion, and rounded at random.

An update is mostly smaller than half the distance to the next bfloat16 (2^-9 of a weight), so that
the nearest one would always be the old weight. Rounding up as often as the value lies near makes
the mean right (Gupta et al. 2015, arXiv:1502.02551, section 3.1).
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from llm.functional.sizes import PORTION


def portions(*tensors: Tensor, block: int = 1) -> Iterator[tuple[Tensor, ...]]:
    """The numbers of contiguous tensors of one size, as views (n,): at most ``PORTION`` of each at
    a time, or as many of those that have one number for each ``block``.
    """
    size = PORTION // block
    return zip(*(torch.split(tensor.view(-1), size) for tensor in tensors), strict=True)


@contextlib.contextmanager
def in_float32(weights: Tensor) -> Iterator[Tensor]:
    """The weights themselves, to be changed in place; of others than float32 a copy, which is
    rounded back at random.
    """
    wide = weights.float()
    yield wide
    if wide is not weights:
        weights.copy_(round_at_random_(wide))


def round_at_random_(values: Tensor) -> Tensor:
    """Replace each of ``values`` (float32) by one of the two bfloat16 around it, and return them.

    The nearer one is the likelier, so that the mean is the value. Draws from torch's generator of
    the device. What bfloat16 has is kept, so are infinities and NaN; beyond its largest number
    comes infinity.
    """
    count, device = values.numel(), values.device
    # 64 bits at once, for four numbers: on a CPU drawing takes most of the time.
    drawn = torch.randint(-(2**63), 2**63 - 1, (-(-count // 4),), dtype=torch.int64, device=device)
    noise = drawn.view(torch.int16)[:count].view(values.shape).int().bitwise_and_(0xFFFF)
    noise.masked_fill_(values.isnan(), 0)  # the carry of a NaN may go as far as its sign
    # Bfloat16 is the upper half of float32: what is added carries into it in as many of 2^16 cases
    # as the lower half says.
    values.view(torch.int32).add_(noise).bitwise_and_(-0x10000)
    return values
