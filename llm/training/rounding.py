"""Weights in bfloat16: updated in float32, a portion at a time, and rounded at random.

Most updates are smaller than half the distance to the next bfloat16 (2^-9 of a weight), so rounding
to the nearest would lose them. Instead, a value that lies a share s of the way up to the next
bfloat16 is rounded up with probability s: the mean is then right (Gupta et al. 2015,
arXiv:1502.02551, section 3.1).
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from llm.functional.sizes import PORTION


def portions(*tensors: Tensor, block: int = 1) -> Iterator[tuple[Tensor, ...]]:
    """Views (n,) of contiguous tensors of one size, at most ``PORTION`` numbers of each at a time.

    ``block``: the number of weights for each number in the tensors.
    """
    size = PORTION // block
    return zip(*(torch.split(tensor.view(-1), size) for tensor in tensors), strict=True)


@contextlib.contextmanager
def in_float32(weights: Tensor) -> Iterator[Tensor]:
    """Yield the weights in float32, to be changed in place. For bfloat16 weights this is a copy,
    which is rounded back at random afterwards.
    """
    wide = weights.float()
    yield wide
    if wide is not weights:
        weights.copy_(round_at_random_(wide))


def round_at_random_(values: Tensor) -> Tensor:
    """Replace each of ``values`` (float32) by one of the two nearest bfloat16, and return them.

    The nearer one is likelier, so that the mean is the value. Exact bfloat16 values, infinities and
    NaN stay; a value above the largest bfloat16 may become infinity. Draws from torch's generator
    of the device.
    """
    count, device = values.numel(), values.device
    # 64 random bits serve four numbers: drawing takes most of the time on a CPU.
    drawn = torch.randint(-(2**63), 2**63 - 1, (-(-count // 4),), dtype=torch.int64, device=device)
    noise = drawn.view(torch.int16)[:count].view(values.shape).int().bitwise_and_(0xFFFF)
    noise.masked_fill_(values.isnan(), 0)  # the carry of a NaN could reach its sign
    # Bfloat16 is the upper half of float32. The lower half, out of 2^16, is the probability that
    # adding 16 random bits carries into the upper half.
    values.view(torch.int32).add_(noise).bitwise_and_(-0x10000)
    return values
