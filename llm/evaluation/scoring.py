"""Log-probabilities of continuations, computed in batches, for tasks with several choices."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch

from llm.data.tokenizer import Tokenizer
from llm.device import to_device
from llm.functional import IGNORED
from llm.model.gpt import GPT

TOGETHER = 4096  # tokens in one forward pass, padding included
T = TypeVar("T")
Reading = Callable[[Iterator[T], int], Iterable[T]]


@dataclass(frozen=True)
class Request:
    """A continuation to score, given its context. The context may be empty, and then the first id
    of the continuation is not scored.
    """

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True)
class Score:
    """The log-probability of a continuation in nats, summed over its tokens.

    ``is_greedy``: each token was the most likely one. ``is_cut``: the window was too small for the
    context, whose start was left out.
    """

    logprob: float
    is_greedy: bool
    is_cut: bool


def request_of(tokenizer: Tokenizer, context: str, continuation: str) -> Request:
    """The ids of a context and its continuation, cut as lm-eval cuts them.

    White space at the end of the context belongs to the continuation, because tokens start with a
    space. Both texts are encoded as one: the context gets as many ids as it has alone, and the
    continuation gets the rest.
    The context starts with the end-of-text token if the tokenizer has one.
    """
    kept = context.rstrip()
    continuation = context[len(kept) :] + continuation
    whole, before = tokenizer.encode(kept + continuation), tokenizer.encode(kept)
    end = () if tokenizer.end_of_text is None else (tokenizer.end_of_text,)
    ids = [int(token) for token in whole]
    return Request((*end, *ids[: len(before)]), tuple(ids[len(before) :]))


@torch.no_grad()
def score(
    model: GPT, requests: Sequence[Request], size: int | None = None, rows: int | None = None,
    reading: Reading[list[int]] = lambda batches, count: batches,
) -> list[Score]:  # fmt: skip
    """The scores of the requests, in order. A request longer than the window loses its start.

    ``size``: tokens of the window (``block_size``); a continuation must fit into it. ``rows``:
    requests in a batch; by default as many as :data:`TOGETHER` tokens hold. ``reading`` gets the
    batches (lists of indices of ``requests``) and their number.
    """
    size = size or model.config.block_size
    found: list[Score | None] = [None] * len(requests)
    batches = batched([len(one.context) + len(one.continuation) for one in requests], size, rows)
    for batch in reading(iter(batches), len(batches)):
        part = [requests[number] for number in batch]
        for number, result in zip(batch, _score_batch(model, part, size), strict=True):
            found[number] = result
    return [one for one in found if one is not None]


def batched(lengths: Sequence[int], size: int, rows: int | None) -> list[list[int]]:
    """The indices of texts in batches of similar length, which need little padding. The longest
    come first, so that running out of memory shows at once.
    """
    order = sorted(range(len(lengths)), key=lambda number: -lengths[number])
    batches: list[list[int]] = []
    while order:
        longest = max(1, min(lengths[order[0]], size))
        count = rows or max(1, TOGETHER // longest)
        batches.append(order[:count])
        order = order[count:]
    return batches


def _score_batch(model: GPT, requests: Sequence[Request], size: int) -> list[Score]:
    inputs, targets, cut = _padded(requests, size)
    on_device = to_device([inputs, targets], model.embed.weight.device)
    tokens, wanted = on_device
    counted = wanted != IGNORED
    # Logits are computed for continuations only.
    logits = model.logits(model.hidden(tokens)[counted])
    ids = wanted[counted]
    logprobs = torch.log_softmax(logits, dim=-1).gather(1, ids[:, None])[:, 0]
    is_best = logits.argmax(dim=-1) == ids
    row = counted.nonzero()[:, 0]
    # Sum in float64: in float32 a sum over hundreds of tokens would lose digits.
    sums = torch.zeros(len(requests), dtype=torch.float64)
    sums.index_add_(0, row.cpu(), logprobs.double().cpu())
    misses = torch.zeros(len(requests), dtype=torch.int64)
    misses.index_add_(0, row.cpu(), (~is_best).long().cpu())
    pairs = zip(sums.tolist(), misses.tolist(), cut, strict=True)
    return [Score(total, count == 0, is_cut) for total, count, is_cut in pairs]


def _padded(requests: Sequence[Request], size: int) -> tuple[np.ndarray, np.ndarray, list[bool]]:
    """Inputs and targets (B, T), padded on the right, and for each request whether it is cut.

    The padding changes no score: a token sees only the tokens before it.
    """
    rows = [(*one.context, *one.continuation) for one in requests]
    kept = [row[-(size + 1) :] for row in rows]
    longest = max(1, max(len(row) for row in kept) - 1)
    inputs = np.zeros((len(rows), longest), dtype=np.int64)
    targets = np.full((len(rows), longest), IGNORED, dtype=np.int64)
    for number, (row, one) in enumerate(zip(kept, requests, strict=True)):
        inputs[number, : len(row) - 1] = row[:-1]
        count = min(len(one.continuation), len(row) - 1)
        targets[number, len(row) - 1 - count : len(row) - 1] = row[len(row) - count :]
    return inputs, targets, [len(a) < len(b) for a, b in zip(kept, rows, strict=True)]
