"""Matrix products that are faster than torch's: with few rows, and on CPUs that are not Intel's."""

from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

FEW = 32  # rows; with 128 torch's product is as fast


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x (..., C) @ weight (N, C).T + bias (N,), as :func:`torch.nn.functional.linear`.

    Faster in float32 on a CPU without gradients (python -m benchmarks.functional, rows linear_*):
    one row uses all threads, where torch uses one, and a few rows are computed as weight @ x.T,
    which reads the matrix faster.
    """
    float32 = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32
    # Autocast would convert each part of the matrix again.
    if torch.is_autocast_enabled("cpu") or not float32 or not weight.is_contiguous():
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled() or torch.compiler.is_compiling():
        return F.linear(x, weight, bias)
    rows, threads = x.shape[:-1].numel(), torch.get_num_threads()
    if rows == 1 and 1 < threads <= len(weight):
        out = _one_row(x.reshape(1, -1), weight, threads)
    elif 1 < rows <= FEW:
        out = torch.mm(weight, x.reshape(rows, -1).t()).t().contiguous()
    else:
        return F.linear(x, weight, bias)
    out = out.view(*x.shape[:-1], -1)
    return out if bias is None else out.add_(bias)


def for_products(x: Tensor) -> Tensor:
    """``x`` in autocast's type, for several products: each would make and store its own copy."""
    kind = x.device.type
    return x.to(torch.get_autocast_dtype(kind)) if torch.is_autocast_enabled(kind) else x


def prefers_onednn(x: Tensor) -> bool:
    """Whether :func:`product` with ``x`` takes oneDNN, not MKL. torch.compile chooses by itself."""
    if torch.compiler.is_compiling():
        return False
    return x.dtype == torch.float32 and x.device.type == "cpu" and has_slow_mkl()


@cache
def has_slow_mkl() -> bool:
    """Whether torch multiplies float32 matrices with MKL on a CPU that is not Intel's.

    MKL does not use AVX-512 there: on an AMD EPYC oneDNN, which torch takes for convolutions, needs
    half the time (python -m benchmarks.functional, rows product_*).
    """
    backends: Any = torch.backends  # torch has no types for it
    maker = Path("/proc/cpuinfo")
    if not (backends.mkl.is_available() and backends.mkldnn.is_available() and maker.exists()):
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):  # an operator of torch 2.13
        return False
    return "GenuineIntel" not in maker.read_text(encoding="utf-8")


def product(x: Tensor, weight: Tensor) -> Tensor:
    """x (N, K) @ weight (M, K).T, without gradients."""
    if prefers_onednn(x):
        onednn: Any = torch.ops.mkldnn._linear_pointwise  # torch.compile's
        out: Tensor = onednn(x, weight, None, "none", [], "")
        return out
    return x @ weight.t()


def _one_row(x: Tensor, weight: Tensor, threads: int) -> Tensor:
    """x (1, C) -> (1, N), with a part of ``weight`` (N, C) for each thread."""
    cut = len(weight) - len(weight) % threads
    parts = weight[:cut].view(threads, -1, weight.shape[1])
    # With the matrix as first factor, MKL reads it faster.
    out = torch.bmm(parts, x.t().expand(threads, -1, -1)).view(1, -1)
    return out if cut == len(weight) else torch.cat([out, F.linear(x, weight[cut:])], dim=-1)
