"""Cross-entropy of a language model's head, without the logits of all tokens at once.

With GPT-2's vocabulary the logits of ``model=small`` take more memory than its layers
(docs/design.md; times: python -m benchmarks.functional, rows loss_*).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from llm.functional import IGNORED
from llm.functional.linear import prefers_onednn, product
from llm.functional.sizes import CHUNK, LARGE_VOCABULARY, ROWS

# Softmax minus one-hot is between -1 and 1, and the largest power of 2 in float16 is 2^15.
HALF_SCALE = 2.0**15


def head_loss(x: Tensor, head: Tensor, targets: Tensor, reduction: str, how: str) -> Tensor:
    """Cross-entropy in nats of x (N, C) @ head (V, C).T against the ids ``targets`` (N,).

    ``reduction``: ``sum`` or ``mean`` over the targets that are not ``IGNORED``, or ``none``
    (N,), which makes all logits. ``how``: ``full``, ``chunked``, or the cheaper (``auto``).
    If all targets are ignored, ``mean`` is NaN, as in torch, and all gradients are 0. No logits are
    computed for ignored targets, such as the questions of conversations.
    """
    rows = None if reduction == "none" else counted_rows(targets)
    if rows is not None:
        x, targets = x.index_select(0, rows), targets[rows]
    if how == "full" or reduction == "none" or (how == "auto" and len(head) < LARGE_VOCABULARY):
        logits = F.linear(x, head).float()
        return F.cross_entropy(logits, targets, ignore_index=IGNORED, reduction=reduction)
    kind, learning = x.device.type, torch.is_grad_enabled()
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype
    apply: Any = _ChunkedLoss.apply  # torch has no types for it
    with torch.autocast(kind, enabled=False):  # autocast would round the float32 products
        total: Tensor = apply(x, head, targets, dtype, learning)
    return total / (targets != IGNORED).sum() if reduction == "mean" else total


def counted_rows(targets: Tensor) -> Tensor | None:
    """The positions of the targets that are not ignored; None if all of them count.

    A compiled network computes all logits, because the number of rows would change its shapes.
    """
    if torch.compiler.is_compiling():
        return None
    rows = (targets != IGNORED).nonzero().flatten()
    return None if len(rows) == len(targets) else rows


class _ChunkedLoss(torch.autograd.Function):
    """Computes the gradients in the forward pass, chunk by chunk, so that logits are neither stored
    nor recomputed, as in Liger's kernel (arXiv:2410.10989, section 3.2).
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, head: Tensor, targets: Tensor, dtype: torch.dtype, learning: bool
    ) -> Tensor:
        weight = head.to(dtype)  # logits are products in this type, softmax and sums in float32
        total = torch.zeros((), device=x.device)
        for_x, for_head = (learning and needed for needed in ctx.needs_input_grad[:2])
        gradients = _Gradients(x, head, weight, for_x, for_head)
        # Buffers for all chunks: allocating them costs as much as a pass over them.
        shape = (min(CHUNK, len(x)), len(head))
        products = torch.empty((0,) if gradients.onednn else shape, dtype=dtype, device=x.device)
        probabilities = torch.empty(shape, dtype=torch.float32, device=x.device)
        for start in range(0, len(x), CHUNK):
            part = slice(start, start + CHUNK)
            inputs, target = x[part].to(dtype), targets[part, None]
            counted = target != IGNORED
            target = target.masked_fill(~counted, 0)
            if gradients.onednn:
                logits = chunk_product(inputs, weight)
            else:
                logits = torch.mm(inputs, weight.T, out=products[: len(inputs)]).float()
            logits = torch.log_softmax(logits, dim=-1, out=probabilities[: len(inputs)])
            total -= (logits.gather(1, target) * counted).sum()
            if learning:
                # d loss / d logits = softmax - one_hot, in place of the logits
                logits = logits.exp_().scatter_add_(1, target, -counted.float()).mul_(counted)
                gradients.add(part, logits)
            del logits  # before the next chunk allocates its own
        del products, probabilities, weight
        ctx.save_for_backward(*gradients.whole())
        # If every target is ignored, a mean divides by 0, but the gradients shall be 0.
        ctx.applied, ctx.any = 1.0, (targets != IGNORED).any()
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *incoming: Tensor) -> tuple[Tensor | None, ...]:
        # The incoming gradient is one number (which includes the loss scale of float16). It is
        # multiplied into the stored gradients, because a copy would be as large as the weights, so
        # a second backward pass divides by the number of the first.
        factor = torch.where(ctx.any, incoming[0] / ctx.applied, 0.0)
        ctx.applied = incoming[0]
        # .data hides the change from torch, which refuses to unpack a changed tensor.
        for gradient in ctx.saved_tensors:
            if gradient is not None:
                gradient.data.mul_(factor)
        return *ctx.saved_tensors, *[None] * 3


def chunk_product(x: Tensor, weight: Tensor) -> Tensor:
    """x (n, K) @ weight (M, K).T by oneDNN.

    oneDNN gets ``CHUNK`` rows: it compiles a kernel for every number of rows and keeps it, and the
    last chunk of each step has another number.
    """
    whole = x if len(x) == CHUNK else F.pad(x, (0, 0, 0, CHUNK - len(x)))
    return product(whole, weight)[: len(x)]


def has_wide_sums(device: torch.device) -> bool:
    """Whether :func:`wide_product` works on ``device``: torch has it for CUDA only."""
    return device.type == "cuda"


def wide_product(x: Tensor, y: Tensor) -> Tensor:
    """x (M, K) @ y (K, N) in float32, from 16-bit matrices of one type."""
    return torch.mm(x, y, out_dtype=torch.float32)


class _Gradients:
    """Gradients of x (N, C) and of the head (V, C), from the gradients of the logits by chunks.

    The head's gradient is summed in float32. The loss scale of float16 comes with the backward
    pass, too late for gradients that were rounded to 0 here. So float16 is used for the gradients
    of logits only on a GPU, where it is much faster, and they are scaled by ``HALF_SCALE`` first.
    """

    def __init__(
        self, x: Tensor, head: Tensor, weight: Tensor, for_x: bool, for_head: bool
    ) -> None:
        self.x, self.dtype = x, weight.dtype
        # With fewer rows a whole chunk would take more memory than planned.
        self.onednn = prefers_onednn(weight) and len(x) >= CHUNK
        self.wide_sums, half = has_wide_sums(x.device), self.dtype == torch.float16
        self.scale = HALF_SCALE if half and self.wide_sums else 1.0
        self.weight = head.float() if half and not self.wide_sums else weight
        self.for_x, self.for_head, self.parts = None, None, list[Tensor]()
        if for_x:
            self.for_x = torch.empty_like(x, dtype=torch.float32 if half else None)
        if for_head and head.dtype == torch.bfloat16:
            rows = torch.split(head, ROWS)
            self.parts = [torch.zeros_like(part, dtype=torch.float32) for part in rows]
        elif for_head:
            self.for_head = torch.zeros_like(head, dtype=torch.float32)
            self.parts = [*torch.split(self.for_head, ROWS)]

    def add(self, part: slice, gradient: Tensor) -> None:
        """Add the part of a chunk, from the ``gradient`` (n, V) of its logits in float32, which is
        changed in place.
        """
        narrow = self.wide_sums and self.dtype != torch.float32
        if narrow:
            gradient = gradient.mul_(self.scale).to(self.dtype)
        x = self.x[part].to(gradient.dtype)
        if narrow and self.for_x is not None:
            self.for_x[part] = wide_product(gradient, self.weight).div_(self.scale)
        elif self.for_x is not None:
            rounded = gradient.to(self.weight.dtype)
            if self.onednn:
                self.for_x[part] = chunk_product(rounded, self.weight.t())
            else:
                self.for_x[part] = rounded @ self.weight
        if not self.parts:
            return
        for rows, columns in zip(self.parts, torch.split(gradient, ROWS, dim=1), strict=True):
            if narrow:
                rows.add_(wide_product(columns.T, x), alpha=1 / self.scale)
            else:
                rows.addmm_(columns.T, x)

    def whole(self) -> tuple[Tensor | None, Tensor | None]:
        """The gradients of x and of the head, each in a type that its tensor accepts."""
        if self.parts and self.for_head is None:  # part by part, to free each at once
            narrow = [self.parts.pop(0).bfloat16() for _ in range(len(self.parts))]
            self.for_head = torch.cat(narrow)
        return self.for_x, self.for_head
