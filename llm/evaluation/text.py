"""How well a model predicts one text of any length."""

from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
import torch

from llm.data.batches import read_windows
from llm.device import to_device
from llm.errors import require
from llm.evaluation.loss import Evaluation, evaluate
from llm.model.gpt import GPT

TOGETHER = 2048  # tokens in one forward pass: GPT-2's vocabulary takes 400 MB of logits


def evaluate_tokens(model: GPT, tokens: np.ndarray, byte_lengths: np.ndarray) -> Evaluation:
    """Mean cross-entropy of every token but the first, given the tokens before it in its window.

    Windows of ``block_size`` tokens lie side by side, as in validation. The last one is moved back
    until it ends with the text, and the tokens that it shares with its neighbour do not count
    twice. ``byte_lengths`` (vocab_size,): the number of bytes of each id. Raises
    :class:`llm.errors.Refused` for fewer than two tokens.
    """
    require(len(tokens) > 1, "the text has fewer than two tokens, so there is nothing to predict")
    block_size = min(model.config.block_size, len(tokens) - 1)
    starts = np.arange(0, len(tokens) - 1, block_size)
    rows = max(1, TOGETHER // block_size)
    device = model.embed.weight.device

    def batches() -> Iterator[list[torch.Tensor]]:
        for first in range(0, len(starts), rows):
            yield to_device(read_windows(tokens, starts[first : first + rows], block_size), device)

    lengths = torch.from_numpy(byte_lengths).to(device)
    return evaluate(model, batches(), nullcontext(), lengths)
