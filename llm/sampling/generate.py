"""Text from a model, one token at a time, for one prompt or for several at once."""

from collections.abc import Callable, Generator, Iterator, Sequence

import torch

from llm.model.gpt import GPT
from llm.sampling.cache import KVCache, Reader
from llm.sampling.choose import choose
from llm.sampling.options import SamplingOptions

Drawn = tuple[int, float]  # a token id and its log-probability in nats


def generate(
    model: GPT,
    prompt: Sequence[int],
    options: SamplingOptions,
    seed: int,
    n_tokens: int,
    end: int | None = None,
) -> Iterator[Drawn]:
    """:func:`generate_batch` for one prompt."""
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
    is_stopped: Callable[[int], bool] = lambda row: False,
) -> Generator[list[Drawn | None], None, None]:
    """Yield (token id, log-probability in nats) for each text, or None once the text has ended.

    A text ends before the token ``end``, after ``max_new_tokens``, or once ``is_stopped(row)``,
    which is called after each yield. A prompt has at least one id. Ids from ``n_tokens`` on (a
    padded vocabulary) are never drawn. Each text has its own random generator, so that it
    is the same alone and in a batch, up to rounding. The log-probabilities are the model's, before
    penalties, temperature and filters.
    """
    # On the CPU: the same draws on every device.
    generators = [torch.Generator().manual_seed(seed) for seed in seeds]
    texts = [list(prompt) for prompt in prompts]
    prompt_lengths = [len(text) for text in texts]
    ended = [False] * len(texts)
    logits = reader.read(prompts)
    for step in range(options.max_new_tokens):
        logits = logits.cpu()
        chosen = choose(logits[:, :n_tokens], options, texts, prompt_lengths, generators)
        scores = logits.log_softmax(dim=-1).gather(1, chosen[:, None])[:, 0].tolist()
        tokens = chosen.tolist()
        drawn: list[Drawn | None] = []
        for row, (token, score) in enumerate(zip(tokens, scores, strict=True)):
            ended[row] = ended[row] or token == end
            drawn.append(None if ended[row] else (token, score))
            texts[row].append(token)
        yield drawn
        ended = [over or is_stopped(row) for row, over in enumerate(ended)]
        if all(ended) or step == options.max_new_tokens - 1:
            return
        logits = reader.add(
            [None if over else token for over, token in zip(ended, tokens, strict=True)]
        )


@torch.no_grad()
def score_tokens(model: GPT, tokens: list[int]) -> list[float | None]:
    """Log-probability in nats of each token given the tokens before it.

    None for the first token and for tokens before the last ``block_size``.
    """
    window = tokens[-model.config.block_size :]
    logits = model(torch.tensor([window], device=model.embed.weight.device))[0]
    of_next = logits[:-1].log_softmax(dim=-1).cpu()
    scores: list[float | None] = [
        float(row[token]) for row, token in zip(of_next, window[1:], strict=True)
    ]
    return [None] * (len(tokens) - len(scores)) + scores
