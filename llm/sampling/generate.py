"""Text from a model, one token at a time, for one prompt or for several at once."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from llm.model.gpt import GPT
from llm.sampling.cache import KVCache, Reader, Uncached
from llm.sampling.filters import draw, filtered
from llm.sampling.options import SamplingOptions as SamplingOptions
from llm.sampling.repetition import Repetition

Drawn = tuple[int, float]  # a token id and its log-probability in nats


def generate(
    model: GPT,
    prompt: Sequence[int],
    options: SamplingOptions,
    seed: int,
    n_tokens: int,
    end: int | None = None,
) -> Iterator[Drawn]:
    """Yield (token id, log-probability in nats) until ``end`` or ``max_new_tokens``.

    :func:`generate_batch` for one prompt.
    """
    for drawn in generate_batch(KVCache(model), [prompt], options, [seed], n_tokens, end):
        if drawn[0] is not None:
            yield drawn[0]


@torch.inference_mode()
def generate_batch(
    reader: Reader,
    prompts: Sequence[Sequence[int]],
    options: SamplingOptions,
    seeds: Sequence[int],
    n_tokens: int,
    end: int | None = None,
    is_last: Callable[[int, int], bool] | None = None,
) -> Iterator[list[Drawn | None]]:
    """Yield, for each of several texts, (token id, log-probability in nats), None once it ended.

    A text ends before ``end``, after ``max_new_tokens``, or with the token of which
    ``is_last(row, token)`` is true. Each prompt holds at least one id; what of it is seen, and what
    drops out as the text grows, :func:`llm.sampling.cache.slide` says. Ids from ``n_tokens`` on (a
    padded vocabulary) are never drawn. Each text draws from a generator of its own, so that it is,
    up to rounding, the same alone as among others; log-probabilities are the model's own, as in
    :func:`score`.
    """
    # On the CPU: the same draws on every device.
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    said = Repetition(
        prompts, n_tokens, repetition=options.repetition_penalty,
        frequency=options.frequency_penalty, presence=options.presence_penalty,
        no_repeat_ngram=options.no_repeat_ngram,
    )  # fmt: skip
    logits = reader.read(prompts)
    ended = [False] * len(prompts)
    for step in range(options.max_new_tokens):
        logits = logits.cpu()
        chosen = choose(logits[:, :n_tokens], options, said, generators)
        scores = logits.log_softmax(dim=-1).gather(1, chosen[:, None])[:, 0].tolist()
        tokens = chosen.tolist()
        ended = [over or token == end for over, token in zip(ended, tokens, strict=True)]
        yield [
            None if over else pair
            for over, pair in zip(ended, zip(tokens, scores, strict=True), strict=True)
        ]
        if is_last:
            ended = [over or is_last(row, tokens[row]) for row, over in enumerate(ended)]
        if all(ended) or step == options.max_new_tokens - 1:
            return
        if said.active:
            for row, token in enumerate(tokens):
                said.add(row, token)
        logits = reader.add([None if o else t for o, t in zip(ended, tokens, strict=True)])


def choose(
    logits: Tensor,
    options: SamplingOptions,
    said: Repetition,
    generators: Sequence[torch.Generator],
) -> Tensor:
    """Token ids (B,) for ``logits`` (B, V); each row takes one number from its generator."""
    if said.active:
        logits = said.apply(logits)
    if options.temperature == 0:
        return logits.argmax(dim=-1)
    allowed, ids = filtered(
        logits, options.temperature, options.top_k, options.top_p, options.min_p
    )
    uniform = [torch.rand((), generator=generator, dtype=torch.double) for generator in generators]
    return ids.gather(1, draw(allowed, torch.stack(uniform))[:, None])[:, 0]


@dataclass(frozen=True)
class Comparison:
    """The cached path beside the uncached one."""

    tokens: int  # compared
    different: int | None  # the first token that differs, counted from 0
    largest_difference: float  # of any logit up to and with it


@torch.inference_mode()
def verify_cache(
    model: GPT, prompt: Sequence[int], options: SamplingOptions, seed: int, n_tokens: int
) -> Comparison:
    """Generate ``max_new_tokens`` with the cache and without, until they differ.

    No token ends the text, so that there is something to compare.
    """
    cached, uncached = Recorded(KVCache(model)), Recorded(Uncached(model))
    pair = [
        generate_batch(reader, [prompt], options, [seed], n_tokens) for reader in (cached, uncached)
    ]
    count, largest, different = 0, 0.0, None
    for (one,), (other,) in zip(*pair, strict=True):
        assert cached.logits is not None and uncached.logits is not None
        largest = max(largest, float((cached.logits - uncached.logits).abs().max()))
        assert one and other
        if one[0] != other[0]:
            different = count
            break
        count += 1
    return Comparison(count, different, largest)


class Recorded:
    """A reader that keeps the logits it said last."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.logits: Tensor | None = None

    def read(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """As :meth:`Reader.read` says."""
        self.logits = self.reader.read(prompts)
        return self.logits

    def add(self, tokens: Sequence[int | None]) -> Tensor:
        """As :meth:`Reader.add` says."""
        self.logits = self.reader.add(tokens)
        return self.logits


@torch.no_grad()
def score(model: GPT, tokens: list[int]) -> list[float | None]:
    """Log-probability in nats of each token given those before it; None for those without one.

    These are the first, and where ``tokens`` outgrow ``block_size``, all up to the window's first.
    """
    window = tokens[-model.config.block_size :]
    logits = model(torch.tensor([window], device=model.embed.weight.device))[0]
    of_next = logits[:-1].log_softmax(dim=-1).cpu()
    known: list[float | None] = [
        float(row[token]) for row, token in zip(of_next, window[1:], strict=True)
    ]
    return [None] * (len(tokens) - len(known)) + known
