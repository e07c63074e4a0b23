"""Matrix products with a few rows, as decoding makes them, as fast as a CPU reads the matrix."""

import torch
import torch.nn.functional as F
from torch import Tensor

FEW = 128  # rows; for more, torch's own product is as fast


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., C) @ weight (N, C).T + bias (N,), as :func:`torch.nn.functional.linear`.

    One row, for which torch uses a single thread, is shared out among all; a few are taken for
    columns, which the matrix goes through faster (python -m benchmarks.functional, rows linear_*).
    """
    rows = x.numel() // x.shape[-1]
    if torch.is_grad_enabled() or torch.compiler.is_compiling() or x.device.type != "cpu":
        return F.linear(x, weight, bias)
    if rows == 1 and len(weight) >= torch.get_num_threads() > 1:
        out = _one_row(x.reshape(1, -1), weight, torch.get_num_threads())
    elif 1 < rows <= FEW and weight.is_contiguous():
        out = torch.mm(weight, x.reshape(rows, -1).t()).t().contiguous()
    else:
        return F.linear(x, weight, bias)
    out = out.view(*x.shape[:-1], -1)
    return out if bias is None else out.add_(bias)


def _one_row(x: Tensor, weight: Tensor, threads: int) -> Tensor:
    """x (1, C) -> (1, N), with a part of ``weight`` for each thread."""
    cut = len(weight) - len(weight) % threads
    if cut < len(weight):
        few = F.linear(x, weight[cut:])
        return torch.cat([_one_row(x, weight[:cut], threads), few], dim=-1)
    parts = weight.view(threads, -1, weight.shape[1])
    if weight.is_contiguous() and len(weight) > weight.shape[1]:
        return torch.bmm(parts, x.t().expand(threads, -1, -1)).view(1, -1)
    return torch.bmm(x.expand(threads, -1, -1), parts.mT).view(1, -1)
