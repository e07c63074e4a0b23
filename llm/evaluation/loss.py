"""How well a model predicts text: cross-entropy, perplexity, bits per byte."""

import math
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from llm.model.gpt import IGNORED


class LossFunction(Protocol):
    """What is evaluated: a model, compiled or not."""

    def __call__(self, tokens: Tensor, targets: Tensor, reduction: str) -> Tensor: ...


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy in nats over ``tokens`` targets."""

    loss: float
    tokens: int

    @property
    def perplexity(self) -> float:
        """exp(loss)."""
        return math.exp(self.loss)

    def bits_per_byte(self, bytes_per_token: float) -> float:
        """Comparable between tokenizers: bits to code one UTF-8 byte of the text."""
        return self.loss / math.log(2) / bytes_per_token


@torch.no_grad()
def evaluate(
    model: LossFunction,
    batches: Iterable[tuple[Tensor, Tensor]],
    autocast: AbstractContextManager[Any] | None = None,
) -> Evaluation:
    """Mean over every target that is not ignored, however the batches are cut. Draws no random
    number.
    """
    total, count = 0.0, 0
    for inputs, targets in batches:
        with autocast or nullcontext():
            total += model(inputs, targets, reduction="sum").double().item()
        count += int((targets != IGNORED).sum())
    if count == 0:
        raise ValueError("there is nothing to evaluate")
    return Evaluation(total / count, count)
