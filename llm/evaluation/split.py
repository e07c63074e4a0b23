"""The loss of a network on one split of a dataset: `val` in training, `test` on request."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import Any

import torch

from llm.data.batches import Batch
from llm.data.dataset import Dataset
from llm.device import to_device
from llm.evaluation.loss import Evaluation, EvaluationProtocol, evaluate
from llm.model.gpt import GPT

EVAL_BATCH = 8  # sequences; fixed, so that runs with different batch sizes can be compared
Reading = Callable[[Iterator[Batch], int], Iterable[Batch]]


def evaluate_split(
    model: GPT, dataset: Dataset, split: str, autocast: AbstractContextManager[Any],
    batch_size: int, eval_batches: int | None, reading: Reading = lambda batches, count: batches,
) -> tuple[Evaluation, EvaluationProtocol]:  # fmt: skip
    """The loss of ``model`` on a split, and how it was measured. Draws no random numbers.

    Reads ``eval_batches * EVAL_BATCH`` windows of ``block_size`` tokens at fixed places, evenly
    spread; with None the whole split. ``batch_size`` windows at a time only change the last bits.
    ``reading`` gets the batches and their number, and yields them again to show the progress.
    """
    model.eval()
    block_size, device = model.config.block_size, model.embed.weight.device
    windows = count_of_windows(eval_batches)
    count, batches = dataset.validation(block_size, batch_size, windows, split)
    moved = (to_device(batch, device) for batch in reading(batches, count))
    token_bytes = torch.from_numpy(dataset.tokenizer.byte_lengths).to(device)
    result = evaluate(model, moved, autocast, token_bytes)
    return result, result.protocol(dataset.protocol(block_size, windows, split))


def count_of_windows(eval_batches: int | None) -> int | None:
    """How many windows ``trainer.eval_batches`` stands for; None: the whole split."""
    return None if eval_batches is None else eval_batches * EVAL_BATCH
