"""How well a model predicts text: cross-entropy, perplexity, bits per byte."""

import math
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from llm.functional import IGNORED
from llm.options import option


class LossFunction(Protocol):
    """A model, compiled or not."""

    def __call__(self, *batch: Tensor, reduction: str) -> Tensor: ...


@dataclass(frozen=True)
class EvaluationProtocol:
    """How a loss was measured. Two losses compare only if these values are the same; their bits
    per byte compare if the text is the same.
    """

    split: str
    text: str  # sha256 of the text and its splits, independent of the tokenizer
    block_size: int = option(at_least=1)
    windows: int = option(at_least=1)
    stride: float = option(at_least=0)  # mean number of tokens between the starts of windows
    tokens: int = option(at_least=1)  # targets
    bytes: int = option(at_least=0)  # of UTF-8


@dataclass(frozen=True)
class Evaluation:
    """Mean cross-entropy in nats over ``tokens`` targets, which are ``bytes`` of UTF-8."""

    loss: float
    tokens: int
    bytes: int

    @property
    def perplexity(self) -> float | None:
        """exp(loss), or None if that overflows."""
        return math.exp(self.loss) if self.loss < 709 else None

    @property
    def bits_per_byte(self) -> float | None:
        """Bits per byte of text, comparable between tokenizers; None without text."""
        return self.loss / math.log(2) * self.tokens / self.bytes if self.bytes else None

    def protocol(self, windows: dict[str, Any]) -> EvaluationProtocol:
        """How this was measured; ``windows``: :meth:`llm.data.dataset.Dataset.protocol`."""
        return EvaluationProtocol(**windows, tokens=self.tokens, bytes=self.bytes)


@torch.no_grad()
def evaluate(
    model: LossFunction,
    batches: Iterable[Sequence[Tensor]],
    autocast: AbstractContextManager[Any],
    token_bytes: Tensor,
) -> Evaluation:
    """Mean over all targets that are not ignored, in any batches. Draws no random numbers.

    Each batch is (inputs, targets), or (inputs, targets, documents) with packed rows.
    ``token_bytes`` (vocab_size,): the number of bytes of each id.
    """
    total, count, n_bytes = 0.0, 0, 0
    for batch in batches:
        with autocast:
            total += float(model(*batch, reduction="sum"))
        targets = batch[1]
        counted = targets[targets != IGNORED]
        count += len(counted)
        n_bytes += int(token_bytes[counted].sum())
    if count == 0:
        raise ValueError("there is nothing to evaluate")
    return Evaluation(total / count, count, n_bytes)
