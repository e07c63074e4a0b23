"""Which tokens may be drawn: temperature, top-k, top-p. All take and return logits (..., V)."""

import torch
from torch import Tensor

BARRED = float("-inf")


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the ``k`` highest and any that tie with the last (Fan et al. 2018, arXiv:1805.04833)."""
    lowest = torch.topk(logits, min(k, logits.shape[-1]), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < lowest, BARRED)


def top_p(logits: Tensor, p: float) -> Tensor:
    """Keep the fewest tokens that hold a share ``p`` (Holtzman et al. 2019, arXiv:1904.09751)."""
    ordered, order = logits.sort(dim=-1, descending=True)
    probability = ordered.softmax(dim=-1)
    before = probability.cumsum(dim=-1) - probability  # what the tokens above already hold
    barred = (before >= p).scatter(-1, order, before >= p)
    return logits.masked_fill(barred, BARRED)


def filtered(logits: Tensor, temperature: float, k: int | None, p: float | None) -> Tensor:
    """Logits divided by ``temperature``, with all but the allowed tokens at minus infinity."""
    # The highest becomes 0, so that a tiny temperature cannot overflow: it means the most likely.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / max(temperature, 1e-6)
    if k is not None:
        logits = top_k(logits, k)
    if p is not None and p < 1:
        logits = top_p(logits, p)
    return logits
