"""How well a model predicts one text of any length."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch

from llm.data.batches import Batch
from llm.data.tokenizer import Tokenizer
from llm.device import to_device
from llm.errors import require
from llm.evaluation.loss import Evaluation, evaluate
from llm.functional import IGNORED
from llm.model.gpt import GPT

TOGETHER = 2048  # tokens in one forward pass: GPT-2's vocabulary takes 400 MB of logits
TOO_SHORT = "the text has fewer than two tokens, so there is nothing to predict"
Reading = Callable[[Iterator[Batch], int], Iterable[Batch]]


@dataclass(frozen=True)
class Windows:
    """Windows of ``size`` tokens over a text of ``n_tokens``, which start ``stride`` tokens apart.

    Each token but the first is a target in exactly one window: the first window that reaches it.
    With a stride below ``size`` most targets see more of the text before them. The last window is
    moved back until it ends with the text.
    """

    n_tokens: int
    size: int
    stride: int

    def starts(self) -> np.ndarray:
        """Where each window starts: (windows,) int64. There is at least one."""
        more = -(-max(0, self.n_tokens - 1 - self.size) // self.stride)
        return np.minimum(np.arange(more + 1) * self.stride, self.n_tokens - 1 - self.size)

    def batches(self, tokens: np.ndarray, rows: int) -> tuple[int, Iterator[Batch]]:
        """The number of batches of up to ``rows`` windows, and an iterator that reads them."""
        starts = self.starts()
        # The first target of a window is the one after the last target of the window before.
        known = np.concatenate([[0], starts[:-1] + self.size])
        firsts = range(0, len(starts), rows)
        parts = (slice(first, first + rows) for first in firsts)
        return len(firsts), (self._batch(tokens, starts[part], known[part]) for part in parts)

    def _batch(self, tokens: np.ndarray, starts: np.ndarray, known: np.ndarray) -> Batch:
        places = starts[:, None] + np.arange(self.size + 1)
        windows = tokens[places].astype(np.int64)
        inputs, targets = windows[:, :-1].copy(), windows[:, 1:].copy()
        targets[places[:, 1:] <= known[:, None]] = IGNORED
        return inputs, targets


def evaluate_tokens(
    model: GPT, tokens: np.ndarray, byte_lengths: np.ndarray, size: int | None = None,
    stride: int | None = None, rows: int | None = None,
    reading: Reading = lambda batches, count: batches,
) -> tuple[Evaluation, Windows]:  # fmt: skip
    """Mean cross-entropy of every token but the first, given the tokens before it in its window.

    ``size``: tokens in a window (``block_size``); ``stride``: tokens between the starts of two
    windows (``size``); ``rows``: windows in a batch. ``byte_lengths`` (vocab_size,): the number of
    bytes of each id. ``reading`` gets the batches and their number, and yields them again to show
    the progress. Raises :class:`llm.errors.Refused` for fewer than two tokens.
    """
    require(len(tokens) > 1, TOO_SHORT)
    size = min(size or model.config.block_size, len(tokens) - 1)
    windows = Windows(len(tokens), size, min(stride or size, size))
    device = model.embed.weight.device
    count, batches = windows.batches(tokens, rows or max(1, TOGETHER // size))
    checked = (_checked(batch, len(byte_lengths)) for batch in reading(batches, count))
    moved = (to_device(batch, device) for batch in checked)
    lengths = torch.from_numpy(byte_lengths).to(device)
    return evaluate(model, moved, nullcontext(), lengths), windows


def _checked(batch: Batch, vocab_size: int) -> Batch:
    largest = max(int(ids.max(initial=0)) for ids in batch)
    require(
        largest < vocab_size,
        f"token id {largest} is beyond the vocabulary of {vocab_size}: prepare the data again",
    )
    return batch


def text_tokens(tokenizer: Tokenizer, text: str) -> np.ndarray:
    """The ids of a text, after the id that ends the text before it if the tokenizer has one.

    So the first token is predicted too.
    """
    ids = tokenizer.encode(text)
    if tokenizer.end_of_text is None:
        return ids
    return np.concatenate([np.array([tokenizer.end_of_text], ids.dtype), ids])
