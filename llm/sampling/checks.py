"""Checks of decoding: whether the cache changes the text, and how fast it is."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llm.device import synchronize
from llm.model.gpt import GPT
from llm.sampling.cache import KVCache, Uncached
from llm.sampling.generate import generate_batch
from llm.sampling.options import SamplingOptions


@dataclass(frozen=True)
class Comparison:
    """A text with a cache compared with the text without one."""

    tokens: int  # number of equal tokens
    differs: bool  # whether the next token differs
    largest_difference: float  # nats, of the log-probabilities of an equal token


def compare_with_uncached(
    model: GPT, prompt: Sequence[int], options: SamplingOptions, seed: int, n_tokens: int
) -> Comparison:
    """Generate up to ``max_new_tokens`` with and without a cache, until the tokens differ."""
    cached, uncached = (
        generate_batch(reader, [prompt], options, [seed], n_tokens)
        for reader in (KVCache(model), Uncached(model))
    )
    count, largest = 0, 0.0
    for (one,), (other,) in zip(cached, uncached, strict=True):
        assert one and other  # no token ends these texts
        if one[0] != other[0]:
            return Comparison(count, True, largest)
        largest = max(largest, abs(one[1] - other[1]))
        count += 1
    return Comparison(count, False, largest)


def measure_speed(
    model: GPT, prompt: Sequence[int], options: SamplingOptions, rows: int, n_tokens: int
) -> tuple[tuple[int, float], tuple[int, float]]:
    """(tokens, tokens per second) of prefill and of decoding, summed over ``rows`` texts.

    Reads prompts of half a window each (``prompt``, repeated), then generates ``max_new_tokens``,
    at least three. Prefill is timed up to the first drawn token, and decoding from there.
    """
    device, half = model.embed.weight.device, max(1, model.config.block_size // 2)
    prompts = [(list(prompt) * half)[:half]] * rows

    def times(new_tokens: int) -> list[float]:
        """Seconds at the start and after each token."""
        chosen = replace(options, max_new_tokens=new_tokens)
        synchronize(device)
        moments = [time.perf_counter()]
        for _ in generate_batch(KVCache(model), prompts, chosen, range(rows), n_tokens):
            synchronize(device)
            moments.append(time.perf_counter())
        return moments

    times(2)  # warm up
    new_tokens = max(3, options.max_new_tokens)
    start, first, *_, last = times(new_tokens)
    read, decoded = rows * half, rows * (new_tokens - 1)
    return (read, read / (first - start)), (decoded, decoded / (last - first))
