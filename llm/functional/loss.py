"""Cross-entropy of a language model's head, without the logits of all tokens at once."""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from llm.functional.targets import IGNORED

CHUNK = 128  # tokens whose logits exist at once
# From here on the chunked path is taken: it costs no time that matters, and all logits would weigh
# as much as the layers. Time of the full path over its own on a CPU (python -m
# benchmarks.functional): 0.79 at 4,096 tokens, 0.95 at 16,384, 1.00 at 50,304. torch's own
# F.linear_cross_entropy has no softcap and took 2.6 times as long at 50,304.
LARGE_VOCABULARY = 16384


def cap_logits(logits: Tensor, softcap: float | None) -> Tensor:
    """softcap * tanh(logits / softcap), Gemma 2's (arXiv:2408.00118); None: the logits."""
    return logits if softcap is None else softcap * torch.tanh(logits / softcap)


def head_loss(
    x: Tensor, head: Tensor, targets: Tensor, softcap: float | None, reduction: str, how: str
) -> Tensor:
    """Cross-entropy in nats of x (N, C) @ head (V, C).T against the ids ``targets`` (N,).

    ``reduction``: ``sum`` or ``mean`` over the targets that are not ``IGNORED``, or ``none``
    (N,). ``how``: ``full``, ``chunked``, or what is cheaper (``auto``); ``none`` is always full.
    """
    if how == "full" or reduction == "none" or (how == "auto" and len(head) < LARGE_VOCABULARY):
        logits = cap_logits(F.linear(x, head).float(), softcap)
        return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction=reduction)
    learning = torch.is_grad_enabled()
    apply: Any = _ChunkedLoss.apply  # torch has no types for it
    total: Tensor = apply(x, head, targets, softcap, learning)
    return total / (targets != IGNORED).sum() if reduction == "mean" else total


class _ChunkedLoss(torch.autograd.Function):
    """Computes the gradients with the loss, chunk by chunk: no logits are kept or computed twice.

    The idea of Liger's kernel (arXiv:2410.10989, section 3.2).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, head: Tensor, targets: Tensor, softcap: float | None, learning: bool
    ) -> Tensor:
        kind = x.device.type
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
        weight = head.to(dtype)  # products are in this type, softmax and sums in float32
        total = torch.zeros((), device=x.device)
        for_x = torch.empty_like(x) if learning and ctx.needs_input_grad[0] else None
        for_head = torch.zeros_like(head) if learning and ctx.needs_input_grad[1] else None
        # Both are written again for each chunk: making them anew costs as much as a pass over them.
        products = torch.empty((min(CHUNK, len(x)), len(head)), dtype=dtype, device=x.device)
        probabilities = torch.empty_like(products, dtype=torch.float32)
        for start in range(0, len(x), CHUNK):
            part = slice(start, start + CHUNK)
            inputs, target = x[part].to(dtype), targets[part, None]
            kept = target != IGNORED
            target = target.masked_fill(~kept, 0)
            torch.mm(inputs, weight.T, out=products[: len(inputs)])
            logits, slope = products[: len(inputs)].float(), None
            if softcap is not None:  # cap_logits in place, and tanh' = 1 - tanh^2
                slope = logits.div_(softcap).tanh_().square().neg_().add_(1)
                logits.mul_(softcap)
            logits = torch.log_softmax(logits, dim=-1, out=probabilities[: len(inputs)])
            total -= (logits.gather(1, target) * kept).sum()
            if not learning:
                continue
            # d loss / d logits = softmax - one_hot; under the old name, which frees what it held
            logits = logits.exp_().scatter_add_(1, target, -kept.float()).mul_(kept)
            logits = (logits if slope is None else logits.mul_(slope)).to(dtype)
            if for_x is not None:
                for_x[part] = logits @ weight
            if for_head is not None and dtype == head.dtype:
                for_head.addmm_(logits.T, inputs)  # without another tensor of the head's size
            elif for_head is not None:
                for_head += logits.T @ inputs
            del logits, slope  # else they are still there when the next chunk's are made
        ctx.save_for_backward(for_x, for_head)
        ctx.applied = 1.0
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        # In place, since they are as large as the weights: by what comes in (a single number, the
        # loss scale of float16 in it) over what they were multiplied by in a pass before.
        factor = incoming[0] / ctx.applied
        ctx.applied = incoming[0]
        # .data: what was saved may be changed, and unpacked again, without a complaint.
        for gradient in ctx.saved_tensors:
            if gradient is not None:
                gradient.data.mul_(factor)
        return *ctx.saved_tensors, *[None] * 3
