"""How fast a model reads and writes."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from llm.device import synchronize
from llm.model.gpt import GPT
from llm.sampling.cache import KVCache
from llm.sampling.generate import SamplingOptions, generate_batch


@dataclass(frozen=True)
class Speed:
    """Tokens, and tokens per second, of all rows together."""

    prefill_tokens: int
    prefill_rate: float
    decode_tokens: int
    decode_rate: float


def measure(
    model: GPT, prompt: Sequence[int], options: SamplingOptions, rows: int, n_tokens: int
) -> Speed:
    """Read ``rows`` prompts of half a window (``prompt``, repeated), then write with ``options``.

    Each prompt is followed by ``max_new_tokens`` tokens, at least two, whatever they are. Prefill
    is timed until the first is drawn, decoding from there on, after one round to warm up.
    """
    device, half = model.embed.weight.device, max(1, model.config.block_size // 2)
    prompts = [(list(prompt) * half)[:half]] * rows

    def timed(new_tokens: int) -> list[float]:
        chosen = replace(options, max_new_tokens=new_tokens)
        synchronize(device)
        moments = [time.perf_counter()]
        for _ in generate_batch(KVCache(model), prompts, chosen, range(rows), n_tokens):
            synchronize(device)
            moments.append(time.perf_counter())
        return moments

    timed(2)
    start, first, *_, last = timed(max(3, options.max_new_tokens))
    decoded = rows * (max(3, options.max_new_tokens) - 1)
    return Speed(rows * half, rows * half / (first - start), decoded, decoded / (last - first))
