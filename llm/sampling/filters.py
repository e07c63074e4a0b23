"""Which tokens may be drawn: temperature, top-k, top-p, min-p. Logits are (..., V)."""

import math

import torch
from torch import Tensor

BARRED = float("-inf")
ENOUGH = 1024  # candidates of which a share is looked for first, where nothing else limits them


def top_k(logits: Tensor, k: int) -> Tensor:
    """Keep the ``k`` highest and any that tie with the last (Fan et al. 2018, arXiv:1805.04833)."""
    lowest = torch.topk(logits, min(k, logits.shape[-1]), dim=-1).values[..., -1:]
    return logits.masked_fill(logits < lowest, BARRED)


def top_p(logits: Tensor, p: float, whole: Tensor | None = None) -> Tensor:
    """Keep the fewest tokens that hold a share ``p`` (Holtzman et al. 2019, arXiv:1904.09751).

    A share of what all ``logits`` hold, or of exp(``whole``) (..., 1) where they are only a part.
    """
    ordered, order = logits.sort(dim=-1, descending=True)
    probability = (ordered - (logits.logsumexp(-1, True) if whole is None else whole)).exp()
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
) -> tuple[Tensor, Tensor]:
    """Logits divided by ``temperature``, then :func:`top_k`, :func:`top_p` and :func:`min_p`.

    Returns logits (B, K) of the candidates, minus infinity for what may not be drawn, and their ids
    (B, K) in order. There are only a few where ``k`` or ``p`` says so: sorting a vocabulary of
    50,000 takes longer than a layer.
    """
    # The highest becomes 0, so that a tiny temperature cannot overflow: it means the most likely.
    logits = (logits - logits.amax(dim=-1, keepdim=True)) / max(temperature, 1e-6)
    p = None if p == 1 else p
    whole = logits.logsumexp(-1, keepdim=True) if p and k is None else None
    logits, ids = candidates(logits, k, p)
    if k is not None:
        logits = top_k(logits, k)
    if p:
        logits = top_p(logits, p, whole)
    if least:
        logits = min_p(logits, least)
    return logits, ids


def candidates(logits: Tensor, k: int | None, p: float | None) -> tuple[Tensor, Tensor]:
    """What :func:`top_k`, or else :func:`top_p`, can leave of ``logits`` (B, V), and its ids.

    At least that: both (B, K), in the order of the ids.
    """
    size, few = logits.shape[-1], None
    if k is not None and k < size:
        lowest = logits.topk(k, dim=-1).values[:, -1:]
        few = int((logits >= lowest).sum(dim=-1).max())  # more than k where some tie with the last
    elif k is None and p and size > ENOUGH:
        held = logits.topk(ENOUGH, dim=-1).values.exp().sum(dim=-1) / logits.exp().sum(dim=-1)
        few = ENOUGH if bool((held > p).all()) else None
    if few is None:
        return logits, torch.arange(size, device=logits.device).expand_as(logits)
    ids = logits.topk(few, dim=-1).indices.sort(dim=-1).values
    return logits.gather(-1, ids), ids


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Places (B,) drawn with the probabilities of ``logits`` (B, V), in their order.

    ``uniform`` (B,), in [0, 1), says where in the cumulative distribution each lies: one number for
    each token, where torch.multinomial takes one for each of the vocabulary.
    """
    reached = logits.double().softmax(dim=-1).cumsum(dim=-1)
    target = uniform.double() * reached[:, -1]
    # The first that reaches beyond: never one without probability.
    return torch.searchsorted(reached, target[:, None], right=True)[:, 0]
