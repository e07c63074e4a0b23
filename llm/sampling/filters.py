"""Which tokens may be drawn: temperature, top-k, top-p, min-p. All map logits (..., V) to such."""

import math

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


def min_p(logits: Tensor, p: float) -> Tensor:
    """Keep tokens at least ``p`` times as likely as the likeliest (Nguyen et al. 2024,
    arXiv:2407.01082).
    """
    lowest = logits.amax(dim=-1, keepdim=True) + math.log(p)
    return logits.masked_fill(logits < lowest, BARRED)


def filtered(
    logits: Tensor, temperature: float, k: int | None, p: float | None, least: float | None = None
) -> Tensor:
    """Logits divided by ``temperature``, then :func:`top_k`, :func:`top_p` and :func:`min_p`.

    All but the allowed tokens are at minus infinity.
    """
    # The highest becomes 0, so that a tiny temperature cannot overflow: it means the most likely.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / max(temperature, 1e-6)
    if k is not None:
        logits = top_k(logits, k)
    if p is not None and p < 1:
        logits = top_p(logits, p)
    if least:
        logits = min_p(logits, least)
    return logits


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Token ids (B,) drawn with the probabilities of ``logits`` (B, V), in the order of the ids.

    ``uniform`` (B,), in [0, 1), says where in the cumulative distribution each lies: one number for
    each token, where torch.multinomial takes one for each of the vocabulary.
    """
    reached = logits.double().softmax(dim=-1).cumsum(dim=-1)
    target = uniform.double() * reached[:, -1]
    # The first that reaches beyond: never one without probability.
    return torch.searchsorted(reached, target[:, None], right=True)[:, 0]
