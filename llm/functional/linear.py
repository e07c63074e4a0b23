"""Matrix products with a few rows, as decoding makes them, on all cores of a CPU."""

import torch
import torch.nn.functional as F
from torch import Tensor

FEW = 16  # rows; for more, torch's own product is as fast


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., C) @ weight (N, C).T + bias (N,), as :func:`torch.nn.functional.linear`.

    For one row torch uses a single thread. Cut into one part for each of them, the weight is read
    at the speed of all, which is what bounds decoding (python -m benchmarks.functional: 1.4 times
    as fast on two cores).
    """
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.device.type != "cpu":
        return F.linear(x, weight, bias)
    threads, rows = torch.get_num_threads(), x.numel() // x.shape[-1]
    if rows > FEW or threads == 1 or len(weight) < threads:
        return F.linear(x, weight, bias)
    cut = len(weight) - len(weight) % threads
    if cut < len(weight):
        few = F.linear(x, weight[cut:], None if bias is None else bias[cut:])
        most = linear(x, weight[:cut], None if bias is None else bias[:cut])
        return torch.cat([most, few], dim=-1)
    shared = x.reshape(1, rows, -1).expand(threads, -1, -1)
    parts = weight.view(threads, -1, weight.shape[1]).mT
    if bias is None:
        out = torch.bmm(shared, parts)
    else:
        out = torch.baddbmm(bias.view(threads, 1, -1), shared, parts)
    return out.transpose(0, 1).reshape(*x.shape[:-1], -1)
