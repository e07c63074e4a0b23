"""From logits to the next token: penalties, temperature, filters, and a draw.

Logits are (B, V), one row per text.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from llm.sampling.options import SamplingOptions

EXCLUDED = float("-inf")


def choose(
    logits: Tensor,
    options: SamplingOptions,
    texts: Sequence[list[int]],
    prompt_lengths: Sequence[int],
    generators: Sequence[torch.Generator],
) -> Tensor:
    """The next token id of each text (B,); each text takes one number from its generator.

    ``texts`` are prompt and drawn tokens so far; ``prompt_lengths`` are in tokens.
    """
    logits = penalise(logits, options, texts, prompt_lengths)
    if options.temperature == 0:
        return logits.argmax(dim=-1)
    candidates, ids = filter_logits(logits, options)
    uniform = [torch.rand((), generator=generator, dtype=torch.double) for generator in generators]
    return ids.gather(1, draw(candidates, torch.stack(uniform))[:, None])[:, 0]


def penalise(
    logits: Tensor,
    options: SamplingOptions,
    texts: Sequence[list[int]],
    prompt_lengths: Sequence[int],
) -> Tensor:
    """Lower the logits of tokens that would repeat a text.

    The repetition penalty and ``no_repeat_ngram`` count the prompt, as their authors do; the
    frequency and presence penalties count only drawn tokens.
    """
    V = logits.shape[1]
    logits = logits.clone()
    for row, text, start in zip(logits, texts, prompt_lengths, strict=True):
        if options.repetition_penalty != 1:  # Keskar et al. 2019, arXiv:1909.05858
            seen = _count(text, V) > 0
            penalty = options.repetition_penalty
            row[seen] = torch.where(row[seen] > 0, row[seen] / penalty, row[seen] * penalty)
        if options.frequency_penalty or options.presence_penalty:  # as OpenAI's API defines them
            count = _count(text[start:], V)
            row -= options.frequency_penalty * count + options.presence_penalty * (count > 0)
        if options.no_repeat_ngram:
            excluded = [token for token in ngram_ends(text, options.no_repeat_ngram) if token < V]
            if len(excluded) < V:  # else nothing could be drawn
                row[excluded] = EXCLUDED
    return logits


def _count(tokens: list[int], V: int) -> Tensor:
    """Counts (V,) of the ids below V; a prompt may contain ids of the padded vocabulary."""
    return torch.bincount(torch.tensor(tokens, dtype=torch.long), minlength=V)[:V].float()


def ngram_ends(text: list[int], n: int) -> set[int]:
    """Tokens that would complete an n-gram that is already in ``text``.

    Paulus et al. 2017, arXiv:1705.04304, section 2.5.
    """
    if len(text) < n:
        return set()
    last = text[len(text) - n + 1 :]
    return {text[i + n - 1] for i in range(len(text) - n + 1) if text[i : i + n - 1] == last}


def filter_logits(logits: Tensor, options: SamplingOptions) -> tuple[Tensor, Tensor]:
    """Temperature, then top-k (Fan et al. 2018, arXiv:1805.04833), top-p (Holtzman et al. 2019,
    arXiv:1904.09751) and min-p (Nguyen et al. 2024, arXiv:2407.01082).

    Returns the logits (B, K) of the ``top_k`` candidates, minus infinity for an excluded one, and
    their ids (B, K) in ascending order. Few candidates are fast: sorting a vocabulary of 50,000
    takes longer than a layer.
    """
    V = logits.shape[-1]
    # Shift the highest to 0, so that a tiny temperature cannot overflow.
    highest = logits.amax(dim=-1, keepdim=True)
    logits = (logits - highest) / max(options.temperature, 1e-6)
    ids = torch.arange(V).expand_as(logits)
    top_p = options.top_p if options.top_p != 1 else None
    k = min(options.top_k or V, V)
    if k < V or top_p:
        logits, ids = logits.topk(k, dim=-1)
        if top_p:
            share = logits.softmax(dim=-1)
            more_likely = share.cumsum(dim=-1) - share
            logits = logits.masked_fill(more_likely >= top_p, EXCLUDED)
        # Sort by id, so that rounding errors cannot change the order of the cumulative sum.
        ids, order = ids.sort(dim=-1)
        logits = logits.gather(-1, order)
    if options.min_p:
        logits = logits.masked_fill(logits < math.log(options.min_p), EXCLUDED)
    return logits, ids


def draw(logits: Tensor, uniform: Tensor) -> Tensor:
    """Indices (B,) drawn with the probabilities of ``logits`` (B, V).

    ``uniform`` (B,), in [0, 1), is looked up in the cumulative distribution, so that a token takes
    one random number; torch.multinomial takes V.
    """
    cumulative = logits.double().softmax(dim=-1).cumsum(dim=-1)
    target = uniform.double() * cumulative[:, -1]
    # right=True: an entry with probability 0 is never drawn.
    return torch.searchsorted(cumulative, target[:, None], right=True)[:, 0]
