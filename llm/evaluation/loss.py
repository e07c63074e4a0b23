"""How well a model predicts text: cross-entropy, perplexity, bits per byte."""

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from llm.functional import IGNORED


class LossFunction(Protocol):
    """A model, compiled or not."""

    def __call__(self, tokens: Tensor, targets: Tensor, reduction: str) -> Tensor: ...


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy in nats over ``tokens`` targets, which are ``bytes`` of UTF-8."""

    loss: float
    tokens: int
    bytes: int = 0

    @property
    def perplexity(self) -> float | None:
        """exp(loss), or None if that overflows."""
        return math.exp(self.loss) if self.loss < 709 else None

    @property
    def bits_per_byte(self) -> float | None:
        """Bits to code one byte of the text, comparable between tokenizers; None without text."""
        return self.loss / math.log(2) * self.tokens / self.bytes if self.bytes else None


@torch.no_grad()
def evaluate(
    model: LossFunction,
    batches: Iterable[Sequence[Tensor]],
    autocast: AbstractContextManager[Any] | None = None,
    token_bytes: Tensor | None = None,
) -> Evaluation:
    """Mean over all targets that are not ignored, however they are batched. It draws no random
    numbers.

    ``token_bytes`` (vocab_size,): how many bytes each id stands for; None: they are not counted.
    """
    total, count, n_bytes = 0.0, 0, 0
    for inputs, targets in batches:
        with autocast or nullcontext():
            total += float(model(inputs, targets, reduction="sum"))
        kept = targets[targets != IGNORED]
        count += len(kept)
        n_bytes += 0 if token_bytes is None else int(token_bytes[kept].sum())
    if count == 0:
        raise ValueError("there is nothing to evaluate")
    return Evaluation(total / count, count, n_bytes)
